"""What a comparison may claim: stars, a winner, or the reason why there is neither.

    verdict(compare("macro_auc", ours, theirs), p_adjusted=holm(all_p)[row])

Stars and winners come from the adjusted p of the honest comparison only. `p_paper_compat` is a
column, and no argument here.
"""

import math
from dataclasses import dataclass
from typing import Literal

from mstar.downstream.statistics.compare import Difference
from mstar.downstream.statistics.metrics import metric_spec

FEWEST_CASES = 30
LEVELS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What may be said of a difference.

    stars: of the adjusted p.
    winner: first, second, or none.
    reason: why there is no winner; empty where there is one.
    """

    stars: str
    winner: Literal["first", "second", "none"]
    reason: str


def verdict(difference: Difference, *, p_adjusted: float) -> Verdict:
    """Stars and winner of a comparison.

    Args:
        difference: first model − second.
        p_adjusted: its p after `holm` over all tasks compared.
    """
    reason = too_few(difference.patients)
    if not reason and math.isnan(p_adjusted):
        reason = "the metric is undefined here"
    if not reason and p_adjusted >= LEVELS[-1][0]:
        reason = f"p = {p_adjusted:.3f} after Holm"
    if reason:
        return Verdict(stars="", winner="none", reason=reason)
    first_higher = difference.value > 0
    higher_wins = metric_spec(difference.metric).higher_is_better
    winner: Literal["first", "second"] = "first" if first_higher == higher_wins else "second"
    return Verdict(stars=stars(p_adjusted, difference.patients), winner=winner, reason="")


def stars(p_adjusted: float, cases: int) -> str:
    """Up to three stars; none for an undefined p or fewer than 30 test cases."""
    if too_few(cases):
        return ""
    return next((mark for level, mark in LEVELS if p_adjusted < level), "")


def too_few(cases: int) -> str:
    """Why so few test cases (patients) decide nothing; empty when there are enough."""
    if cases >= FEWEST_CASES:
        return ""
    return f"{cases} test cases, fewer than {FEWEST_CASES}: no stars, no winner"
