"""The table for papers and pull requests: LaTeX and Markdown.

Bold is a winner, stars are of the Holm-corrected p against the reference. `p_paper_compat` is a
column without either.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mstar.downstream.results.rows import GENERATED, ResultRow
from mstar.downstream.results.sources import LeftOut

METRIC_NAMES = {
    "macro_auc": "AUC",
    "weighted_auc": "weighted AUC",
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "weighted_f1": "weighted F1",
    "quadratic_kappa": "quadratic kappa",
    "brier": "Brier score",
    "calibration_error": "calibration error",
    "c_index": "C-index",
    "time_dependent_auc": "time-dependent AUC",
    **{f"bleu_{order}": f"BLEU-{order}" for order in (1, 2, 3, 4)},
    "meteor": "METEOR (words, stems)",
    "meteor_wordnet": "METEOR (words, stems, synonyms)",
    "rouge_l": "ROUGE-L",
    "fact_recall": "recall of known findings",
    "fact_precision": "precision of named findings",
    "fact_recall_by_chance": "that recall by chance within the type",
    "fact_gain": "recall beyond chance within the type",
    "token_nll": "negative log-likelihood a token",
    "unfinished": "texts cut at the longest length",
    "empty": "texts without a word",
    "recall_at_k": "Recall@10, both ways",
    "median_rank": "median rank, both ways",
    "median_rank_first": "median rank, from the slide",
    "median_rank_back": "median rank, to the slide",
    **{
        f"{where}recall_at_{k}{way}": f"Recall@{k}{said}{inside}"
        for where, inside in (("", ""), ("within_", ", within the type"))
        for way, said in (
            ("", ", both ways"),
            ("_first", ", from the slide"),
            ("_back", ", to the slide"),
        )
        for k in (1, 5, 10, 50)
    },
}

HEADINGS = (
    *("task", "encoder", "head", "metric", "value [95 % interval]", "seed SD", "rank"),
    *("difference to the reference", "p (Holm)", "p_paper_compat", "patients", "trials", "marks"),
)
NOTES = (
    "Intervals: percentiles of a bootstrap of patients (paper-compat rows: normal, of rows). Bold: "
    "better than every other row of its task. Stars: Holm-corrected p of the paired difference to "
    "the reference, * < 0.05, ** < 0.01, *** < 0.001; none below 30 test cases. p_paper_compat is "
    "the article's test, which rejects a true null about half of the time: it is no evidence."
)
GENERATED_NOTE = "GENERATED DATA: these numbers say nothing of real patients."

_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\^{}"}
_LATEX |= {"\\": r"\textbackslash{}", "×": r"$\times$", "±": r"$\pm$", "–": "--", "·": r"$\cdot$"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "−": r"$-$", "≥": r"$\ge$"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row as text; `bold` where it won."""

    cells: tuple[str, ...]
    bold: bool


def lines_of(rows: Sequence[ResultRow]) -> list[Line]:
    """The rows as text, in the order of HEADINGS."""
    return [Line(cells=_cells(row), bold=row.winner) for row in rows]


def markdown(title: str, rows: Sequence[ResultRow], left_out: Sequence[LeftOut]) -> str:
    """The table, its notes and what is not in it."""
    text = [f"# {_plain(title)}", ""]
    if any_generated(rows):
        text += [f"> **{GENERATED_NOTE}**", ""]
    text += [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    for line in lines_of(rows):
        cells = [_plain(cell) for cell in line.cells]
        cells[4] = f"**{cells[4]}**" if line.bold else cells[4]
        text.append(f"| {' | '.join(cells)} |")
    text += ["", NOTES]
    if left_out:
        text += ["", "## Not in the table", ""]
        text += [f"- {_plain(_who(one))}: {_plain(one.reason)}" for one in left_out]
    return "\n".join(text) + "\n"


def latex(title: str, rows: Sequence[ResultRow], left_out: Sequence[LeftOut]) -> str:
    """A longtable; needs the packages longtable and booktabs."""
    heads = " & ".join(_escaped(name) for name in HEADINGS)
    caption = _escaped(title) + (
        rf" \textbf{{{_escaped(GENERATED_NOTE)}}}" if any_generated(rows) else ""
    )
    text = [
        "% needs \\usepackage{longtable,booktabs}",
        rf"\begin{{longtable}}{{{'l' * 4 + 'l' + 'r' * 2 + 'l' + 'r' * 4 + 'l'}}}",
        rf"\caption{{{caption}}}\\",
        rf"\toprule {heads} \\ \midrule \endhead",
    ]
    for line in lines_of(rows):
        cells = [_escaped(cell) for cell in line.cells]
        cells[4] = rf"\textbf{{{cells[4]}}}" if line.bold else cells[4]
        text.append(" & ".join(cells) + r" \\")
    text += [r"\bottomrule", r"\end{longtable}", rf"\noindent {_escaped(NOTES)}"]
    if left_out:
        named = "; ".join(f"{_who(one)} ({one.reason})" for one in left_out)
        text.append(rf"\par\noindent Not in the table: {_escaped(named)}.")
    return "\n".join(text) + "\n"


def any_generated(rows: Sequence[ResultRow]) -> bool:
    """Whether a row is of generated data."""
    return any(row.predictions.facts.data_source == GENERATED for row in rows)


def number(value: float, digits: int = 3) -> str:
    """A number, or a dash where it is undefined."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign; what rounds to nothing has none."""
    rounded = round(value, digits) + 0.0  # -0.0 becomes 0.0
    return ("+" if rounded > 0 else "") + number(rounded, digits)


def p_text(p: float) -> str:
    """A p value as people write it."""
    if math.isnan(p):
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def with_interval(row: ResultRow) -> str:
    """Value and interval."""
    one = row.estimate
    if math.isnan(one.low):
        return number(one.value)
    return f"{number(one.value)} [{number(one.low)}, {number(one.high)}]"


def difference_text(row: ResultRow) -> str:
    """The difference to the reference with its stars."""
    contrast = row.contrast
    if contrast is None:
        return "reference"
    if contrast.difference is None:
        return "–"
    return f"{signed(contrast.difference.value)}{contrast.stars}"


def _cells(row: ResultRow) -> tuple[str, ...]:
    p, contrast = row.predictions, row.contrast
    return (
        *(p.task, p.encoder, p.head),
        METRIC_NAMES.get(row.estimate.metric, row.estimate.metric),
        with_interval(row),
        number(row.estimate.seed_std),
        f"{row.rank} of {row.rivals}" if row.rank else "–",
        difference_text(row),
        p_text(contrast.p_holm) if contrast else "–",
        p_text(contrast.p_paper_compat) if contrast else "–",
        str(row.estimate.patients),
        str(p.facts.trials),
        "; ".join(row.marks),
    )


def _who(one: LeftOut) -> str:
    return " / ".join(name for name in (one.task, one.encoder, one.head) if name)


def _plain(text: str) -> str:
    """Text that breaks no Markdown table and loads nothing."""
    for mark in "\\|*`[]<>":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))
