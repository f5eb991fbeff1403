"""The metrics, by name: what they are for, which way is better, and how to compute them.

value_of("macro_auc", evaluated)                    the value of a set as it is
METRICS["macro_auc"].function(evaluated, weights)   one value a resample, NaN where undefined
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mstar.downstream.statistics import calibration, classification, concordance, time_auc
from mstar.downstream.statistics import measured as measures
from mstar.downstream.statistics.evaluated import Evaluated, once
from mstar.errors import ConfigError

Weights = Int[np.ndarray, "resample sample"]
Values = Float[np.ndarray, " resample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """One metric.

    kind: of the predictions: classification, survival, retrieval, report_generation.
    higher_is_better: whether more is better.
    function: a value for each row of weights.
    """

    name: str
    kind: str
    higher_is_better: bool
    function: Callable[[Evaluated, Weights], Values]


def value_of(metric: str, evaluated: Evaluated) -> float:
    """A metric of the set as it is; NaN where it is undefined there."""
    return float(metric_spec(metric).function(evaluated, once(len(evaluated.patients)))[0])


def metric_spec(metric: str) -> MetricSpec:
    """A metric by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if metric not in METRICS:
        raise ConfigError(f"No metric {metric!r}; expected one of {', '.join(METRICS)}.")
    return METRICS[metric]


def _of_scores(
    function: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
) -> Callable[[Evaluated, Weights], Values]:
    return lambda e, weights: function(e.class_labels, e.scores, weights)


def _of_confusion(
    function: Callable[[np.ndarray], np.ndarray],
) -> Callable[[Evaluated, Weights], Values]:
    return lambda e, weights: function(
        classification.confusion(e.class_labels, e.predicted, e.num_classes, weights)
    )


def _of_measures(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Callable[[Evaluated, Weights], Values]:
    return lambda e, weights: function(e.scores, weights)


def _c_index(evaluated: Evaluated, weights: Weights) -> Values:
    return concordance.c_index(*evaluated.outcome, evaluated.risks, weights)


def _time_dependent_auc(evaluated: Evaluated, weights: Weights) -> Values:
    return time_auc.time_dependent_auc(
        *evaluated.outcome, evaluated.risks, weights, follow_up=evaluated.follow_up
    ).mean


METRICS: dict[str, MetricSpec] = {
    name: MetricSpec(name=name, kind=kind, higher_is_better=higher, function=function)
    for name, kind, higher, function in (
        ("macro_auc", "classification", True, _of_scores(classification.macro_auc)),
        ("weighted_auc", "classification", True, _of_scores(classification.weighted_auc)),
        (
            "average_precision",
            "classification",
            True,
            _of_scores(classification.macro_average_precision),
        ),
        ("accuracy", "classification", True, _of_confusion(classification.accuracy)),
        (
            "balanced_accuracy",
            "classification",
            True,
            _of_confusion(classification.balanced_accuracy),
        ),
        ("weighted_f1", "classification", True, _of_confusion(classification.weighted_f1)),
        ("quadratic_kappa", "classification", True, _of_confusion(classification.quadratic_kappa)),
        ("brier", "classification", False, _of_scores(calibration.brier)),
        (
            "calibration_error",
            "classification",
            False,
            _of_scores(calibration.expected_calibration_error),
        ),
        ("c_index", "survival", True, _c_index),
        ("time_dependent_auc", "survival", True, _time_dependent_auc),
        *(
            (name, kind, higher, _of_measures(function))
            for name, kind, higher, function in measures.ROWS
        ),
    )
}
