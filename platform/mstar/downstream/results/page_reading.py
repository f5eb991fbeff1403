"""How the page is to be read: every choice in words, and why some numbers are not comparable."""

from typing import TYPE_CHECKING

from mstar.downstream.results.svg import tag, text
from mstar.downstream.statistics.verdict import FEWEST_CASES

if TYPE_CHECKING:
    from mstar.downstream.results.page import PageContent

_PAPER_COMPAT = (
    "Why paper-compat numbers read high",
    "Rows marked paper-compat repeat what the published code does, so that they can be held "
    "against the article. The epoch and the configuration are chosen on validation and test "
    "together, so the test part has already been used when it is scored: the best of many noisy "
    "numbers is above what the model would reach on new patients. Survival bins are cut at the "
    "event times of the whole file, the test part's included. Rows, not patients, are resampled "
    "and intervals are the mean ± 1.96 standard deviations of the resamples, so several slides of "
    "one patient make them look surer than they are. Such rows are never starred, never win, are "
    "not ranked, and have averages of their own.",
)
_P_PAPER = (
    "p_paper_compat",
    "The article tests one-sided whether the differences of bootstrap replicates centre on zero. "
    "They centre on the difference that this test set happens to show, so that test rejects a true "
    "null about half of the time, and more replicates make any p as small as one likes. The column "
    "is there to be held against the article. Nothing is starred, ranked or won by it.",
)


def reading_section(content: "PageContent") -> str:
    """Definitions, in the order in which the page needs them."""
    items = (
        (
            "Interval",
            f"{content.resamples:,} bootstrap resamples of patients, never of rows; the middle 95 "
            "% of the resamples. With several folds the metric is taken in each fold and averaged, "
            "and patients are resampled within folds. The spread between seeds is a column of its "
            "own and is not in the interval.",
        ),
        (
            "Macro AUC",
            "The mean over the classes that the evaluated set holds; a mark says when some are "
            "absent.",
        ),
        (
            "vs reference, stars",
            "The paired difference to one reference that is settled before results are seen: the "
            "reference encoder with the same head, or for its own rows the reference head. DeLong "
            f"where the metric is a binary AUC, else {content.difference_resamples:,} paired "
            "resamples of patients. p is two-sided and corrected by Holm over the tasks of the "
            "same two methods: * below 0.05, ** below 0.01, *** below 0.001.",
        ),
        (
            "Best",
            "The first of its task is called best when it is better than each of its rivals: the "
            "largest of those p values, corrected by Holm over the tasks, is below 0.05.",
        ),
        (
            f"Fewer than {FEWEST_CASES} test cases",
            "Too few to decide anything: no stars and no winner, whatever p says.",
        ),
        (
            "Cohorts",
            "Tasks that share patients (ER, PR and HER2; OS and DFS) or a model (external tasks) "
            "are not independent. They form one cohort, and a cohort has one vote in averages, "
            "ranks and tests over tasks. Equal patient ids are taken to be one patient, so two "
            "sites that number alike are counted once: too few votes, never too many.",
        ),
        (
            "Leak",
            "A published split whose patients are in more than one part runs only when it is asked "
            "for. Its rows are marked, claim nothing and are in no average.",
        ),
        _PAPER_COMPAT,
        _P_PAPER,
    )
    listed = "".join(
        tag("dt", text(name), id=_anchor(name)) + tag("dd", text(said)) for name, said in items
    )
    return tag("dl", listed, class_="reading")


def _anchor(name: str) -> str:
    return "how-" + "".join(c if c.isalnum() else "-" for c in name.lower())
