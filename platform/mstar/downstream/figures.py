"""Figures of one study's predictions, for the runs of a sweep: ROC, PR, confusion, calibration, KM.

    for name, figure in study_figures(predictions).items():
        png = figure_png(figure)

Everything is drawn off screen (Agg). Generated data are marked in every figure.
"""

import io
from typing import Any

import numpy as np

from mstar.downstream.curves import (
    Line,
    calibration_points,
    confusion_counts,
    pr_lines,
    risk_split,
    roc_lines,
)
from mstar.downstream.predictions import Predictions
from mstar.downstream.statistics.survival_curves import KaplanMeier, at_risk_table

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
_DPI = 130
_SIZE = (4.6, 4.2)
_FEW_CLASSES = 8  # more do not fit with their numbers


def study_figures(predictions: Predictions) -> dict[str, Any]:
    """Name → figure: what there is to draw for the kind of task."""
    if predictions.facts.kind == "survival":
        return {"km": km_figure(predictions)}
    if predictions.facts.kind != "classification":
        return {}
    return {
        "roc": roc_figure(predictions),
        "pr": pr_figure(predictions),
        "confusion": confusion_figure(predictions),
        "calibration": calibration_figure(predictions),
    }


def figure_png(figure: Any) -> bytes:
    """The figure as PNG; equal figures give equal bytes."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=_DPI, metadata={"Software": None})
    return sink.getvalue()


def roc_figure(predictions: Predictions) -> Any:
    """ROC curves; the band is the range of the models (folds × seeds)."""
    figure, axes = _started(predictions, "ROC")
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=":")
    _draw_lines(axes, roc_lines(predictions), step=False)
    _squared(axes, "false-positive rate", "true-positive rate")
    return figure


def pr_figure(predictions: Predictions) -> Any:
    """Precision over recall; dotted: the share of the class, which a coin would reach."""
    figure, axes = _started(predictions, "precision–recall")
    names, lines = predictions.facts.class_names, pr_lines(predictions)
    for color, line in zip(COLORS * 9, lines, strict=False):
        share = float((predictions.label == names.index(line.label)).mean())
        axes.axhline(share, color=color, linewidth=0.8, linestyle=":")
    _draw_lines(axes, lines, step=True)
    _squared(axes, "recall", "precision")
    return figure


def confusion_figure(predictions: Predictions) -> Any:
    """The confusion matrix: share of the true class as colour, mean count as number."""
    counts, names = confusion_counts(predictions), predictions.facts.class_names
    figure, axes = _started(predictions, "confusion")
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(counts):
        if len(names) <= _FEW_CLASSES:
            color = "white" if share[row, column] > 0.55 else "black"
            text = f"{value:.3g}\n{share[row, column]:.0%}" if total[row, 0] else "–"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure


def calibration_figure(predictions: Predictions) -> Any:
    """The reliability diagram; the area of a point is the number of statements."""
    figure, axes = _started(predictions, "calibration")
    points = calibration_points(predictions)
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=":")
    axes.plot(points.confidence, points.correct, color=COLORS[0], linewidth=1.2)
    area = 12 + 160 * points.count / points.count.max()
    axes.scatter(points.confidence, points.correct, s=area, color=COLORS[0], alpha=0.7)
    _squared(axes, "probability given", "share that came true")
    return figure


def km_figure(predictions: Predictions) -> Any:
    """Survival of low and high risk with the numbers at risk; the cut is named."""
    figure, axes = _started(predictions, "Kaplan–Meier")
    split = risk_split(predictions)
    if split is None:
        axes.text(0.5, 0.5, "the training median risk\nis not stored", ha="center", va="center")
        return figure
    groups = (("low risk", split.low_curve, COLORS[0]), ("high risk", split.high_curve, COLORS[1]))
    drawn = [(name, curve, color) for name, curve, color in groups if curve is not None]
    for name, curve, color in drawn:
        _draw_km(axes, name, curve, color)
    last = float(predictions.time_months.max())
    months = np.linspace(0, last, 5).round().tolist()
    table = at_risk_table([curve for _, curve, _ in drawn], months)
    rows = [
        f"{name}: " + "  ".join(map(str, row.tolist()))
        for (name, _, _), row in zip(drawn, table, strict=True)
    ]
    axes.set_xticks(months)
    axes.set_xlabel("months\nat risk  " + "\n".join(rows), fontsize=8)
    axes.set_ylabel("survival")
    axes.set_ylim(0, 1.02)
    p = split.log_rank.p
    said = "log-rank not defined" if np.isnan(p) else f"log-rank p = {p:.2g}"
    axes.legend(frameon=False, fontsize=8, title=f"{said}\ncut: {split.cut} median")
    return figure


def _started(predictions: Predictions, what: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # only those who draw wait for it
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    facts = predictions.facts
    marks = [facts.protocol] if facts.protocol != "honest" else []
    marks += ["generated data"] if facts.data_source == "generated" else []
    marks += [f"leak: {facts.leaked_patients} patients"] if facts.leaked_patients else []
    title = f"{predictions.task} · {what}\n{predictions.encoder} · {predictions.head}"
    axes.set_title(title + (f" · {', '.join(marks)}" if marks else ""), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_lines(axes: Any, lines: list[Line], *, step: bool) -> None:
    for color, line in zip(COLORS * 9, lines, strict=False):
        style = {"drawstyle": "steps-pre"} if step else {}
        axes.plot(line.x, line.y, color=color, linewidth=1.6, label=line.label, **style)
        if line.low is not None:
            fill = "pre" if step else None
            axes.fill_between(
                line.x, line.low, line.high, color=color, alpha=0.15, linewidth=0, step=fill
            )
    if lines:
        axes.legend(frameon=False, fontsize=8)
    else:
        axes.text(0.5, 0.5, "one class only:\nno curve", ha="center", va="center")


def _draw_km(axes: Any, name: str, curve: KaplanMeier, color: str) -> None:
    times, survival = np.append(0.0, curve.times), np.append(1.0, curve.survival)
    axes.step(times, survival, where="post", color=color, label=name, linewidth=1.6)
    low, high = np.append(1.0, curve.low), np.append(1.0, curve.high)
    axes.fill_between(times, low, high, step="post", color=color, alpha=0.13, linewidth=0)
    ticks = curve.censored > 0
    axes.plot(curve.times[ticks], curve.survival[ticks], "|", color=color, markersize=5)


def _squared(axes: Any, x: str, y: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
