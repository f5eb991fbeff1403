"""Rows of one task against one another: every paired difference, and the article's p.

`compare` of the statistics says what a difference is. Here the resamples of a row are drawn once
and serve all of its comparisons: they are most of the time that a page takes.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mstar.downstream.statistics.bootstrap import replicates
from mstar.downstream.statistics.compare import (
    Difference,
    delong_difference,
    drawn_difference,
    p_paper_compat,
)
from mstar.downstream.statistics.evaluated import Evaluated
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
    analytic = delong_difference(metric, ours, theirs)
    if analytic is not None:
        return analytic
    for method in (first, second):
        if method not in drawn:
            drawn[method] = replicates(metric, parts[method], resamples=resamples, seed=seed)
    return drawn_difference(metric, ours, theirs, drawn[first] - drawn[second])


def reversed_difference(difference: Difference) -> Difference:
    """The same, the other way round."""
    value, low, high = -difference.value, -difference.high, -difference.low
    return replace(difference, value=value, low=low, high=high)


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
