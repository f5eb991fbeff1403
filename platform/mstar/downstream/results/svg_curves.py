"""The curves of one study as drawings: ROC, precision-recall, confusion, calibration, KM."""

import math

import numpy as np

from mstar.downstream.curves import (
    Line,
    calibration_points,
    confusion_counts,
    pr_lines,
    risk_split,
    roc_lines,
    thinned,
)
from mstar.downstream.predictions import Predictions
from mstar.downstream.results.svg import NUM_COLORS, Frame, line, marker, tag, text, ticks, words
from mstar.downstream.results.text_tables import p_text
from mstar.downstream.statistics.survival_curves import KaplanMeier, at_risk_table

_UNIT = (0, 0.25, 0.5, 0.75, 1)
_SQUARE = Frame(width=250, height=240)
_MOST_NAMED = 8  # classes with a legend or numbers in their cells
_MIDDLE = 0.55


def study_drawings(predictions: Predictions) -> list[tuple[str, str]]:
    """Caption and drawing of everything that the kind of task has."""
    if predictions.facts.kind == "survival":
        return [draw_km(predictions)]
    if predictions.facts.kind != "classification":  # measures of samples: numbers say it all
        return []
    return [
        draw_roc(predictions),
        draw_pr(predictions),
        draw_confusion(predictions),
        draw_calibration(predictions),
    ]


def draw_roc(predictions: Predictions) -> tuple[str, str]:
    """ROC, one line a class."""
    frame, name = _SQUARE, predictions.key
    chance = line(frame.x(0), frame.y(0), frame.x(1), frame.y(1), "chance")
    axes = frame.axes("false-positive rate", "true-positive rate", _UNIT, _UNIT)
    drawn = _lines(frame, roc_lines(predictions), step=False)
    return "ROC", frame.svg(f"ROC curve of {name}", axes, chance, drawn)


def draw_pr(predictions: Predictions) -> tuple[str, str]:
    """Precision over recall, one line a class; dotted is the share of the class."""
    frame, names = _SQUARE, predictions.facts.class_names
    lines = pr_lines(predictions)
    shares = [float((predictions.label == names.index(one.label)).mean()) for one in lines]
    chance = "".join(
        line(frame.x(0), frame.y(share), frame.x(1), frame.y(share), "chance") for share in shares
    )
    axes = frame.axes("recall", "precision", _UNIT, _UNIT)
    drawn = _lines(frame, lines, step=True)
    title = f"precision-recall curve of {predictions.key}"
    return "precision–recall", frame.svg(title, axes, chance, drawn)


def draw_calibration(predictions: Predictions) -> tuple[str, str]:
    """Share that came true over the probability given; large points hold many cases."""
    frame, points = _SQUARE, calibration_points(predictions)
    chance = line(frame.x(0), frame.y(0), frame.x(1), frame.y(1), "chance")
    xs, ys = points.confidence.tolist(), points.correct.tolist()
    most = int(points.count.max())
    dots = "".join(
        marker(
            frame.x(x),
            frame.y(y),
            0,
            "m0",
            f"said {x:.2f}, came true {y:.2f}, {count} statements",
            size=round(2 + 4 * math.sqrt(count / most), 1),
        )
        for x, y, count in zip(xs, ys, points.count.tolist(), strict=True)
    )
    axes = frame.axes("probability given", "share that came true", _UNIT, _UNIT)
    title = f"calibration of {predictions.key}"
    return "calibration", frame.svg(title, axes, chance, frame.path(xs, ys, "m0"), dots)


def draw_confusion(predictions: Predictions) -> tuple[str, str]:
    """The confusion matrix; colour is the share of the true class, numbers are mean counts."""
    counts, names = confusion_counts(predictions), predictions.facts.class_names
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    frame = Frame(width=250, height=240, left=64, bottom=48, top=6)
    size = len(names)
    wide = (frame.width - frame.left - frame.right) / size
    high = (frame.height - frame.top - frame.bottom) / size
    parts = []
    for row, column in np.ndindex(size, size):
        x, y = frame.left + column * wide, frame.top + row * high
        share, count = float(shares[row, column]), float(counts[row, column])
        said = f"true {names[row]}, called {names[column]}: {count:.1f} ({share:.0%})"
        place = {"x": round(x, 1), "y": round(y, 1)}
        cell = tag(
            "rect",
            tag("title", text(said)),
            **place,
            width=round(wide - 1, 1),
            height=round(high - 1, 1),
            class_="cell",
            fill_opacity=round(share, 2),
        )
        parts.append(cell)
        if size <= _MOST_NAMED and total[row, 0]:
            class_ = "cell-text over" if share > _MIDDLE else "cell-text"
            parts.append(words(x + wide / 2, y + high / 2 + 4, f"{count:.3g}", class_, "middle"))
    for at, name in enumerate(names if size <= _MOST_NAMED else ()):
        middle = frame.top + (at + 0.5) * high
        parts.append(words(frame.left - 4, middle + 3, _cut(name, 10), "tick", "end"))
        across, foot = frame.left + (at + 0.5) * wide, frame.height - frame.bottom + 12
        lower = foot + (11 if at % 2 and size > 3 else 0)
        parts.append(words(across, lower, _cut(name, 10), "tick", "middle"))
    parts.append(words(frame.left, frame.height - 4, "called →   true ↓", "label"))
    return "confusion", frame.svg(f"confusion matrix of {predictions.key}", *parts)


def draw_km(predictions: Predictions) -> tuple[str, str]:
    """Survival of low and high risk, with the numbers at risk."""
    split = risk_split(predictions)
    if split is None:
        frame = _SQUARE
        note = words(20, 80, "the training median risk is not stored", "label")
        return "Kaplan–Meier", frame.svg(f"no survival curves of {predictions.key}", note)
    groups = (("low risk", split.low_curve, "m0"), ("high risk", split.high_curve, "m1"))
    drawn = [(name, curve, class_) for name, curve, class_ in groups if curve is not None]
    last = max(float(predictions.time_months.max()), 1e-6)
    frame = Frame(width=430, height=270, x1=last, bottom=40 + 13 * len(drawn), left=68)
    months = ticks(0.0, last)
    table = at_risk_table([curve for _, curve, _ in drawn], months)
    parts = []
    for at, ((name, curve, class_), row) in enumerate(zip(drawn, table, strict=True)):
        parts.append(_survival(frame, curve, class_))
        y = frame.height - 22 - 13 * (len(drawn) - 1 - at)
        parts.append(words(2, y, name, f"tick fill {class_}"))
        parts += [
            words(frame.x(m), y, str(n), "tick", "middle")
            for m, n in zip(months, row.tolist(), strict=True)
        ]
    p = p_text(split.log_rank.p)
    said = "log-rank not defined" if p == "–" else f"log-rank p {p if p[0] == '<' else '= ' + p}"
    parts.append(words(frame.width - 12, 22, said, "label", "end"))
    parts.append(words(frame.width - 12, 36, f"cut: {split.cut} median", "tick", "end"))
    axes = frame.axes("months", "survival", months, _UNIT)
    title = f"survival by risk of {predictions.key}, {said}"
    return "Kaplan–Meier", frame.svg(title, axes, *parts, class_="plot wide")


def _survival(frame: Frame, curve: KaplanMeier, class_: str) -> str:
    times = np.repeat(np.append(0.0, curve.times), 2)[1:].tolist()
    low, high = (np.repeat(np.append(1.0, s), 2)[:-1].tolist() for s in (curve.low, curve.high))
    survival = np.repeat(np.append(1.0, curve.survival), 2)[:-1].tolist()
    left = curve.censored > 0
    ticks = "".join(
        line(frame.x(t), frame.y(s) - 3, frame.x(t), frame.y(s) + 3, f"censored {class_}")
        for t, s in zip(curve.times[left].tolist(), curve.survival[left].tolist(), strict=True)
    )
    return frame.band(times, low, high, class_) + frame.path(times, survival, class_) + ticks


def _lines(frame: Frame, lines: list[Line], *, step: bool) -> str:
    if not lines:
        return words(frame.width / 2 + 15, frame.height / 2, "one class only", "label", "middle")
    parts, named = [], len(lines) <= _MOST_NAMED
    for at, whole in enumerate(lines):
        one, class_ = thinned(whole), f"m{at % NUM_COLORS}"
        xs, ys = one.x.tolist(), one.y.tolist()
        if one.low is not None and one.high is not None:
            parts.append(frame.band(xs, one.low.tolist(), one.high.tolist(), class_))
        if step:
            xs, ys = np.repeat(xs, 2)[:-1].tolist(), np.repeat(ys, 2)[1:].tolist()
        parts.append(frame.path(xs, ys, class_))
        if named:
            y = frame.height - frame.bottom - 8 - 12 * (len(lines) - 1 - at)
            x = frame.left + 8 if step else frame.width - frame.right - 6
            side = "start" if step else "end"
            parts.append(words(x, y, _cut(one.label, 16), f"tick fill {class_}", side))
    return "".join(parts)


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
