"""Learning curves of few-shot studies: one picture a task, a line a method."""

import base64
from collections.abc import Sequence

from mstar.downstream.figures import figure_png
from mstar.downstream.language.few_shot_curve import curve_figure
from mstar.downstream.results.rows import GENERATED, ResultRow
from mstar.downstream.results.svg import tag, text

CURVE = "curve"


def learning_pictures(rows: Sequence[ResultRow]) -> dict[str, bytes]:
    """Task → PNG, for the tasks whose studies have a curve."""
    found: dict[str, list[ResultRow]] = {}
    for row in rows:
        if row.predictions.facts.extra.get(CURVE):
            found.setdefault(row.predictions.task, []).append(row)
    return {task: _picture(task, own) for task, own in found.items()}


def learning_section(rows: Sequence[ResultRow]) -> str:
    """The pictures inside the page, which needs no other file."""
    pictures = learning_pictures(rows)
    if not pictures:
        return ""
    note = (
        "Points are means over draws of the slides that were learnt from; bars their interval over "
        "test patients, bands the middle 95 % of the draws."
    )
    shown = "".join(
        tag(
            "figure",
            tag(
                "img",
                src=f"data:image/png;base64,{base64.b64encode(picture).decode()}",
                alt=f"learning curves of {task}",
            ),
            tag("figcaption", text(task)),
        )
        for task, picture in pictures.items()
    )
    return tag("p", text(note), class_="quiet") + shown


def _picture(task: str, rows: Sequence[ResultRow]) -> bytes:
    encoders = {row.predictions.encoder for row in rows}
    curves = {
        row.method[1] if len(encoders) == 1 else " · ".join(row.method): (
            row.predictions.facts.extra[CURVE]
        )
        for row in rows
    }
    generated = any(row.predictions.facts.data_source == GENERATED for row in rows)
    title = f"{task}, {next(iter(encoders))}" if len(encoders) == 1 else task
    return figure_png(curve_figure(curves, title=title, generated=generated))
