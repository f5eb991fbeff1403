"""Cumulative/dynamic AUC of a risk over time, censoring undone by inverse-probability weights.

At a time t, cases had the event by t and controls are still followed after t. A case counts
1 / G(its time), G being the Kaplan-Meier estimate of *not yet censored* (Uno 2007, Hung & Chiang
2010). The summary is the average over t, weighted by the drop of the survival curve. Beyond the
longest follow-up of the training part the model was never told anything, so nothing is judged
there: later times are cut to it, and later events count as censored.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mstar.downstream.statistics.evaluated import blocks, ratio
from mstar.downstream.statistics.ranking import area, grouped, tie_groups

GRID = tuple(tenth / 10 for tenth in range(1, 10))  # quantiles of the event times
TIED_RISK = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeAuc:
    """AUC at each time of a grid, and their mean, one row a resample; NaN where undefined."""

    months: Float[np.ndarray, " time"]
    at_time: Float[np.ndarray, "resample time"]
    mean: Float[np.ndarray, " resample"]


def time_dependent_auc(
    times: Float[np.ndarray, " sample"],
    events: Bool[np.ndarray, " sample"],
    risks: Float[np.ndarray, " sample"],
    weights: Int[np.ndarray, "resample sample"],
    *,
    follow_up: float = np.inf,
    months: Float[np.ndarray, " time"] | None = None,
    training: tuple[Float[np.ndarray, " train"], Bool[np.ndarray, " train"]] | None = None,
) -> TimeAuc:
    """AUC over time, of times cut to `follow_up`.

    Args:
        times: months of each sample.
        events: whether it was an event.
        risks: higher is worse.
        weights: one row a resample.
        follow_up: longest time of the training part.
        months: the grid; by default nine quantiles of the event times that have controls.
        training: times and events that G is estimated from; by default the evaluated resample.
    """
    cut, died = np.minimum(times, follow_up), events & (times <= follow_up)
    grid = default_months(cut, died) if months is None else months
    assert not len(grid) or grid.max() < cut.max(), "a time without controls has no AUC"
    values, mean = np.full((len(weights), len(grid)), np.nan), np.full(len(weights), np.nan)
    source = training or (cut, died)
    for rows in blocks(*weights.shape) if len(grid) else ():
        drawn = weights[rows].astype(np.float64)
        known = np.ones((1, len(source[0]))) if training else drawn
        uncensored = step_curve(source[0], source[1], known, at=cut, reverse=True)
        values[rows] = _at_times(cut, died, risks, drawn, ratio(drawn, uncensored), grid)
        mean[rows] = _averaged(values[rows], step_curve(cut, died, drawn, at=grid))
    return TimeAuc(months=grid, at_time=values, mean=mean)


def default_months(
    times: Float[np.ndarray, " sample"], events: Bool[np.ndarray, " sample"]
) -> Float[np.ndarray, " time"]:
    """Times at which events have happened and somebody is still followed."""
    if not events.any():
        return np.empty(0)
    grid = np.unique(np.quantile(times[events], GRID, method="lower"))
    held: Float[np.ndarray, " time"] = grid[grid < times.max()].astype(np.float64)
    return held


def step_curve(
    times: Float[np.ndarray, " sample"],
    events: Bool[np.ndarray, " sample"],
    weights: Float[np.ndarray, "resample sample"],
    *,
    at: Float[np.ndarray, " time"],
    reverse: bool = False,
) -> Float[np.ndarray, "resample time"]:
    """Kaplan-Meier estimates of all resamples, read at some times.

    reverse: of the censoring instead; events at the same time come first, so they are no longer
        at risk of being censored.
    """
    order, starts = tie_groups(times)
    sorted_weights = weights[:, order]
    left = grouped(sorted_weights * events[order], starts)
    censored = grouped(sorted_weights * ~events[order], starts)
    leaving = left + censored
    at_risk = leaving.sum(axis=1, keepdims=True) - np.cumsum(leaving, axis=1) + leaving
    hazard = ratio(censored, at_risk - left) if reverse else ratio(left, at_risk)
    curve = np.cumprod(1.0 - np.nan_to_num(hazard), axis=1)
    column = np.searchsorted(times[order][starts], at, side="right")
    return np.concatenate([np.ones((len(curve), 1)), curve], axis=1)[:, column]


def _at_times(
    times: Float[np.ndarray, " sample"],
    events: Bool[np.ndarray, " sample"],
    risks: Float[np.ndarray, " sample"],
    weights: Float[np.ndarray, "resample sample"],
    case_weights: Float[np.ndarray, "resample sample"],
    grid: Float[np.ndarray, " time"],
) -> Float[np.ndarray, "resample time"]:
    order, starts = tie_groups(risks, TIED_RISK)
    # where G is 0 nobody is followed afterwards: such a case never has controls
    cases, controls = np.nan_to_num(case_weights)[:, order], weights[:, order]
    times, events = times[order], events[order]
    columns = [
        area(
            grouped(cases * (events & (times <= month)), starts),
            grouped(controls * (times > month), starts),
        )
        for month in grid
    ]
    return np.stack(columns, axis=1)


def _averaged(
    values: Float[np.ndarray, "resample time"], survival: Float[np.ndarray, "resample time"]
) -> Float[np.ndarray, " resample"]:
    """Mean over time, weighted by the share of events since the time before."""
    drops = -np.diff(survival, axis=1, prepend=1.0)
    drops = np.where(np.isnan(values), 0.0, drops)
    return ratio((np.nan_to_num(values) * drops).sum(axis=1), drops.sum(axis=1))
