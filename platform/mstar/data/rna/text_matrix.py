"""A TSV or CSV matrix, read once from front to end in blocks of whole lines.

The columns of numbers of a block are handed to Arrow as one long column: parsing thousands of short
columns is several times slower. Only a block that Arrow refuses is looked at cell by cell.
"""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, runtime_checkable

from mstar.data import tables
from mstar.data.rna.cells import parse_cells
from mstar.data.rna.config import ExpressionConfig
from mstar.data.rna.layout import ID_COLUMNS, MatrixLayout, Piece, RowId, find_layout
from mstar.errors import TableError

_BLOCK_BYTES = 1 << 24
_HEADER_BYTES_MAX = 1 << 26
_SECOND_HEADER = frozenset({"gene_id", "gene", "composite element ref"})
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@runtime_checkable
class _Readable(Protocol):
    """What is read of an open file, be it unpacked, on a disk or in an object store."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    layout: MatrixLayout
    delimiter: bytes
    first_row: int
    hint: str


@contextmanager
def opened(
    uri: str, config: ExpressionConfig
) -> Iterator[tuple[MatrixLayout, int, str, Iterator[Piece]]]:
    """The layout, the rows of a second header, what that says, and the pieces, to be taken once."""
    with tables.open_text(uri) as file:
        head, lines = _read_head(uri, file, config)
        yield head.layout, head.first_row, head.hint, _pieces(head, lines)


def sample_names(uri: str, config: ExpressionConfig) -> list[str]:
    """From the header, or from the first column when rows are samples."""
    with tables.open_text(uri) as file:
        head, lines = _read_head(uri, file, config)
        if head.layout.genes_by_cases:
            return list(head.layout.value_names)
        found: list[str] = []
        for block in lines:
            for line in block:
                cells = _cells(head, line, head.first_row + len(found))
                found.append(_row_id(head, cells[head.layout.row_id], b"", len(found))[0])
        return found


def _read_head(
    uri: str, file: _Readable, config: ExpressionConfig
) -> tuple[_Head, Iterator[list[bytes]]]:
    """The header, and the lines below it in blocks (a second header among the ids is skipped)."""
    blocks = _line_blocks(uri, file)
    first = next(blocks, [])
    if not first:
        raise TableError(f"{uri}: expected a header and rows, got an empty file. Check the path.")
    header = first[0].removeprefix(b"\xef\xbb\xbf")
    delimiter = max((b"\t", b",", b";"), key=header.count)
    names = _split(header, delimiter, uri, "header")
    while len(first) < 3 and (more := next(blocks, [])):
        first += more
    rows = [_split(line, delimiter, uri, "row") for line in first[1:3]]
    if len(names) == 1:
        raise TableError(
            f"{uri}: expected columns separated by tabs, commas or semicolons, got one column "
            f"{names[0]!r}. Check the separator."
        )
    one_more = bool(rows) and all(len(row) == len(names) + 1 for row in rows)
    if one_more and names[0].strip().lower() not in ID_COLUMNS:
        names = ["", *names]  # R's write.table leaves the corner out
    layout = find_layout(uri, names, rows, config)
    second = bool(rows) and _is_second_header(rows[0], layout)
    head = _Head(
        layout=layout,
        delimiter=delimiter,
        first_row=int(second),
        hint=rows[0][layout.value_columns[0]] if second else "",
    )
    return head, chain([first[1 + head.first_row :]], blocks)


def _is_second_header(row: Sequence[str], layout: MatrixLayout) -> bool:
    """Firehose names the quantity below each sample: gene_id, then normalized_count throughout."""
    if len(row) != len(layout.columns) or row[layout.row_id].strip().lower() not in _SECOND_HEADER:
        return False
    values = {row[index].strip() for index in layout.value_columns}
    return len(values) == 1 and next(iter(values)).replace("_", "").isalpha()


def _split(line: bytes, delimiter: bytes, uri: str, what: str) -> list[str]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        if what == "row":  # its own block names the cell
            text = line.decode("utf-8", "replace")
        else:
            found = line[error.start : error.start + 20]
            raise TableError(
                f"{uri}: {what}: expected UTF-8, got {found!r}. Save the table as 'CSV UTF-8'."
            ) from error
    return next(csv.reader([text], delimiter=delimiter.decode()), [])


def _line_blocks(uri: str, file: _Readable) -> Iterator[list[bytes]]:
    """Lines without their ends, some megabytes at a time, without empty ones at the end.

    Raises:
        TableError: an empty line lies between others, or the file is no text.
    """
    rest, num_lines, blank = b"", 0, False
    while True:
        data = file.read(_BLOCK_BYTES)
        if num_lines == 0 and not rest and data[:2] in _UTF16:
            raise TableError(f"{uri}: expected UTF-8, got UTF-16. Save the table as 'CSV UTF-8'.")
        rest += data
        if data and b"\n" not in data:
            if num_lines == 0 and len(rest) > _HEADER_BYTES_MAX:
                raise TableError(f"{uri}: expected lines, got none in {len(rest):,} bytes.")
            continue
        lines = rest.split(b"\n")
        rest = lines.pop() if data else b""
        lines = [line.rstrip(b"\r") for line in lines]
        num_read = len(lines)
        while lines and not lines[-1]:  # the end of the file, unless more lines follow
            lines.pop()
        if lines and (blank or b"" in lines):
            row = num_lines + (0 if blank else lines.index(b""))
            raise TableError(f"{uri}: row {row:,} is empty. Remove the line.")
        blank = blank or len(lines) < num_read
        num_lines += len(lines)
        if lines:
            yield lines
        if not data:
            return


def _pieces(head: _Head, blocks: Iterator[list[bytes]]) -> Iterator[Piece]:
    first_row, columns = 0, head.layout.value_names
    for lines in blocks:
        if not lines:
            continue
        ids, payloads = _cut(head, lines, first_row)
        labels = [row_id[0] for row_id in ids]
        values = parse_cells(
            head.layout, payloads, head.delimiter, head.first_row + first_row, labels
        )
        yield Piece(
            first_row=first_row, first_column=0, rows=tuple(ids), columns=columns, values=values
        )
        first_row += len(lines)


def _cut(head: _Head, lines: Sequence[bytes], first_row: int) -> tuple[list[RowId], list[bytes]]:
    """Row ids, and the numbers of each row still as text."""
    layout, delimiter = head.layout, head.delimiter
    first, last = layout.value_columns[0], layout.value_columns[-1]
    together = last - first + 1 == len(layout.value_columns)
    num_after = len(layout.columns) - last - 1
    ids, payloads = [], []
    for index, line in enumerate(lines):
        if together and b'"' not in line and line.count(delimiter) == len(layout.columns) - 1:
            *before, rest = line.split(delimiter, first)
            payload, *after = rest.rsplit(delimiter, num_after)
            cells = before + [b""] * (last - first + 1) + after
        else:
            cells = _cells(head, line, head.first_row + first_row + index)
            payload = delimiter.join(cells[i] for i in layout.value_columns)
        entrez = b"" if layout.entrez is None else cells[layout.entrez]
        ids.append(_row_id(head, cells[layout.row_id], entrez, first_row + index))
        payloads.append(payload)
    return ids, payloads


def _cells(head: _Head, line: bytes, row: int) -> list[bytes]:
    """A line's cells, as many as there are columns."""
    if b'"' in line:
        text = line.decode("latin-1")  # any bytes, there and back
        cells = [
            c.encode("latin-1") for c in next(csv.reader([text], delimiter=head.delimiter.decode()))
        ]
    else:
        cells = line.split(head.delimiter)
    layout = head.layout
    if len(cells) != len(layout.columns):
        place = min(len(cells), len(layout.columns) - 1)
        raise TableError(
            f"{layout.uri}: row {row + 1:,} ({cells[0].decode('utf-8', 'replace')[:40]}), column "
            f"{layout.columns[place]}: expected {len(layout.columns):,} cells, got {len(cells):,}. "
            "Correct the row's separators."
        )
    return cells


def _row_id(head: _Head, name: bytes, entrez: bytes, row: int) -> RowId:
    layout = head.layout
    column, found = layout.columns[layout.row_id] or "1", name
    try:
        text, number = name.decode().strip(), entrez.decode().strip()
    except UnicodeDecodeError:
        raise tables.bad_cell(
            layout.uri,
            head.first_row + row,
            column,
            "UTF-8",
            found,
            "Save the table as 'CSV UTF-8'.",
        ) from None
    if not text and not layout.genes_by_cases:
        raise tables.bad_cell(
            layout.uri, head.first_row + row, column, "a sample name", text, "Fill it in."
        )
    return text, number
