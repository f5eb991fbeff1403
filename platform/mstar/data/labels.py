"""Label tables: what is to be predicted for each case of a task, `labels/<task_id>.csv`.

    case_id       unique
    slides        slide ids joined by `;`, those whose features make the case's bag
    label         the class, as named by the task                        (tasks with classes)
    time_months, event   survival: months under observation, 1 died, 0 censored (survival tasks)
    split         train, val, test, or empty: to be cut by whoever trains
    data_source   real or generated; absent in a table: real

A case is in one part at most, so a label's split is one of patients. Generated rows stay marked:
they are never averaged with real ones.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from mstar.data.cases import SLIDES_JOINED_BY
from mstar.data.tables import Column, bad_cell, read_table, write_table

PARTS = ("train", "val", "test")
DATA_SOURCES = ("real", "generated")

_FIRST = (Column(name="case_id", unique=True), Column(name="slides", nullable=True))
_LAST = (
    Column(name="split", required=False, nullable=True, allowed=PARTS),
    Column(name="data_source", required=False, nullable=True, allowed=DATA_SOURCES),
)
CLASS_COLUMNS = (*_FIRST, Column(name="label"), *_LAST)
SURVIVAL_COLUMNS = (
    *_FIRST,
    Column(name="time_months", kind="number"),
    Column(name="event", kind="integer", allowed=("0", "1")),
    *_LAST,
)
_TYPES = {"text": pa.string(), "number": pa.float64(), "integer": pa.int64()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassLabel:
    """The class of one case.

    slides: those that make its bag.
    split: train, val, test or None.
    data_source: real or generated.
    """

    case_id: str
    slides: tuple[str, ...]
    label: str
    split: str | None = None
    data_source: str = "real"


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivalLabel:
    """How long one case was observed, and whether that ended in the event.

    slides, split, data_source: as for a ClassLabel.
    """

    case_id: str
    slides: tuple[str, ...]
    time_months: float
    event: int
    split: str | None = None
    data_source: str = "real"


Label = ClassLabel | SurvivalLabel
Kind = TypeVar("Kind", ClassLabel, SurvivalLabel)


def read_class_labels(uri: str, classes: Sequence[str] = ()) -> list[ClassLabel]:
    """The labels of a task with classes; `classes`: the only ones there may be, empty: any.

    Raises:
        TableError: names the row and column that is not what it should be.
    """
    label = Column(name="label", allowed=tuple(classes))
    columns = [label if column.name == "label" else column for column in CLASS_COLUMNS]
    return _read(uri, columns, ClassLabel)


def read_survival_labels(uri: str) -> list[SurvivalLabel]:
    """The labels of a survival task.

    Raises:
        TableError: names the row and column that is not what it should be.
    """
    labels = _read(uri, SURVIVAL_COLUMNS, SurvivalLabel)
    for row, label in enumerate(labels):
        if label.time_months < 0:
            way_out = "Correct the time."
            raise bad_cell(uri, row, "time_months", "0 or more", label.time_months, way_out)
    return labels


def write_class_labels(uri: str, labels: Iterable[ClassLabel]) -> None:
    """Write the table whole, rows in the order given."""
    _write(uri, labels, CLASS_COLUMNS)


def write_survival_labels(uri: str, labels: Iterable[SurvivalLabel]) -> None:
    """Write the table whole, rows in the order given."""
    _write(uri, labels, SURVIVAL_COLUMNS)


def _read(uri: str, columns: Sequence[Column], kind: type[Kind]) -> list[Kind]:
    return [kind(**_parsed(row)) for row in read_table(uri, columns).to_pylist()]


def _parsed(row: dict[str, Any]) -> dict[str, Any]:
    slides = tuple(s.strip() for s in (row["slides"] or "").split(SLIDES_JOINED_BY) if s.strip())
    return {**row, "slides": slides, "data_source": row.get("data_source") or "real"}


def _write(uri: str, labels: Iterable[Label], columns: Sequence[Column]) -> None:
    rows = [_cells(label, columns) for label in labels]
    arrays = {
        column.name: pa.array([row[column.name] for row in rows], _TYPES[column.kind])
        for column in columns
    }
    write_table(uri, pa.table(arrays))


def _cells(label: Label, columns: Sequence[Column]) -> dict[str, Any]:
    cells = {column.name: getattr(label, column.name) for column in columns}
    return {**cells, "slides": SLIDES_JOINED_BY.join(label.slides) or None}
