"""Rows of one task against one another: every paired difference, and the article's p.

`compare` of the statistics says what a difference is. Here the resamples of a row are drawn once
and serve all of its comparisons: they are most of the time that a page takes.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from mstar.downstream.statistics.bootstrap import by_fold, percentile_interval, replicates
from mstar.downstream.statistics.compare import (
    BINARY_AUC,
    Difference,
    auc_difference,
    check_same_cases,
    compare,
    p_paper_compat,
)
from mstar.downstream.statistics.evaluated import Evaluated, mean_defined
from mstar.downstream.statistics.metrics import value_of
from mstar.errors import CohortError

Method = tuple[str, str]  # encoder, head
Pair = tuple[Method, Method]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Whom a row is held against: one thing is changed at a time, and it is settled beforehand.

    A row of another encoder is held against the reference encoder with the same head; a row of
    the reference encoder against the reference head.
    """

    encoder: str
    heads: tuple[str, ...]  # in order of preference

    def of(self, method: Method, methods: Collection[Method]) -> Method | None:
        """The reference of a method among those that are there; None for the reference itself."""
        encoder, head = method
        if encoder != self.encoder:
            same_head = (self.encoder, head)
            return same_head if same_head in methods else None
        chosen = next((h for h in self.heads if (encoder, h) in methods), head)
        return None if chosen == head else (encoder, chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Two rows of a group, first − second; the reason where they could not be compared."""

    difference: Difference | None
    reason: str = ""


def compare_all(
    metric: str, parts: Mapping[Method, Sequence[Evaluated]], resamples: int, seed: int
) -> dict[Pair, Compared]:
    """Every two methods, in the order of their names; each one's resamples are drawn once."""
    drawn: dict[Method, np.ndarray] = {}
    pairs: dict[Pair, Compared] = {}
    for first, second in itertools.combinations(sorted(parts), 2):
        try:
            pairs[first, second] = Compared(
                difference=_difference(metric, first, second, parts, drawn, resamples, seed)
            )
        except CohortError as error:
            pairs[first, second] = Compared(difference=None, reason=str(error))
    return pairs


def _difference(
    metric: str,
    first: Method,
    second: Method,
    parts: Mapping[Method, Sequence[Evaluated]],
    drawn: dict[Method, np.ndarray],
    resamples: int,
    seed: int,
) -> Difference:
    """`compare`, but the resamples of a row serve all its comparisons."""
    ours, theirs = parts[first], parts[second]
    analytic = auc_difference(ours, theirs) if metric == BINARY_AUC else None
    if analytic is not None and not math.isnan(analytic.p):
        return compare(metric, ours, theirs)
    check_same_cases(ours, theirs)
    for method in (first, second):
        if method not in drawn:
            drawn[method] = replicates(metric, parts[method], resamples=resamples, seed=seed)
    return drawn_difference(metric, ours, theirs, drawn[first] - drawn[second])


def drawn_difference(
    metric: str,
    first: Sequence[Evaluated],
    second: Sequence[Evaluated],
    drawn: Float[np.ndarray, " resample"],
) -> Difference:
    """`paired_difference` from resampled differences that are there already."""
    low, high = percentile_interval(drawn)
    defined = drawn[~np.isnan(drawn)]
    beyond = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    p = min(1.0, 2 * (1 + beyond) / (len(defined) + 1))
    unique = {part.patients: part for part in first}.values()
    return Difference(
        metric=metric,
        value=_value(metric, first) - _value(metric, second),
        low=low,
        high=high,
        p=math.nan if math.isnan(low) else p,
        smallest_p=2 / (len(defined) + 1),
        method="bootstrap",
        samples=sum(len(part.patients) for part in unique),
        patients=len({patient for part in unique for patient in part.patients}),
    )


def reversed_difference(difference: Difference) -> Difference:
    """The same, the other way round."""
    value, low, high = -difference.value, -difference.high, -difference.low
    return replace(difference, value=value, low=low, high=high)


def _value(metric: str, parts: Sequence[Evaluated]) -> float:
    folds = [np.array([value_of(metric, p) for p in fold]) for fold in by_fold(parts).values()]
    return float(mean_defined(np.array([mean_defined(values) for values in folds])))


def paper_p_values(
    metric: str,
    parts: Mapping[Method, Sequence[Evaluated]],
    reference: Reference,
    resamples: int,
    seed: int,
) -> dict[Method, float]:
    """The paper's p of each method against its reference; for comparison with the article."""
    found = {}
    for method in parts:
        other = reference.of(method, parts)
        if other is None:
            continue
        try:
            found[method] = p_paper_compat(
                metric,
                parts[method],
                parts[other],
                resamples=resamples,
                seed=seed,
            )
        except CohortError:  # the same is told as the reason of the comparison
            found[method] = math.nan
    return found
