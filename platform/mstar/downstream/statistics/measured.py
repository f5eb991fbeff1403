"""Metrics of predictions whose scores are measures of each sample, a column each.

A metric is a function of the measures [sample column] and the weights [resample sample], how often
each sample was drawn: means of columns, and quotients of sums (a corpus BLEU) alike.

    retrieval           columns of RETRIEVAL_COLUMNS: whether a query found its match, for each way
                        and k; NaN-free, for a query that a way lacks is no sample of it (see below)
    report_generation   columns of GENERATION_COLUMNS, in `generation`

`ROWS`: name, kind, whether more is better, function. Add a kind's rows here.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from mstar.downstream.statistics import generation
from mstar.downstream.statistics.evaluated import ratio

Measures = Float[np.ndarray, "sample column"]
Weights = Int[np.ndarray, "resample sample"]
Values = Float[np.ndarray, " resample"]

KS = (1, 5, 10, 50)
WAYS = ("first", "back")
"""Of a retrieval: slide → report (or RNA), and back."""

RETRIEVAL_COLUMNS: tuple[str, ...] = tuple(
    f"{where}recall_at_{k}_{way}" for way in WAYS for where in ("", "within_") for k in KS
) + tuple(f"rank_{way}" for way in WAYS)
"""Whether (ties: with what chance) the match of a sample is among the first k, over all samples
and within its cancer type, both ways; and the place of its match."""


def mean_of(*columns: int) -> Callable[[Measures, Weights], Values]:
    """The mean over samples of the mean of some columns."""

    def function(measures: Measures, weights: Weights) -> Values:
        own = measures[:, list(columns)].mean(axis=1).astype(np.float64)
        drawn = weights.astype(np.float64)
        return ratio(drawn @ own, drawn.sum(axis=1))

    return function


def median_of(*columns: int) -> Callable[[Measures, Weights], Values]:
    """The mean over some columns of the median over samples."""

    def function(measures: Measures, weights: Weights) -> Values:
        medians = np.stack([_medians(measures[:, column], weights) for column in columns])
        mean: Values = medians.mean(axis=0)
        return mean

    return function


def _medians(values: Float[np.ndarray, " sample"], weights: Weights) -> Values:
    """The weighted median of each resample; of two middle values their mean."""
    order = np.argsort(values, kind="stable")
    ranked = values[order].astype(np.float64)
    counts = np.cumsum(weights[:, order], axis=1)
    total = counts[:, -1:]
    low = (counts > (total - 1) // 2).argmax(axis=1)
    high = (counts > total // 2).argmax(axis=1)
    return np.asarray((ranked[low] + ranked[high]) / 2)


def _column(name: str) -> int:
    return RETRIEVAL_COLUMNS.index(name)


def _both(name: str) -> tuple[int, ...]:
    return tuple(_column(f"{name}_{way}") for way in WAYS)


Row = tuple[str, str, bool, Callable[[Measures, Weights], Values]]
_RETRIEVAL: tuple[Row, ...] = (
    ("recall_at_k", "retrieval", True, mean_of(*_both("recall_at_10"))),
    *(
        (f"{where}recall_at_{k}", "retrieval", True, mean_of(*_both(f"{where}recall_at_{k}")))
        for where in ("", "within_")
        for k in KS
    ),
    *(
        (
            f"{where}recall_at_{k}_{way}",
            "retrieval",
            True,
            mean_of(_column(f"{where}recall_at_{k}_{way}")),
        )
        for way in WAYS
        for where in ("", "within_")
        for k in KS
    ),
    ("median_rank", "retrieval", False, median_of(*_both("rank"))),
    *(
        (f"median_rank_{way}", "retrieval", False, median_of(_column(f"rank_{way}")))
        for way in WAYS
    ),
)
ROWS: tuple[Row, ...] = (*_RETRIEVAL, *generation.ROWS)
