"""Metrics of classifications, each over all resamples at once.

`num_classes` is the task's, whatever classes the set at hand holds. Averages over classes are over
those that are present: a class with no sample in the resample, or with nothing else in it, has no
area under a curve. How many were present is reported with every macro average.
"""

import numpy as np
from jaxtyping import Float, Int, Int64

from mstar.downstream.statistics.evaluated import mean_defined, ratio
from mstar.downstream.statistics.ranking import auc, average_precision

POSITIVE = 1  # of two classes


def macro_auc(
    labels: Int[np.ndarray, " sample"],
    scores: Float[np.ndarray, "sample class"],
    weights: Int[np.ndarray, "resample sample"],
) -> Float[np.ndarray, " resample"]:
    """One-vs-rest AUC, averaged over the classes present; of two classes, the positive one's."""
    return mean_defined(class_aucs(labels, scores, weights))


def weighted_auc(
    labels: Int[np.ndarray, " sample"],
    scores: Float[np.ndarray, "sample class"],
    weights: Int[np.ndarray, "resample sample"],
) -> Float[np.ndarray, " resample"]:
    """One-vs-rest AUC, averaged over the classes present by how frequent they are."""
    areas = class_aucs(labels, scores, weights)
    if len(areas) == 1:
        only: Float[np.ndarray, " resample"] = areas[0]
        return only
    shares = np.where(np.isnan(areas), 0.0, _class_counts(labels, scores.shape[1], weights))
    return ratio((np.where(np.isnan(areas), 0.0, areas) * shares).sum(axis=0), shares.sum(axis=0))


def macro_average_precision(
    labels: Int[np.ndarray, " sample"],
    scores: Float[np.ndarray, "sample class"],
    weights: Int[np.ndarray, "resample sample"],
) -> Float[np.ndarray, " resample"]:
    """Average precision, averaged over the classes present; of two classes, the positive one's."""
    precisions = [
        average_precision(labels == code, scores[:, code], weights)
        for code in _scored_classes(scores.shape[1])
    ]
    return mean_defined(np.stack(precisions))


def class_aucs(
    labels: Int[np.ndarray, " sample"],
    scores: Float[np.ndarray, "sample class"],
    weights: Int[np.ndarray, "resample sample"],
) -> Float[np.ndarray, "scored resample"]:
    """The AUC of each class against the rest (one row for two classes); NaN where it is absent."""
    return np.stack(
        [auc(labels == code, scores[:, code], weights) for code in _scored_classes(scores.shape[1])]
    )


def classes_present(
    labels: Int[np.ndarray, " sample"],
    num_classes: int,
    weights: Int[np.ndarray, "resample sample"],
) -> Int64[np.ndarray, " resample"]:
    """How many classes each resample holds."""
    counts: Int64[np.ndarray, " resample"]
    counts = (_class_counts(labels, num_classes, weights) > 0).sum(axis=0)
    return counts


def accuracy(
    confused: Float[np.ndarray, "resample true predicted"],
) -> Float[np.ndarray, " resample"]:
    """Share of samples whose most probable class is the true one."""
    return ratio(np.trace(confused, axis1=1, axis2=2), confused.sum(axis=(1, 2)))


def balanced_accuracy(
    confused: Float[np.ndarray, "resample true predicted"],
) -> Float[np.ndarray, " resample"]:
    """Recall, averaged over the classes present."""
    recall = ratio(np.diagonal(confused, axis1=1, axis2=2), confused.sum(axis=2))
    return mean_defined(recall.T)


def weighted_f1(
    confused: Float[np.ndarray, "resample true predicted"],
) -> Float[np.ndarray, " resample"]:
    """F1 of each class, averaged by how frequent the classes are."""
    true, predicted = confused.sum(axis=2), confused.sum(axis=1)
    f1 = ratio(2 * np.diagonal(confused, axis1=1, axis2=2), true + predicted)
    return ratio((np.nan_to_num(f1) * true).sum(axis=1), true.sum(axis=1))


def quadratic_kappa(
    confused: Float[np.ndarray, "resample true predicted"],
) -> Float[np.ndarray, " resample"]:
    """Cohen's kappa of ordered classes, disagreement weighted by its square.

    The distance between classes is that of their codes, also where a class between them is absent.
    NaN when all labels and all predictions are one class: agreement by chance is then certain.
    """
    codes = np.arange(confused.shape[1])
    penalty = (codes[:, None] - codes[None, :]).astype(np.float64) ** 2
    chance = np.einsum("rt,rp,tp->r", confused.sum(axis=2), confused.sum(axis=1), penalty)
    observed = np.einsum("rtp,tp->r", confused, penalty) * confused.sum(axis=(1, 2))
    return 1.0 - ratio(observed, chance)


def confusion(
    labels: Int[np.ndarray, " sample"],
    predicted: Int[np.ndarray, " sample"],
    num_classes: int,
    weights: Int[np.ndarray, "resample sample"],
) -> Float[np.ndarray, "resample true predicted"]:
    """The confusion matrix of every resample."""
    cells = labels * num_classes + predicted
    used, column = np.unique(cells, return_inverse=True)
    counted = weights.astype(np.float64) @ np.eye(len(used))[column]
    matrix = np.zeros((len(weights), num_classes * num_classes))
    matrix[:, used] = counted
    return matrix.reshape(-1, num_classes, num_classes)


def _scored_classes(num_classes: int) -> list[int]:
    """Of two classes one curve says it all; 1 − p would round to ties that p has not."""
    assert num_classes > 1, "a classification has two classes or more"
    return [POSITIVE] if num_classes == POSITIVE + 1 else list(range(num_classes))


def _class_counts(
    labels: Int[np.ndarray, " sample"],
    num_classes: int,
    weights: Int[np.ndarray, "resample sample"],
) -> Float[np.ndarray, "class resample"]:
    is_class = labels[:, None] == np.arange(num_classes)[None, :]
    counts: np.ndarray = (weights.astype(np.float64) @ is_class.astype(np.float64)).T
    return counts
