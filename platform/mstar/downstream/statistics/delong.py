"""DeLong's comparison of two AUCs on the same cases, with Obuchowski's variance for clusters.

The AUC is a mean of placements: for a positive the share of negatives below it, for a negative the
share of positives above it. Its variance is that of the placements, summed up by patient because
the samples of one patient are not independent (Obuchowski 1997); with one sample a patient this is
DeLong, DeLong & Clarke-Pearson 1988 exactly. Placements are linear, so those of the difference of
two models are differences, and those of a mean over seeds are means.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.stats import norm, rankdata


@dataclass(frozen=True, slots=True, kw_only=True)
class AucDifference:
    """A difference of AUCs, its standard error, and the two-sided p of no difference."""

    value: float
    std_error: float
    p: float


def delong(
    positive: Bool[np.ndarray, " sample"],
    first: Sequence[Float[np.ndarray, " sample"]],
    second: Sequence[Float[np.ndarray, " sample"]],
    patients: Sequence[str],
) -> AucDifference:
    """Compare the mean AUC of the seeds of a first model with that of a second.

    Args:
        positive: which samples are of the positive class; both kinds must be there.
        first: scores of the first model, one array a seed.
        second: scores of the second model, in the same order of samples.
        patients: of each sample.
    """
    ours, theirs = placements(positive, first), placements(positive, second)
    value = float((ours - theirs)[positive].mean())
    variance = cluster_variance(positive, ours - theirs, patients)
    return AucDifference(
        value=value, std_error=float(np.sqrt(variance)), p=two_sided(value, variance)
    )


def two_sided(value: float, variance: float) -> float:
    """The p of a normal difference; 1 for no difference, NaN for one without any variance."""
    if value == 0.0:
        return 1.0
    return float(2 * norm.sf(abs(value) / np.sqrt(variance))) if variance > 0 else float("nan")


def placements(
    positive: Bool[np.ndarray, " sample"], seeds: Sequence[Float[np.ndarray, " sample"]]
) -> Float[np.ndarray, " sample"]:
    """Each sample's share of the other kind that it is on the right side of; mean over seeds."""
    each = np.stack([_placement(positive, scores) for scores in seeds])
    mean: Float[np.ndarray, " sample"] = each.mean(axis=0)
    return mean


def _placement(
    positive: Bool[np.ndarray, " sample"], scores: Float[np.ndarray, " sample"]
) -> Float[np.ndarray, " sample"]:
    """From midranks among all and among one's own kind (Sun & Xu 2014)."""
    among_all, num_positive = rankdata(scores), int(positive.sum())
    num_negative = len(scores) - num_positive
    share = np.empty(len(scores))
    share[positive] = (among_all[positive] - rankdata(scores[positive])) / num_negative
    above = num_positive - (among_all[~positive] - rankdata(scores[~positive]))
    share[~positive] = above / num_positive
    return share


def cluster_variance(
    positive: Bool[np.ndarray, " sample"],
    placed: Float[np.ndarray, " sample"],
    patients: Sequence[str],
) -> float:
    """The variance of the mean placement, of an AUC or a difference of AUCs."""
    _, who = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    mean = placed[positive].mean()
    ours, num_ours = _sums(positive, placed - mean, who)
    others, num_others = _sums(~positive, placed - mean, who)
    both = len(ours) / max(1, len(ours) - 1) * (ours @ others)
    total = _spread(ours, num_ours) / positive.sum() ** 2
    total += _spread(others, num_others) / (~positive).sum() ** 2
    total += 2 * both / (positive.sum() * (~positive).sum())
    return max(0.0, float(total))


def _sums(
    chosen: Bool[np.ndarray, " sample"],
    deviation: Float[np.ndarray, " sample"],
    who: Int64[np.ndarray, " sample"],
) -> tuple[Float[np.ndarray, " patient"], int]:
    """Deviations of the chosen samples summed by patient; how many patients have any."""
    patients = int(who.max()) + 1
    sums = np.bincount(who[chosen], deviation[chosen], minlength=patients)
    return sums, len(np.unique(who[chosen]))


def _spread(sums: Float[np.ndarray, " patient"], number: int) -> float:
    return float(number / max(1, number - 1) * (sums @ sums))
