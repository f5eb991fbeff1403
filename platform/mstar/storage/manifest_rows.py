"""The rows of manifest files as text, a few thousand in memory at a time."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mstar.errors import ManifestError
from mstar.storage import objects

COLUMNS = ("path", "slide_id", "mpp", "case_id")
_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row as text.

    label: where it is, for messages. slide_id: None where there is no such column, empty where the
    cell is; other empty cells are None. problem: the row itself is malformed.
    """

    label: str
    path: str | None = None
    slide_id: str | None = None
    mpp: str | None = None
    case_id: str | None = None
    problem: str | None = None


def csv_rows(uri: str) -> Iterator[Row]:
    """The rows of a CSV manifest; labelled with their line."""
    with _open(uri) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as text:
        reader = csv.reader(text)
        try:
            places = _places(next(reader, []), uri)
            for cells in reader:
                if cells:
                    yield _csv_row(cells, places, f"line {reader.line_num}")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise ManifestError(
                f"{uri}: expected UTF-8, got byte {byte:#x} after line {reader.line_num}. "
                "Save it as 'CSV UTF-8'."
            ) from error
        except csv.Error as error:
            raise ManifestError(
                f"{uri}: line {reader.line_num} is not CSV: {error}. Check its quotes."
            ) from error


def parquet_rows(uri: str) -> Iterator[Row]:
    """The rows of a Parquet manifest; labelled with their number, from 1."""
    with _open(uri) as raw:
        try:
            file = pq.ParquetFile(raw)
            header = file.schema_arrow.names
            places = _places(header, uri)
            names = {header[place]: name for name, place in places.items()}
            number = 0
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(names)):
                for cells in batch.rename_columns(
                    [names[n] for n in batch.schema.names]
                ).to_pylist():
                    number += 1
                    yield _parquet_row(cells, f"row {number}")
        except pa.ArrowException as error:
            raise ManifestError(f"{uri}: expected Parquet, got {error}. Write it anew.") from error


def _open(uri: str) -> Any:
    try:
        return objects.open_read(uri)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ManifestError(f"{uri}: there is no such manifest. Check --slides.") from error


def _places(header: Sequence[str], uri: str) -> dict[str, int]:
    """Column name → position, of those that mean something."""
    names = [name.strip().lower() for name in header]
    for name in COLUMNS:
        if names.count(name) > 1:
            raise ManifestError(f"{uri}: column {name} comes twice. Keep one of them.")
    if "path" not in names:
        shown = ", ".join(map(repr, header)) or "none"
        hint = " Separate the columns by commas." if len(names) == 1 and ";" in names[0] else ""
        raise ManifestError(
            f"{uri}: expected a column path, got {shown}. Name the slides' column path.{hint}"
        )
    return {name: names.index(name) for name in COLUMNS if name in names}


def _csv_row(cells: Sequence[str], places: Mapping[str, int], label: str) -> Row:
    if len(cells) <= max(places.values()):
        return Row(label=label, problem=f"{label} has {len(cells)} cells, too few")
    known = {name: cells[place] or None for name, place in places.items()}
    return _row(label, known)


def _parquet_row(cells: Mapping[str, Any], label: str) -> Row:
    return _row(label, {name: _text(cell) for name, cell in cells.items()})


def _row(label: str, cells: dict[str, str | None]) -> Row:
    """An empty cell is None, but for an id: where the column is, the id is meant to be there."""
    if "slide_id" in cells:
        cells["slide_id"] = cells["slide_id"] or ""
    return Row(label=label, **cells)


def _text(cell: Any) -> str | None:
    """A cell as text; whole numbers that pandas made floats, for want of a null, become whole."""
    if cell is None or cell == "" or cell != cell:
        return None
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return cell.decode(errors="replace") if isinstance(cell, bytes) else str(cell)
