"""Areas under curves for all resamples at once: one sort of the scores, then running sums.

A resample is a row of weights, so no resample is ever sorted or copied. Equal scores form one
group: within it a pair counts one half (AUC), and a threshold falls between groups only (average
precision). Sums of integer weights are exact in float64, so the order of samples cannot matter.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, Int64, Real

from mstar.downstream.statistics.evaluated import blocks, ratio


def auc(
    positive: Bool[np.ndarray, " sample"],
    scores: Float[np.ndarray, " sample"],
    weights: Int[np.ndarray, "resample sample"],
) -> Float[np.ndarray, " resample"]:
    """Area under the ROC curve; NaN in a resample that lacks positives or negatives."""
    order, starts = tie_groups(scores)
    is_positive = positive[order]
    values = np.empty(len(weights))
    for rows in blocks(*weights.shape):
        sorted_weights = weights[rows][:, order].astype(np.float64)
        ours = grouped(sorted_weights * is_positive, starts)
        others = grouped(sorted_weights * ~is_positive, starts)
        values[rows] = area(ours, others)
    return values


def area(
    positives: Float[np.ndarray, "resample group"], negatives: Float[np.ndarray, "resample group"]
) -> Float[np.ndarray, " resample"]:
    """AUC from the weight of positives and negatives in groups of rising score."""
    below = np.cumsum(negatives, axis=1)
    total = below[:, -1] * positives.sum(axis=1)
    below -= negatives / 2
    return ratio(np.einsum("rg,rg->r", positives, below), total)


def average_precision(
    positive: Bool[np.ndarray, " sample"],
    scores: Float[np.ndarray, " sample"],
    weights: Int[np.ndarray, "resample sample"],
) -> Float[np.ndarray, " resample"]:
    """Σ (recall step × precision) from the highest score down; NaN without positives."""
    order, starts = tie_groups(-scores)
    is_positive = positive[order]
    values = np.empty(len(weights))
    for rows in blocks(*weights.shape):
        sorted_weights = weights[rows][:, order].astype(np.float64)
        found = grouped(sorted_weights * is_positive, starts)
        precision = ratio(
            np.cumsum(found, axis=1), np.cumsum(grouped(sorted_weights, starts), axis=1)
        )
        area_under = np.where(found > 0, found * precision, 0.0).sum(axis=1)
        values[rows] = ratio(area_under, found.sum(axis=1))
    return values


def tie_groups(
    scores: Float[np.ndarray, " sample"], tolerance: float = 0.0
) -> tuple[Int64[np.ndarray, " sample"], Int64[np.ndarray, " group"]]:
    """The rising order of the scores, and where in it each group of equal scores starts.

    tolerance: neighbours that differ by no more are equal.
    """
    order = np.argsort(scores, kind="stable")
    new = np.diff(scores[order].astype(np.float64)) > tolerance
    return order, np.flatnonzero(np.concatenate([[True], new]))


def grouped(
    values: Real[np.ndarray, "resample sample"], starts: Int64[np.ndarray, " group"]
) -> Real[np.ndarray, "resample group"]:
    """Sums over the groups, of values in the order of `tie_groups`."""
    if len(starts) == values.shape[1]:  # no ties: nothing to add up
        return values
    sums: np.ndarray = np.add.reduceat(values, starts, axis=1)
    return sums
