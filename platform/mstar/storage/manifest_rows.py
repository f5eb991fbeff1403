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
    """One row; empty cells are None. `problem`: the row itself is malformed."""

    label: str  # where it is, for messages
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
            raise ManifestError(
                f"{uri}: not UTF-8 after line {reader.line_num} (byte {error.object[error.start]:#x}"
                "). Save it as 'CSV UTF-8'."
            ) from error
        except csv.Error as error:
            raise ManifestError(
                f"{uri}: line {reader.line_num + 1} is not CSV: {error}. Check its quotes."
            ) from error


def parquet_rows(uri: str) -> Iterator[Row]:
    """The rows of a Parquet manifest; labelled with their number, from 1."""
    with _open(uri) as raw:
        try:
            file = pq.ParquetFile(raw)
            names = file.schema_arrow.names
            places = _places(names, uri)
            number = 0
            for batch in file.iter_batches(
                _BATCH_ROWS, columns=[names[n] for n in places.values()]
            ):
                columns = {name: batch.column(names[n]).to_pylist() for name, n in places.items()}
                for cells in zip(*columns.values(), strict=True):
                    number += 1
                    texts = map(_text, cells)
                    yield Row(label=f"row {number}", **dict(zip(columns, texts, strict=True)))
        except pa.ArrowException as error:
            raise ManifestError(
                f"{uri}: cannot be read as Parquet: {error}. Write it anew."
            ) from error


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
    known = {name: cells[n] or None for name, n in places.items() if n < len(cells)}
    last = max(places.values())
    if len(cells) <= last and len(cells) <= places["path"]:
        return Row(label=label, **known, problem=f"{label} has {len(cells)} cells, too few")
    return Row(label=label, **known)


def _text(cell: Any) -> str | None:
    """A cell as text; whole numbers that pandas made floats, for want of a null, become whole."""
    if cell is None or cell == "" or cell != cell:
        return None
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return cell.decode(errors="replace") if isinstance(cell, bytes) else str(cell)
