"""The curves of stored predictions, as points: ROC, precision-recall, calibration, confusion, KM.

Both the page (`results/`) and the figures of a sweep's runs (`figures.py`) draw these. Several
models (folds × seeds) are averaged point by point, with the range between them; pooling the scores
of different models would mix scales that have nothing to do with one another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from mstar.downstream.prediction_parts import evaluated_parts
from mstar.downstream.predictions import Predictions
from mstar.downstream.statistics.calibration import Reliability, reliability
from mstar.downstream.statistics.classification import POSITIVE
from mstar.downstream.statistics.evaluated import Evaluated
from mstar.downstream.statistics.survival_curves import RiskSplit, split_by_risk

GRID = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve.

    label: the class it is of.
    y: mean over the models; low and high: their range, None for one model.
    """

    label: str
    x: Float[np.ndarray, " point"]
    y: Float[np.ndarray, " point"]
    low: Float[np.ndarray, " point"] | None = None
    high: Float[np.ndarray, " point"] | None = None


Points = tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]
Heights = Float[np.ndarray, " grid"]
Scored = Callable[[Bool[np.ndarray, " sample"], Float[np.ndarray, " sample"]], Points]


def roc_lines(predictions: Predictions) -> list[Line]:
    """The ROC curve of each class against the rest (of two classes, the positive one's).

    Classes without a sample, or with nothing else beside them, have no curve.
    """
    return _lines(predictions, roc_points, _at_rate)


def pr_lines(predictions: Predictions) -> list[Line]:
    """Precision over recall of each class; classes without a sample have no curve."""
    return _lines(predictions, pr_points, _at_recall)


def roc_points(
    positive: Bool[np.ndarray, " sample"], scores: Float[np.ndarray, " sample"]
) -> Points:
    """False- and true-positive rate at every threshold; equal scores are one threshold."""
    found, others = _counts(positive, scores)
    return np.append(0.0, others / others[-1]), np.append(0.0, found / found[-1])


def pr_points(
    positive: Bool[np.ndarray, " sample"], scores: Float[np.ndarray, " sample"]
) -> Points:
    """Recall and precision at every threshold, from the highest score down."""
    found, others = _counts(positive, scores)
    precision = found / (found + others)
    return np.append(0.0, found / found[-1]), np.append(precision[0], precision)


def confusion_counts(predictions: Predictions) -> Float[np.ndarray, "true predicted"]:
    """How many samples of each class were called what, a mean over the models that saw them."""
    parts = evaluated_parts(predictions)
    size = len(predictions.facts.class_names)
    total = np.zeros((size, size))
    for part in parts:
        np.add.at(total, (part.class_labels, part.predicted), 1.0)
    samples = len(set(zip(predictions.case_id, predictions.slides, strict=True)))
    counts: Float[np.ndarray, "true predicted"] = total * samples / total.sum()
    return counts


def calibration_points(predictions: Predictions) -> Reliability:
    """How often what was said with some probability came true, over all models' statements.

    Of two classes the positive one's probability, else that of the class that was called.
    """
    parts = evaluated_parts(predictions)
    said = [_statement(part) for part in parts]
    return reliability(
        np.concatenate([correct for correct, _ in said]),
        np.concatenate([confidence for _, confidence in said]),
        bins=10,
    )


def risk_split(predictions: Predictions) -> RiskSplit | None:
    """Low and high risk at the median risk of the training part; None where that is not stored.

    Each case counts once: its risk above the training median of each model that scored it,
    averaged over those models. Paper-compat predictions are cut at the cohort's own median.
    """
    facts, compat = predictions.facts, predictions.facts.protocol != "honest"
    above: dict[tuple[str, tuple[str, ...]], list[float]] = {}
    first: dict[tuple[str, tuple[str, ...]], int] = {}
    for row in range(len(predictions)):
        median = facts.median_risk.get(f"{predictions.fold[row]}/{predictions.seed[row]}")
        if median is None and not compat:
            return None
        sample = (predictions.case_id[row], predictions.slides[row])
        above.setdefault(sample, []).append(float(predictions.scores[row, 0]) - (median or 0.0))
        first.setdefault(sample, row)
    rows = np.asarray(list(first.values()))
    return split_by_risk(
        predictions.time_months[rows],
        predictions.event[rows],
        np.asarray([float(np.mean(values)) for values in above.values()]),
        0.0,
        protocol="paper-compat" if compat else "honest",
    )


def thinned(line: Line, most: int = 120) -> Line:
    """The curve with fewer points where it has very many; its ends stay."""
    if len(line.x) <= most:
        return line
    keep = np.unique(np.linspace(0, len(line.x) - 1, most).round().astype(int))
    low, high = (None if band is None else band[keep] for band in (line.low, line.high))
    return Line(label=line.label, x=line.x[keep], y=line.y[keep], low=low, high=high)


def _lines(
    predictions: Predictions,
    points: Scored,
    on_grid: Callable[[Points], Heights],
) -> list[Line]:
    names = predictions.facts.class_names
    parts = evaluated_parts(predictions)
    lines = []
    for code in [POSITIVE] if len(names) == 2 else range(len(names)):
        curves = [
            points(positive, part.scores[:, code].astype(np.float64))
            for part in parts
            if (positive := part.class_labels == code).any() and not positive.all()
        ]
        if curves:
            lines.append(_averaged(names[code], curves, on_grid))
    return lines


def _averaged(
    label: str,
    curves: Sequence[Points],
    on_grid: Callable[[Points], Heights],
) -> Line:
    if len(curves) == 1:
        return Line(label=label, x=curves[0][0], y=curves[0][1])
    heights = np.stack([on_grid(curve) for curve in curves])
    return Line(
        label=label,
        x=GRID,
        y=heights.mean(axis=0),
        low=heights.min(axis=0),
        high=heights.max(axis=0),
    )


def _at_rate(curve: Points) -> Heights:
    heights: Heights = np.interp(GRID, *curve)
    return heights


def _at_recall(curve: Points) -> Heights:
    """The precision where a recall is first reached; between thresholds it is not linear."""
    recall, precision = curve
    reached: Heights = precision[np.searchsorted(recall, GRID - 1e-12)]
    return reached


def _counts(positive: Bool[np.ndarray, " sample"], scores: Float[np.ndarray, " sample"]) -> Points:
    """Positives and others at or above each threshold, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    found = np.cumsum(positive[order])[last].astype(np.float64)
    return found, last + 1.0 - found


def _statement(part: Evaluated) -> tuple[np.ndarray, np.ndarray]:
    if part.num_classes == 2:
        return (part.class_labels == POSITIVE).astype(np.int64), part.scores[:, POSITIVE]
    return (part.predicted == part.class_labels).astype(np.int64), part.scores.max(axis=1)
