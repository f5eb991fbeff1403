"""Reads the tables of tasks for the patients that they validate or test on.

A table has a column with the case and one or more that say which part a row is in, as tables of the
field do:

    case_id | case | patient_id | patient | ID
    part | split | fold | fold1, fold2 …        train, val, validation, test in any case; or empty

Of `part`, `split` and `fold` the first one there is counts: `fold` beside `part` is a number.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mstar.data.splits.leaks import HELD_OUT, check_one_part, part_name, patient_of
from mstar.data.tables import Column, column_names, read_table
from mstar.errors import ConfigError, SplitError, TableError
from mstar.storage import objects

_SUFFIXES = (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz")
CASE_COLUMN = Column(name="case_id", aliases=("case", "patient_id", "patient", "id"))
_PART_COLUMNS = ("part", "split", "fold")
_NUMBERED_FOLD = re.compile(r"fold_?\d+", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTable:
    """One table and the patients that it holds out of pretraining.

    has_parts: whether the table says which part a row is in (else it is cut from the registry).
    """

    uri: str
    patients: frozenset[str]
    has_parts: bool = True


def read_task_tables(places: Sequence[str]) -> list[TaskTable]:
    """The tables of files and folders, sorted by address.

    A table without parts is an error when it was named, and holds nobody out in a folder.

    Raises:
        ConfigError: a place does not exist or a folder has no table.
        SplitError: a part has an unknown name, or a patient is in two.
    """
    tables = []
    for place in places:
        if objects.exists(place):
            table = read_task_table(place)
            if not table.has_parts:
                raise TableError(
                    f"{place}: expected a column {', '.join(_PART_COLUMNS)} or fold1, fold2 …, got "
                    f"{', '.join(column_names(place))}. Leave it out of --tasks, or add one."
                )
            tables.append(table)
        else:
            tables += [read_task_table(uri) for uri in _tables_in(place)]
    return sorted(tables, key=lambda table: table.uri)


def read_task_table(uri: str) -> TaskTable:
    """One table; see `read_task_tables`."""
    names = column_names(uri)
    places = _part_columns(names)
    if not places:
        return TaskTable(uri=uri, patients=frozenset(), has_parts=False)
    table = read_table(uri, [CASE_COLUMN, *(Column(name=name, nullable=True) for name in places)])
    cases = table.column("case_id").to_pylist()
    rows = {name: _parts(uri, name, cases, table.column(name).to_pylist()) for name in places}
    numbered = places != ["fold"] and "fold" in names  # then `part` holds those of several folds
    for name in () if numbered else places:
        check_one_part(rows[name], f"{uri}, column {name}")
    held = (case for pairs in rows.values() for case, part in pairs if part in HELD_OUT)
    return TaskTable(uri=uri, patients=frozenset(patient_of(case) for case in held))


def _tables_in(folder: str) -> Iterable[str]:
    found = [
        objects.join(folder, info.rel)
        for info in objects.list_files(folder)
        if info.rel.endswith(_SUFFIXES)
    ]
    if not found:
        raise ConfigError(
            f"--tasks {folder}: expected a table ({', '.join(_SUFFIXES[:3])}) or a folder with "
            "some, found none. Correct the path; `--tasks none` holds nobody out."
        )
    return sorted(found)


def _part_columns(names: Sequence[str]) -> list[str]:
    lower = {name.strip().lower(): name.strip() for name in names}
    first = next((lower[name] for name in _PART_COLUMNS if name in lower), None)
    if first is not None:
        return [first]
    return [name for key, name in lower.items() if _NUMBERED_FOLD.fullmatch(key)]


def _parts(
    uri: str, name: str, cases: Sequence[str], cells: Sequence[str | None]
) -> list[tuple[str, str]]:
    """(case, part) of the rows that have one."""
    pairs = []
    for row, (case, cell) in enumerate(zip(cases, cells, strict=True)):
        if cell is not None:
            try:
                pairs.append((case, part_name(cell, f"column {name}")))
            except SplitError as error:
                raise SplitError(f"{uri}: row {row + 1:,}, {error}") from None
    return pairs
