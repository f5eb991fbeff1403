"""CLAM's tables: `case_id,slide_id,label`, one row a slide, and a folder of splits beside them.

    splits_<k>.csv        columns train, val, test of slide ids (of MCAT: case ids), padded
    splits_<k>_bool.csv   slide id, then true or false for each of train, val, test

For labels/X.csv the folder is labels/X_splits, unless another one is named.
"""

import re
from collections.abc import Mapping

from mstar.data.label_tables.matching import without_extension
from mstar.data.label_tables.samples import LabelRow, Rows, shared, split_slides
from mstar.data.splits.leaks import PARTS
from mstar.data.tables import Column, bad_cell, column_names, read_table
from mstar.errors import TableError
from mstar.storage import objects

_SPLIT = re.compile(r"splits_(?P<fold>\d+)(?P<bool>_bool)?\.csv")
_TRUE = ("true", "1", "1.0")


def is_clam(names: list[str]) -> bool:
    """Whether a header is CLAM's."""
    return shared(names, ("case_id", "slide_id", "label"))


def read_clam(uri: str, splits: str | None) -> Rows:
    """A CLAM table with the splits of its folder, if there are any."""
    columns = [
        Column(name="case_id"),
        Column(name="slide_id"),
        Column(name="label"),
        Column(name="patient_id", aliases=("patient",), required=False, nullable=True),
    ]
    cells = read_table(uri, columns).to_pylist()
    owners = _owners(cells)
    folds = {
        fold: _parts(where, owners, is_bool=is_bool)
        for fold, (where, is_bool) in _split_files(uri, splits).items()
    }
    rows = tuple(
        LabelRow(
            row=row,
            case_id=cell["case_id"],
            slides=split_slides(cell["slide_id"]),
            label=cell["label"],
            folds={fold: parts[row] for fold, parts in folds.items() if row in parts},
            patient=cell.get("patient_id"),
        )
        for row, cell in enumerate(cells)
    )
    return Rows(dialect="clam", rows=rows, folds=tuple(folds), fold="splits")


def _owners(cells: list[dict[str, str]]) -> dict[str, tuple[int, ...]]:
    """Id as splits name it → the rows that it means: the slide, or all slides of the case."""
    slides: dict[str, list[int]] = {}
    cases: dict[str, list[int]] = {}
    for row, cell in enumerate(cells):
        for name in {cell["slide_id"], without_extension(cell["slide_id"])}:
            slides.setdefault(name, []).append(row)
        cases.setdefault(cell["case_id"], []).append(row)
    return {name: tuple(rows) for name, rows in {**cases, **slides}.items()}


def _split_files(uri: str, splits: str | None) -> dict[str, tuple[str, bool]]:
    """Fold → (file, whether it is a table of booleans); of two files of a fold the plain one."""
    stem = uri.removesuffix(".gz").rpartition(".")[0]
    folder = splits or f"{stem}_splits"
    found: dict[int, tuple[str, bool]] = {}
    for info in objects.list_files(folder, suffix=".csv"):
        match = _SPLIT.fullmatch(info.rel)
        if match and (not match["bool"] or int(match["fold"]) not in found):
            found[int(match["fold"])] = (objects.join(folder, info.rel), bool(match["bool"]))
    if splits and not found:
        raise TableError(
            f"{folder}: expected CLAM's splits_0.csv, splits_1.csv … of the table {uri}, found "
            "none. Correct the path of the folder."
        )
    return {str(fold): found[fold] for fold in sorted(found)}


def _parts(uri: str, owners: Mapping[str, tuple[int, ...]], *, is_bool: bool) -> dict[int, str]:
    """Row of the label table → part, by one file of splits."""
    parts: dict[int, str] = {}
    for row, part, name in _named(uri, is_bool=is_bool):
        rows = owners.get(name) or owners.get(without_extension(name))
        if not rows:
            expected = "a slide_id or case_id of the label table"
            raise bad_cell(uri, row, part, expected, name, "Correct the id, or add the row.")
        for owned in rows:
            if parts.setdefault(owned, part) != part:
                expected = f"an id in one part (it is in {parts[owned]} too)"
                raise bad_cell(uri, row, part, expected, name, "Keep it in one of the two.")
    return parts


def _named(uri: str, *, is_bool: bool) -> list[tuple[int, str, str]]:
    """(row, part, id) of every id that a file of splits names."""
    names = column_names(uri)
    present = [part for part in PARTS if part in names]
    parts = [Column(name=part, nullable=True) for part in present]
    if not is_bool:
        table = read_table(uri, parts).to_pylist()
        return [
            (row, part, cells[part])
            for row, cells in enumerate(table)
            for part in present
            if cells[part] is not None
        ]
    index = next(name for name in names if name not in PARTS)
    table = read_table(uri, [Column(name=index), *parts]).to_pylist()
    return [
        (row, part, cells[index])
        for row, cells in enumerate(table)
        for part in present
        if (cells[part] or "").lower() in _TRUE
    ]
