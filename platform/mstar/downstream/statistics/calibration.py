"""Do the probabilities mean what they say? Brier score, expected calibration error, reliability."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int64

from mstar.downstream.statistics.evaluated import ratio

BINS = 15  # of equal width, the number that Guo et al. 2017 report


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """One row a bin that holds samples.

    confidence: mean probability that the model gave.
    correct: share of samples for which it was right.
    count: samples in the bin.
    """

    confidence: Float[np.ndarray, " bin"]
    correct: Float[np.ndarray, " bin"]
    count: Int64[np.ndarray, " bin"]


def brier(
    labels: Int[np.ndarray, " sample"],
    scores: Float[np.ndarray, "sample class"],
    weights: Int[np.ndarray, "resample sample"],
) -> Float[np.ndarray, " resample"]:
    """Mean squared error of the probabilities; of two classes, of the positive one's.

    For three classes and more it is the sum over classes (0 to 2), as Brier wrote it.
    """
    truth = np.eye(scores.shape[1])[labels]
    squared = ((scores.astype(np.float64) - truth) ** 2).sum(axis=1)
    if scores.shape[1] == 2:
        squared = (scores[:, 1].astype(np.float64) - labels) ** 2
    return ratio(weights.astype(np.float64) @ squared, weights.sum(axis=1).astype(np.float64))


def expected_calibration_error(
    labels: Int[np.ndarray, " sample"],
    scores: Float[np.ndarray, "sample class"],
    weights: Int[np.ndarray, "resample sample"],
    bins: int = BINS,
) -> Float[np.ndarray, " resample"]:
    """|confidence − accuracy| of the predicted class, averaged over bins of confidence.

    It is biased upwards in small sets, more so in resamples of them: compare models by it, and
    read its interval with care.
    """
    confidence = scores.max(axis=1).astype(np.float64)
    correct = (scores.argmax(axis=1) == labels).astype(np.float64)
    in_bin = np.eye(bins)[bin_of(confidence, bins)]
    gaps = weights.astype(np.float64) @ (in_bin * (confidence - correct)[:, None])
    return ratio(np.abs(gaps).sum(axis=1), weights.sum(axis=1).astype(np.float64))


def reliability(
    correct: Int[np.ndarray, " sample"],
    confidence: Float[np.ndarray, " sample"],
    bins: int = BINS,
) -> Reliability:
    """The points of a reliability diagram; bins that hold nothing are left out.

    Args:
        correct: 1 where the event that the probability is about came true, else 0.
        confidence: its probability.
        bins: of equal width.
    """
    column = bin_of(confidence.astype(np.float64), bins)
    count = np.bincount(column, minlength=bins)
    held = count > 0
    return Reliability(
        confidence=np.bincount(column, confidence, minlength=bins)[held] / count[held],
        correct=np.bincount(column, correct, minlength=bins)[held] / count[held],
        count=count[held].astype(np.int64),
    )


def bin_of(confidence: Float[np.ndarray, " sample"], bins: int) -> Int64[np.ndarray, " sample"]:
    """The bin of each probability; bins are closed on the right, the first on both sides."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    return np.searchsorted(edges[1:-1], confidence).astype(np.int64)
