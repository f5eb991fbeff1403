"""The drawings of the whole table: intervals by task (forest), and the critical difference."""

import math
from collections.abc import Mapping, Sequence

from mstar.downstream.results.differences import Method
from mstar.downstream.results.rows import ResultRow
from mstar.downstream.results.svg import (
    NUM_COLORS,
    Frame,
    Number,
    line,
    marker,
    tag,
    text,
    ticks,
    words,
)
from mstar.downstream.results.text_tables import METRIC_NAMES, number, with_interval
from mstar.downstream.statistics.across_tasks import Ranking

_ROW, _GAP, _NAME = 15, 11, 22
_CHANCE = {"macro_auc": 0.5, "weighted_auc": 0.5, "c_index": 0.5, "time_dependent_auc": 0.5}
Looks = Mapping[Method, tuple[int, int]]  # method → colour and shape


def looks_of(methods: Sequence[Method]) -> dict[Method, tuple[int, int]]:
    """Colour by encoder, shape by head."""
    encoders = sorted({encoder for encoder, _ in methods})
    heads = sorted({head for _, head in methods})
    return {
        method: (encoders.index(method[0]) % NUM_COLORS, heads.index(method[1]))
        for method in methods
    }


def value_range(rows: Sequence[ResultRow]) -> tuple[float, float]:
    """The axis that rows of one metric share: all of their intervals, and chance."""
    metric = rows[0].estimate.metric
    seen = [_CHANCE[metric]] if metric in _CHANCE else []
    for row in rows:
        one = row.estimate
        seen += [v for v in (one.value, one.low, one.high) if not math.isnan(v)]
    if not seen:
        return 0.0, 1.0
    pad = 0.03 * max(max(seen) - min(seen), 0.05)
    return min(seen) - pad, max(seen) + pad


def interval_bar(row: ResultRow, axis: tuple[float, float], looks: Looks) -> str:
    """The interval of one row, small enough for a cell; hidden from readers of text."""
    frame = Frame(width=120, height=16, left=5, right=5, top=0, bottom=0, x0=axis[0], x1=axis[1])
    return tag(
        "svg",
        _chance(frame, row.estimate.metric, 0, 16),
        _interval(frame, row, 8, looks),
        class_="bar",
        viewBox="0 0 120 16",
        width=120,
        height=16,
        aria_hidden="true",
    )


def forest(rows: Sequence[ResultRow], looks: Looks) -> str:
    """All rows of one metric, task by task, on one axis."""
    tasks: dict[str, list[ResultRow]] = {}
    for row in rows:
        tasks.setdefault(_task_name(row), []).append(row)
    height = 44 + sum(_NAME + _ROW * len(own) + _GAP for own in tasks.values())
    low, high = value_range(rows)
    frame = Frame(width=720, height=height, left=190, right=150, top=8, bottom=34, x0=low, x1=high)
    metric = rows[0].estimate.metric
    label = METRIC_NAMES.get(metric, metric)
    axes = frame.axes(f"{label}, with interval", "", ticks(low, high, 6), ())
    parts = [axes, _chance(frame, metric, frame.top, height - frame.bottom)]
    y = float(frame.top)
    for said, own in tasks.items():
        parts.append(words(4, y + 12, said, "task-name"))
        y += _NAME
        for row in own:
            method = " · ".join(row.method)
            parts.append(words(frame.left - 8, y + 9, method, "tick", "end"))
            parts.append(_interval(frame, row, y + 6, looks))
            won = " ★ best" if row.winner else ""
            class_ = "value won" if row.winner else "value"
            x = frame.width - frame.right + 8
            parts.append(words(x, y + 9, with_interval(row) + won, class_))
            y += _ROW
        y += _GAP
    return frame.svg(f"{label} of every row with its interval", *parts, class_="plot forest")


def critical_difference(ranking: Ranking, looks: Mapping[str, tuple[int, int]]) -> str:
    """Average ranks on a line; bars join methods that cannot be told apart."""
    count = len(ranking.methods)
    cliques = ranking.cliques if not math.isnan(ranking.critical_difference) else ()
    rows = math.ceil(count / 2)
    top = 56 + 9 * len(cliques)
    last = max(count, 2)
    frame = Frame(
        width=720, height=top + 22 * rows + 8, left=190, right=190, x0=1.0, x1=float(last)
    )
    parts = [line(frame.x(1), 44, frame.x(last), 44, "ax")]
    for tick in range(1, last + 1):
        parts.append(line(frame.x(tick), 40, frame.x(tick), 44, "ax"))
        parts.append(words(frame.x(tick), 35, str(tick), "tick", "middle"))
    if not math.isnan(ranking.critical_difference):
        wide = frame.x(1 + ranking.critical_difference) - frame.x(1)
        parts.append(line(frame.x(1), 14, frame.x(1) + wide, 14, "clique"))
        said = f"critical difference {ranking.critical_difference:.2f}"
        parts.append(words(frame.x(1) + wide + 6, 18, said, "tick"))
    places = dict(zip(ranking.methods, ranking.average_ranks, strict=True))
    for at, clique in enumerate(cliques):
        ends = [frame.x(places[name]) for name in clique]
        parts.append(line(min(ends) - 4, 52 + 9 * at, max(ends) + 4, 52 + 9 * at, "clique"))
    for at, (name, rank) in enumerate(places.items()):
        left = at < rows
        y = top + 16 + 22 * (at if left else count - 1 - at)
        x, edge = frame.x(rank), frame.left - 8 if left else frame.width - frame.right + 8
        color, shape = looks[name]
        parts.append(tag("polyline", points=f"{x:.1f},44 {x:.1f},{y} {edge},{y}", class_="leader"))
        parts.append(marker(x, 44, shape, f"m{color}", f"{name}: {rank:.2f}"))
        side, beyond = ("end", edge - 4) if left else ("start", edge + 4)
        parts.append(words(beyond, y + 4, f"{name}  {rank:.2f}", "method", side))
    best = f"average ranks over {ranking.cohorts} cohorts, best first: " + ", ".join(
        f"{name} {rank:.2f}" for name, rank in places.items()
    )
    return frame.svg(best, *parts, class_="plot ranks")


def _task_name(row: ResultRow) -> str:
    """The task with what bars its rows from comparison with others."""
    facts = row.predictions.facts
    said = [facts.protocol] if facts.protocol != "honest" else []
    said += [f"leak: {facts.leaked_patients} patients"] if facts.leaked_patients else []
    said += [f"{facts.data_source} data"] if facts.data_source != "real" else []
    said += [row.predictions.part] if row.predictions.part != "test" else []
    return row.predictions.task + (f" ({', '.join(said)})" if said else "")


def _chance(frame: Frame, metric: str, top: Number, bottom: Number) -> str:
    if metric not in _CHANCE:
        return ""
    at = frame.x(_CHANCE[metric])
    return line(at, top, at, bottom, "chance")


def _interval(frame: Frame, row: ResultRow, y: Number, looks: Looks) -> str:
    one, (color, shape) = row.estimate, looks[row.method]
    if math.isnan(one.value):
        return words(frame.x(frame.x0) + 4, y + 3, "undefined", "tick")
    parts = ""
    if not math.isnan(one.low):
        parts = line(frame.x(one.low), y, frame.x(one.high), y, f"whisker m{color}")
    said = f"{' · '.join(row.method)}: {number(one.value)}"
    return parts + marker(frame.x(one.value), y, shape, f"m{color}", said, size=4)


def legend(looks: Looks) -> str:
    """Every method with its mark."""
    items = [
        tag(
            "span",
            tag(
                "svg",
                marker(8, 8, shape, f"m{color}"),
                viewBox="0 0 16 16",
                width=16,
                height=16,
                aria_hidden="true",
            ),
            text(" · ".join(method)),
            class_="key",
        )
        for method, (color, shape) in looks.items()
    ]
    return tag("div", *items, class_="legend")
