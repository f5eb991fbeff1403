"""Kaplan-Meier curves and the log-rank test of two risk groups.

The cut between low and high risk is the median risk of the *training* part: it is fixed before the
test set is seen, as a cut in use would be. The median of the evaluated cohort (`paper-compat`)
splits every test set in halves, whatever the model says of them, and knows the test set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int64
from scipy.stats import chi2, norm

from mstar.downstream.statistics.bootstrap import LEVEL, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class KaplanMeier:
    """A survival curve at every time at which somebody died or was censored.

    survival holds from its time on; before the first it is 1.
    low, high: pointwise, of Greenwood's variance on the log(−log) scale.
    at_risk: just before the time.
    """

    times: Float[np.ndarray, " time"]
    survival: Float[np.ndarray, " time"]
    low: Float[np.ndarray, " time"]
    high: Float[np.ndarray, " time"]
    at_risk: Int64[np.ndarray, " time"]
    died: Int64[np.ndarray, " time"]
    censored: Int64[np.ndarray, " time"]

    @property
    def median(self) -> float:
        """First time at which half or fewer survive; infinite when that is never seen."""
        reached = np.flatnonzero(self.survival <= 0.5 + 1e-12)
        return float(self.times[reached[0]]) if len(reached) else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRank:
    """A log-rank test; statistic and p are NaN where groups or events are missing."""

    statistic: float
    p: float
    observed: tuple[float, ...]
    expected: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskSplit:
    """Low and high risk, their curves and how they differ.

    cut: training (its median risk) or cohort (the evaluated one's, for paper-compat).
    high: which samples are of high risk.
    low_curve, high_curve: None for a group without samples.
    """

    cut: str
    high: Bool[np.ndarray, " sample"]
    low_curve: KaplanMeier | None
    high_curve: KaplanMeier | None
    log_rank: LogRank


def split_by_risk(
    times: Float[np.ndarray, " sample"],
    events: Bool[np.ndarray, " sample"],
    risks: Float[np.ndarray, " sample"],
    training_median: float | Float[np.ndarray, " sample"],
    *,
    protocol: Protocol = "honest",
) -> RiskSplit:
    """Curves of low and high risk, and the log-rank test between them.

    Args:
        times: months.
        events: whether it was an event.
        risks: higher is worse.
        training_median: median risk of the training part; of several folds pooled, for each
            sample that of its own fold's model.
        protocol: paper-compat takes the median of `risks` instead.
    """
    compat = protocol == "paper-compat"
    high = risks > (np.median(risks) if compat else training_median)
    curves = [
        kaplan_meier(times[group], events[group]) if group.any() else None
        for group in (~high, high)
    ]
    return RiskSplit(
        cut="cohort" if compat else "training",
        high=high,
        low_curve=curves[0],
        high_curve=curves[1],
        log_rank=log_rank(times, events, high.astype(np.int64)),
    )


def kaplan_meier(
    times: Float[np.ndarray, " sample"], events: Bool[np.ndarray, " sample"], level: float = LEVEL
) -> KaplanMeier:
    """The product-limit estimate; at equal times deaths come before censorings."""
    assert len(times), "a curve of nobody"
    unique, column = np.unique(times.astype(np.float64), return_inverse=True)
    died = np.bincount(column, events, minlength=len(unique)).astype(np.int64)
    left = np.bincount(column, minlength=len(unique)).astype(np.int64)
    at_risk = left.sum() - np.cumsum(left) + left
    survival = np.cumprod(1.0 - died / at_risk)
    low, high = _log_log_band(survival, died, at_risk, level)
    return KaplanMeier(
        times=unique,
        survival=survival,
        low=low,
        high=high,
        at_risk=at_risk,
        died=died,
        censored=left - died,
    )


def log_rank(
    times: Float[np.ndarray, " sample"],
    events: Bool[np.ndarray, " sample"],
    groups: Int[np.ndarray, " sample"],
) -> LogRank:
    """The log-rank test that all groups have the same hazard.

    At each time of death the deaths of a group are held against its share of those at risk; the
    variance is hypergeometric, so equal times are handled exactly.
    """
    codes, member = np.unique(groups, return_inverse=True)
    moments = np.unique(times[events])
    risk = _counts(times[:, None] >= moments, member, len(codes))
    deaths = _counts((times[:, None] == moments) & events[:, None], member, len(codes))
    n, d = risk.sum(axis=0), deaths.sum(axis=0)
    observed, expected = deaths.sum(axis=1), (risk * d / n).sum(axis=1)
    scale = d * (n - d) / np.maximum(n - 1, 1)
    share = risk / n
    covariance = np.diag((scale * share).sum(axis=1)) - (scale * share) @ share.T
    statistic = _quadratic(observed - expected, covariance)
    return LogRank(
        statistic=statistic,
        p=float(chi2.sf(statistic, len(codes) - 1)) if len(codes) > 1 else float("nan"),
        observed=tuple(observed.tolist()),
        expected=tuple(expected.tolist()),
    )


def at_risk_table(
    curves: Sequence[KaplanMeier], months: Sequence[float]
) -> Int64[np.ndarray, "curve month"]:
    """How many of each curve are still followed at some months: the rows below the figure."""
    rows = []
    for curve in curves:
        followed = np.append(curve.at_risk, 0)
        rows.append(followed[np.searchsorted(curve.times, months)])
    return np.stack(rows)


def _counts(
    chosen: Bool[np.ndarray, "sample moment"], member: Int[np.ndarray, " sample"], groups: int
) -> Float[np.ndarray, "group moment"]:
    is_member = member == np.arange(groups)[:, None]
    counted: np.ndarray = is_member.astype(np.float64) @ chosen.astype(np.float64)
    return counted


def _quadratic(
    excess: Float[np.ndarray, " group"], covariance: Float[np.ndarray, "group group"]
) -> float:
    """zᵀ V⁻¹ z without the last group, which the others determine; NaN where V is nothing."""
    if len(excess) < 2 or not covariance.any():
        return float("nan")
    inverse = np.linalg.pinv(covariance[:-1, :-1])
    return float(excess[:-1] @ inverse @ excess[:-1])


def _log_log_band(
    survival: Float[np.ndarray, " time"],
    died: Int64[np.ndarray, " time"],
    at_risk: Int64[np.ndarray, " time"],
    level: float,
) -> tuple[Float[np.ndarray, " time"], Float[np.ndarray, " time"]]:
    """Greenwood's variance, carried to log(−log S) so that the band stays within 0 and 1."""
    inside = (survival > 0) & (survival < 1)
    left = np.where(inside, at_risk - died, 1)
    variance = np.cumsum(np.where(inside, died / (at_risk * left), 0.0))
    log = np.log(np.where(inside, survival, 0.5))
    half = norm.ppf((1 + level) / 2) * np.sqrt(variance) / log
    low, high = (np.exp(log * np.exp(sign * half)) for sign in (-1, 1))
    return np.where(inside, low, survival), np.where(inside, high, survival)
