"""Samples of a task: what a label table says once its dialect is gone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mstar.data.cases import SLIDES_JOINED_BY
from mstar.data.splits.leaks import part_name
from mstar.data.table_files import bad_cell
from mstar.errors import SplitError

ONE_FOLD = "0"  # the name of the fold of a table that has one
INDEX_NAMES = ("", "Unnamed: 0")  # how pandas names the index that it writes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One slide or case to learn from.

    slides: ids, as the table names them; those of a store once they are matched.
    label: the code that the task row gives to the class.
    time_months, event: survival: months under observation, and whether the event ended them.
    rna: name of the case's gene expression, without folders.
    folds: fold → train, val or test, as far as the table says so; a fold that does not use the
        sample is left out.
    row: of the table, counted from 1 as in messages; the first one of a case with several.
    patient: whom it is of; samples of one patient must never be in two parts.
    """

    case_id: str
    slides: tuple[str, ...]
    label: int | None = None
    time_months: float | None = None
    event: bool | None = None
    rna: str | None = None
    folds: Mapping[str, str] = field(default_factory=dict)
    row: int
    patient: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTable:
    """The samples of one task, and the table that they are from.

    folds: names of the folds that the table itself gives, in order; empty: it gives none.
    """

    uri: str
    task_id: str
    dialect: str
    samples: tuple[Sample, ...]
    folds: tuple[str, ...] = ()
    data_source: str = "real"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRow:
    """One row of a table, its cells as text; what the dialect does not have is None.

    row: counted from 0.
    """

    row: int
    case_id: str
    slides: tuple[str, ...]
    label: str | None = None
    time_months: float | None = None
    event: str | None = None
    rna: str | None = None
    folds: Mapping[str, str] = field(default_factory=dict)
    patient: str | None = None
    data_source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of a table and the names of its columns.

    folds: every fold of the table, in order.
    label, time, event, fold: columns to name in messages.
    """

    dialect: str
    rows: tuple[LabelRow, ...]
    folds: tuple[str, ...] = ()
    label: str = "label"
    time: str = "time_months"
    event: str = "event"
    fold: str = "split"


def split_slides(cell: str | None) -> tuple[str, ...]:
    """The slide ids of a cell, joined by `;`; of paths the name alone stays."""
    return tuple(name for part in (cell or "").split(SLIDES_JOINED_BY) if (name := part.strip()))


def base_name(path: str) -> str:
    """The last step of a path, of either kind of slash."""
    return path.replace("\\", "/").rpartition("/")[2]


def folds_of(
    uri: str, row: int, cells: Mapping[str, str | None], columns: Mapping[str, str]
) -> dict[str, str]:
    """Fold → part of one row; empty cells and -1 are folds that do not use it.

    columns: column → fold.
    """
    found = {}
    for column, fold in columns.items():
        cell = cells[column]
        if cell is None or cell.strip() == "-1":
            continue
        try:
            found[fold] = part_name(cell, column)
        except SplitError:
            expected = "train, val, validation or test"
            raise bad_cell(uri, row, column, expected, cell, "Rename the part.") from None
    return found


def shared(names: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether a header has all of these columns, in any case."""
    lower = {name.lower() for name in names}
    return all(name.lower() in lower for name in wanted)
