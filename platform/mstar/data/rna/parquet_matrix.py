"""A Parquet matrix, read some columns at a time: rows of wide files cannot be had one by one."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float64

from mstar.data import tables
from mstar.data.rna.config import ExpressionConfig
from mstar.data.rna.layout import MatrixLayout, Piece, RowId, find_layout
from mstar.errors import TableError
from mstar.storage import objects

_CELLS_AT_ONCE = 1 << 22
_PEEKED_ROWS = 2
_INDEX = "__index_level_0__"  # how pandas stores an index without a name


@contextmanager
def opened(
    uri: str, config: ExpressionConfig
) -> Iterator[tuple[MatrixLayout, int, str, Iterator[Piece]]]:
    """The layout, no second header, and the pieces, to be taken once."""
    with _file(uri) as file:
        layout, order = _read_layout(uri, file, config)
        yield layout, 0, "", _pieces(file, layout, order)


def sample_names(uri: str, config: ExpressionConfig) -> list[str]:
    """From the column names, or from one column when rows are samples."""
    with _file(uri) as file:
        layout, order = _read_layout(uri, file, config)
        if layout.genes_by_cases:
            return list(layout.value_names)
        return [name for name, _ in _row_ids(file, layout, order)]


@contextmanager
def _file(uri: str) -> Iterator[pq.ParquetFile]:
    try:
        source = objects.open_read(uri)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise TableError(f"{uri}: there is no such table. Check the path.") from error
    with source:
        try:
            file = pq.ParquetFile(source)
        except pa.ArrowException as error:
            raise TableError(f"{uri}: expected Parquet, got {error}. Write it anew.") from error
        yield file


def _read_layout(
    uri: str, file: pq.ParquetFile, config: ExpressionConfig
) -> tuple[MatrixLayout, list[str]]:
    """The layout, and the names in the file of its columns: the column of ids first."""
    names = list(file.schema_arrow.names)
    twice, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise TableError(f"{uri}: column {twice} comes twice. Keep one of them.")
    texts = [field.name for field in file.schema_arrow if _is_text(field.type)]
    ids = [name for name in names if name == _INDEX] or texts[:1]
    order = ids + [name for name in names if name not in ids]
    shown = ["" if name == _INDEX else name for name in order]
    peek = file.read(columns=ids).slice(0, _PEEKED_ROWS) if ids else None
    rows = [[str(row[ids[0]])] for row in peek.to_pylist()] if peek is not None else []
    if file.metadata.num_rows == 0:
        raise TableError(f"{uri}: expected rows, got none. Check the path.")
    return find_layout(uri, shown, rows, config), order


def _is_text(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner))


def _row_ids(file: pq.ParquetFile, layout: MatrixLayout, order: Sequence[str]) -> list[RowId]:
    places = [layout.row_id] if layout.entrez in (None, layout.row_id) else [
        layout.row_id, layout.entrez
    ]  # fmt: skip
    table = file.read(columns=[order[place] for place in places if place is not None])
    columns = [_texts(table.column(order[place])) for place in places if place is not None]
    numbers = columns[1] if len(columns) > 1 else [""] * len(columns[0])
    empty = next((row for row, name in enumerate(columns[0]) if not name), None)
    if empty is not None and not layout.genes_by_cases:
        name = layout.columns[layout.row_id] or "1"
        raise tables.bad_cell(layout.uri, empty, name, "a sample name", None, "Fill it in.")
    return list(zip(columns[0], numbers, strict=True))


def _texts(column: pa.ChunkedArray) -> list[str]:
    """Cells as text, whole floats without `.0`, nothing as empty."""
    if pa.types.is_floating(column.type):
        column = pc.cast(pc.if_else(pc.is_nan(column), None, column), pa.int64(), safe=False)
    return [(text or "").strip() for text in pc.cast(column, pa.string()).to_pylist()]


def _pieces(file: pq.ParquetFile, layout: MatrixLayout, order: Sequence[str]) -> Iterator[Piece]:
    rows = tuple(_row_ids(file, layout, order))
    step = max(1, _CELLS_AT_ONCE // len(rows))
    for first in range(0, len(layout.value_columns), step):
        places = layout.value_columns[first : first + step]
        table = file.read(columns=[order[place] for place in places])
        values = np.empty((len(rows), len(places)), order="F")
        for index, place in enumerate(places):
            values[:, index] = _numbers(layout, table.column(order[place]), place, rows)
        yield Piece(
            first_row=0,
            first_column=first,
            rows=rows,
            columns=tuple(layout.columns[place] for place in places),
            values=values,
        )


def _numbers(
    layout: MatrixLayout, column: pa.ChunkedArray, place: int, rows: Sequence[RowId]
) -> Float64[np.ndarray, " row"]:
    if _is_text(column.type):
        return _numbers_of_text(layout, column, place, rows)
    try:
        numbers = pc.cast(column, pa.float64(), safe=False)
    except pa.ArrowException as error:
        raise TableError(
            f"{layout.uri}: column {layout.columns[place]}: expected numbers, got {column.type}. "
            "Name it in ignore_columns if it holds no expression."
        ) from error
    return np.asarray(numbers.to_numpy(), dtype=np.float64)


def _numbers_of_text(
    layout: MatrixLayout, column: pa.ChunkedArray, place: int, rows: Sequence[RowId]
) -> Float64[np.ndarray, " row"]:
    """Numbers that were stored as text, cell by cell."""
    values = np.full(len(rows), np.nan)
    for row, text in enumerate(pc.cast(column, pa.string()).to_pylist()):
        if text is None or text.strip() in tables.NULLS:
            continue
        try:
            values[row] = float(text)
        except ValueError:
            raise tables.bad_cell(
                layout.uri,
                row,
                layout.label(rows[row][0], layout.columns[place]),
                "a number",
                text,
                "Correct the cell, or name its column in ignore_columns if it holds no expression.",
            ) from None
    return values
