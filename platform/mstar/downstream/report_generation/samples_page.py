"""Generated reports beside their references: one HTML file that needs no network and no script.

Words that the two share, in their order, are marked in both: what ROUGE-L counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape

from mstar.downstream.report_generation.facts import GROUP, Facts
from mstar.downstream.report_generation.words import word_places
from mstar.schema import RESEARCH_ONLY

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 80rem; padding: 1rem; }
.banner { border: 2px solid; padding: .5rem 1rem; font-weight: 600; }
article { border-top: 1px solid; margin-top: 1.5rem; }
h2 { font-size: 1.1rem; margin-bottom: 0; }
.facts { margin: .2rem 0; font-size: .9rem; }
.pair { display: grid; gap: 1.5rem; grid-template-columns: 1fr 1fr; }
.pair h3 { font-size: .9rem; margin: .5rem 0 0; }
.pair p { margin: .2rem 0; overflow-wrap: anywhere; white-space: pre-wrap; }
mark { background: light-dark(#cfe8cf, #1f4f2b); color: inherit; }
@media (max-width: 45rem) { .pair { grid-template-columns: 1fr; } }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleText:
    """A generated text and its reference."""

    case_id: str
    generated: str
    reference: str
    rouge_l: float
    ended: bool


def samples_page(
    title: str,
    samples: Sequence[SampleText],
    *,
    most: int,
    generated_data: bool,
    facts: Facts | None = None,
) -> str:
    """The page; of many samples evenly many from the worst to the best, by ROUGE-L.

    Args:
        title: of the page.
        samples: of one model and part.
        most: how many are shown.
        generated_data: the cohort is an artificial one.
        facts: known to be true of the cases.
    """
    ranked = sorted(samples, key=lambda one: (one.rouge_l, one.case_id))
    step = max(1.0, len(ranked) / most) if most else 1.0
    shown = [ranked[int(at * step)] for at in range(min(most, len(ranked)))]
    banner = (
        '<div class="banner" role="note">Generated data: an artificial cohort. These texts show '
        "that the pipeline works, and say nothing of real patients.</div>"
        if generated_data
        else ""
    )
    said = (
        f"<p>{len(shown)} of {len(samples):,} reports, from the least to the most like their "
        "reference (ROUGE-L). Marked: words that both have in this order.</p>"
    )
    body = "".join(_article(one, facts) for one in shown)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{banner}<h1>{escape(title)}</h1>{said}<main>{body}</main>"
        f"<footer><p>{RESEARCH_ONLY.capitalize()}.</p></footer></body></html>\n"
    )


def _article(one: SampleText, facts: Facts | None) -> str:
    generated, reference = _marked(one.generated, one.reference)
    end = "" if one.ended else ", cut at the longest length"
    return (
        f"<article><h2>{escape(one.case_id)}: ROUGE-L {one.rouge_l:.3f}{end}</h2>"
        f"{_fact_line(one, facts)}"
        f'<div class="pair"><section><h3>Generated</h3><p>{generated or "(no word)"}</p></section>'
        f"<section><h3>Reference</h3><p>{reference}</p></section></div></article>"
    )


def _fact_line(one: SampleText, facts: Facts | None) -> str:
    """What is true and what the text names, of each fact."""
    if facts is None or one.case_id not in facts.levels:
        return ""
    told, truth = facts.told(one.generated), facts.levels[one.case_id]
    parts = []
    for fact in (GROUP, *facts.findings):
        if fact in truth and fact in told:
            named = " and ".join(sorted(told[fact])) or "not named"
            mark = "✓" if told[fact] == {truth[fact]} else "✗" if told[fact] else "–"
            parts.append(f"{mark} {fact} {truth[fact]} (named: {named})")
    return f'<p class="facts">{escape("; ".join(parts))}</p>'


def _marked(one: str, other: str) -> tuple[str, str]:
    """Both texts, words in common marked."""
    first, second = word_places(one), word_places(other)
    matcher = SequenceMatcher(None, [w for w, _ in first], [w for w, _ in second], autojunk=False)
    blocks = matcher.get_matching_blocks()
    left = {block.a + n for block in blocks for n in range(block.size)}
    right = {block.b + n for block in blocks for n in range(block.size)}
    return _with_marks(one, first, left), _with_marks(other, second, right)


def _with_marks(text: str, words: Sequence[tuple[str, tuple[int, int]]], chosen: set[int]) -> str:
    parts, at = [], 0
    for number, (_, (start, stop)) in enumerate(words):
        if number in chosen:
            parts += [escape(text[at:start]), f"<mark>{escape(text[start:stop])}</mark>"]
            at = stop
    return "".join([*parts, escape(text[at:])])
