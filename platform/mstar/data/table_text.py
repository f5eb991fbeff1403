"""Tables parsed to columns of text: CSV and TSV, Parquet as CSV would have it.

Quotes work as in RFC 4180; a quote inside an unquoted cell is an ordinary character. Every trouble
is a TableError that names row and column, where it has them.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from mstar.data.table_files import bad_cell, delimiter_of, open_table, open_text
from mstar.errors import TableError

NULLS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "#N/A")
_BLOCK_BYTES = 1 << 24
_RAGGED = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+)")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_header(uri: str, *, comment: str = "") -> list[str]:
    """The names of the columns, without reading the rows."""
    if uri.endswith(".parquet"):
        with open_table(uri) as file, _parquet_errors(uri):
            return _stripped(uri, pq.read_schema(file).names)
    with open_text(uri) as file:
        return _take_header(uri, file, comment)


def read_as_text(uri: str, *, comment: str = "") -> pa.Table:
    """Every column as text, nulls where cells are empty.

    Args:
        uri: the table.
        comment: lines before the header that start with this are passed over.
    """
    if uri.endswith(".parquet"):
        return _read_parquet(uri)
    with open_text(uri) as file:
        names = _take_header(uri, file, comment)
        start = _QuoteCounter(file)
        try:
            table = _parse(uri, start, names, pa.string())
        except pa.ArrowInvalid as error:
            raise _parse_error(uri, names, comment, str(error)) from error
    if start.quotes % 2:
        _refuse_open_quote(uri, table)
    return table


def _take_header(uri: str, file: io.BufferedIOBase, comment: str) -> list[str]:
    """Reads up to the first row; quoted names may hold separators and line breaks."""
    lines = _header_lines(uri, file, comment)
    names = next(csv.reader(lines, delimiter=delimiter_of(uri)), [])
    if not names:
        raise TableError(f"{uri}: expected a header, got an empty file. Check that it was written.")
    return _stripped(uri, names)


def _header_lines(uri: str, file: io.BufferedIOBase, comment: str) -> Iterator[str]:
    for number in count():
        line = file.readline()
        if number == 0 and line.startswith(_UTF16):
            raise TableError(f"{uri}: header: expected UTF-8, got UTF-16. Save it as 'CSV UTF-8'.")
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
        if not line:
            return
        if (comment and line.startswith(comment.encode())) or not line.strip():
            continue
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise TableError(
                f"{uri}: header: expected UTF-8, got {line[:40]!r}. Save the table as 'CSV UTF-8'."
            ) from error


def _stripped(uri: str, names: Sequence[str]) -> list[str]:
    stripped = [name.strip() for name in names]
    twice = next((name for name in stripped if stripped.count(name) > 1), None)
    if twice is not None:
        what = f"column {twice}" if twice else "a column without a name"
        raise TableError(f"{uri}: {what} comes twice. Keep one of them, under a name of its own.")
    return stripped


def _parse(uri: str, file: Any, names: Sequence[str], kind: pa.DataType) -> pa.Table:
    if not file.peek(1):
        return pa.table({name: pa.array([], kind) for name in names})
    # one thread: only then do Arrow's messages name the row
    return pa.csv.read_csv(
        file,
        read_options=pa.csv.ReadOptions(
            use_threads=False, block_size=_BLOCK_BYTES, column_names=list(names)
        ),
        parse_options=pa.csv.ParseOptions(delimiter=delimiter_of(uri), newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, kind),
            strings_can_be_null=True,
            null_values=list(NULLS),
        ),
    )


def _parse_error(uri: str, names: Sequence[str], comment: str, said: str) -> TableError:
    if "UTF8" in said:
        return _encoding_error(uri, names, comment)
    ragged = _RAGGED.search(said)
    if ragged is not None:
        row, expected, found = (int(text) for text in ragged.groups())
        at = f"ends at column {names[found - 1]}" if found < expected else "goes on after the last"
        return TableError(
            f"{uri}: row {row:,}, column {names[min(found, expected) - 1]}: expected {expected} "
            f"cells, got {found}: the row {at}. Quote cells that hold the separator or a quote."
        )
    if "straddling" in said:
        said = f"expected rows of less than {_BLOCK_BYTES >> 20} MB, got a longer one"
        return TableError(f"{uri}: {said}. Close the quote that is open, or transpose the table.")
    return TableError(f"{uri}: {' '.join(said.split())[:200]}. Quote cells that hold separators.")


def _encoding_error(uri: str, names: Sequence[str], comment: str) -> TableError:
    """The first cell that is not UTF-8."""
    with open_text(uri) as file:
        _take_header(uri, file, comment)
        table = _parse(uri, file, names, pa.binary())
    row = 0
    for batch in table.to_batches():
        for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            for name, cell in zip(table.column_names, cells, strict=True):
                if cell is not None and not _is_utf8(cell):
                    return bad_cell(uri, row, name, "UTF-8", cell, "Save it as 'CSV UTF-8'.")
            row += 1
    return TableError(f"{uri}: expected UTF-8. Save the table as 'CSV UTF-8'.")


def _is_utf8(cell: bytes) -> bool:
    try:
        cell.decode()
    except UnicodeDecodeError:
        return False
    return True


def _refuse_open_quote(uri: str, table: pa.Table) -> None:
    """A quote that is never closed takes the rest of the file into the last cell, silently."""
    if not len(table):
        return
    name = table.column_names[-1]
    cell = table.column(name)[len(table) - 1].as_py()
    if cell is not None and "\n" in cell:  # not shown: it may be a report
        raise TableError(
            f"{uri}: row {len(table):,}, column {name}: expected a quote that is closed, got one "
            f"that takes in {cell.count(chr(10)):,} more lines, to the end of the file. Close it, "
            "or double the quotes that belong to the text."
        )


def _read_parquet(uri: str) -> pa.Table:
    with open_table(uri) as file, _parquet_errors(uri):
        table = pq.read_table(file)
    names = _stripped(uri, table.column_names)
    columns = zip(names, table.columns, strict=True)
    return pa.table({name: _as_text(uri, name, column) for name, column in columns})


def _as_text(uri: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """As CSV would have it: whole floats without `.0`, NaN and the words for nothing as null."""
    if _is_list(column.type):
        column = _joined_lists(uri, name, column)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
        column = pc.cast(column, pa.int64()) if _all_whole(column) else column
    try:
        text = pc.cast(column, pa.string())
    except pa.ArrowException as error:
        raise TableError(
            f"{uri}: column {name}: expected text or numbers, got {column.type} ({error}). "
            "Write it as text."
        ) from error
    return pc.if_else(pc.is_in(text, pa.array(NULLS)), None, text)


def _is_list(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(kind) for is_kind in kinds)


def _joined_lists(uri: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        lists = pc.cast(column, pa.list_(pa.string()))
    except pa.ArrowException as error:
        raise TableError(
            f"{uri}: column {name}: expected lists of text, got {column.type}. Write them as text."
        ) from error
    joined = pc.binary_join(lists, ";")
    lost = pc.and_(pc.is_valid(column), pc.is_null(joined))  # a list with a null in it
    if pc.any(lost).as_py():
        row = int(pc.index(lost, True).as_py())
        found = column[row].as_py()
        raise bad_cell(uri, row, name, "a list without nulls", found, "Leave the null out.")
    return joined


def _all_whole(column: pa.ChunkedArray) -> bool:
    """Whether floats are whole numbers, as pandas writes integers beside a null."""
    fits = pc.less(pc.abs(column), 2.0**53)
    return bool(pc.all(pc.and_(fits, pc.equal(column, pc.round(column)))).as_py())


@contextmanager
def _parquet_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise TableError(f"{uri}: expected Parquet, got {error}. Write it anew.") from error


class _QuoteCounter:
    """A binary file that counts the quotes read from it."""

    closed = False

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self.quotes = 0

    def read(self, size: int = -1) -> bytes:
        """As of the file."""
        data = self._file.read(size)
        self.quotes += data.count(b'"')
        return data

    def peek(self, size: int) -> bytes:
        """As of the file."""
        return self._file.peek(size)  # type: ignore[attr-defined,no-any-return]
