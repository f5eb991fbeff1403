"""Tables that users bring (CSV, TSV, Parquet), read strictly.

Every trouble is a TableError that names the file, the row, the column, what was expected and found,
and the way out. Rows are counted from 1, the header not among them: a report may hold line breaks,
so lines would mislead; empty lines are no rows. Ids are text: `007` stays `007`. `.gz` and
one-member `.zip` are unpacked. Written tables are compressed when their name ends in `.gz`.
"""

import gzip
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from mstar.data.table_files import bad_cell, delimiter_of, open_text, separator_hint
from mstar.data.table_text import NULLS, read_as_text, read_header
from mstar.errors import TableError
from mstar.storage import objects

__all__ = [
    "NULLS",
    "Column",
    "bad_cell",
    "column_names",
    "open_text",
    "read_table",
    "write_table",
]

_PATTERNS = {
    "number": (r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$", "a finite number"),
    "integer": (r"^[+-]?\d{1,18}(\.0*)?$", "a whole number"),  # pandas writes 1.0 beside a null
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column that a table must or may have.

    kind: text stays as written; number is a finite float; integer a whole one.
    required: the table must have the column (an optional one that is absent is not in the result).
    nullable: cells may be empty (or NA, NaN, null …).
    unique: no value twice.
    aliases: other names that are taken for it.
    allowed: the only values there may be.
    """

    name: str
    kind: Literal["text", "number", "integer"] = "text"
    required: bool = True
    nullable: bool = False
    unique: bool = False
    aliases: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()


def read_table(
    uri: str, columns: Sequence[Column], *, keep_others: bool = False, comment: str = ""
) -> pa.Table:
    """A table of the columns asked for, in that order; others are dropped unless kept (as text).

    Args:
        uri: the table, local or s3://.
        columns: what it must and may have.
        keep_others: add its other columns, as text, under their own names.
        comment: lines before the header that start with this are passed over.

    Raises:
        TableError: the file, a column or a cell is not what it should be.
    """
    raw = read_as_text(uri, comment=comment)
    places = _find_columns(uri, raw.column_names, columns)
    made = {
        column.name: _checked(uri, raw.column(places[column.name]), column)
        for column in columns
        if column.name in places
    }
    if keep_others:
        made |= {n: raw.column(n) for n in raw.column_names if n not in {*places.values(), *made}}
    return pa.table(made)


def write_table(uri: str, table: pa.Table) -> None:
    """Write a table whole, as CSV, TSV or Parquet by its name; equal tables give equal bytes."""
    sink = io.BytesIO()
    if uri.endswith(".parquet"):
        pq.write_table(table, sink, compression="zstd")
    elif uri.endswith(".zip"):
        raise TableError(f"{uri}: zip is not written. Name it .gz, or leave it unpacked.")
    else:
        options = pa.csv.WriteOptions(delimiter=delimiter_of(uri), quoting_style="needed")
        pa.csv.write_csv(table, sink, options)
    data = sink.getvalue()
    objects.write_whole(uri, gzip.compress(data, mtime=0) if uri.endswith(".gz") else data)


def column_names(uri: str, *, comment: str = "") -> list[str]:
    """The header alone, without reading the rows."""
    return read_header(uri, comment=comment)


def _find_columns(uri: str, names: Sequence[str], columns: Sequence[Column]) -> dict[str, str]:
    """Column → the name that the file gives it."""
    found = {}
    for column in columns:
        name = _find_column(uri, names, column)
        if name is not None:
            found[column.name] = name
        elif column.required:
            other = f" (or {', '.join(column.aliases)})" if column.aliases else ""
            shown = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
            way_out = separator_hint(uri, names) or " Rename the column that holds it."
            raise TableError(
                f"{uri}: expected a column {column.name}{other}, got {shown[:200]}.{way_out}"
            )
    return found


def _find_column(uri: str, names: Sequence[str], column: Column) -> str | None:
    """As spelled, else in another case; the first alias that is there."""
    for spelling in (column.name, *column.aliases):
        if spelling in names:
            return spelling
        alike = [name for name in names if name.lower() == spelling.lower()]
        if len(alike) > 1:
            raise TableError(
                f"{uri}: columns {' and '.join(alike)} are both taken for {column.name}. Keep one "
                "of them."
            )
        if alike:
            return alike[0]
    return None


def _checked(uri: str, text: pa.ChunkedArray, column: Column) -> pa.ChunkedArray:
    """The column in its own type, every cell checked."""
    text = pc.utf8_trim_whitespace(text) if column.kind != "text" else text
    if not column.nullable and text.null_count:
        row = _first(pc.is_null(text))
        raise bad_cell(uri, row, column.name, "a value", None, "Fill it in or drop the row.")
    if column.unique:
        _refuse_twice(uri, text, column)
    if column.kind != "text":
        return _as_number(uri, text, column)
    if column.allowed:
        _refuse_others(uri, text, text, column)
    return text


def _as_number(uri: str, text: pa.ChunkedArray, column: Column) -> pa.ChunkedArray:
    pattern, what = _PATTERNS[column.kind]
    wrong = pc.invert(pc.match_substring_regex(text, pattern))
    _refuse(uri, column, wrong, text, what)
    text = pc.replace_substring_regex(text, r"^\+", "")
    if column.kind == "integer":
        whole = pc.replace_substring_regex(text, r"\..*$", "")
        if column.allowed:
            _refuse_others(uri, whole, text, column)
        return pc.cast(whole, pa.int64())
    numbers = pc.cast(text, pa.float64())
    _refuse(uri, column, pc.is_inf(numbers), text, what)  # 1e999
    return numbers


def _refuse_others(
    uri: str, values: pa.ChunkedArray, text: pa.ChunkedArray, column: Column
) -> None:
    wrong = pc.and_(pc.invert(pc.is_in(values, pa.array(column.allowed))), pc.is_valid(values))
    _refuse(uri, column, wrong, text, "/".join(column.allowed))


def _refuse(
    uri: str, column: Column, wrong: pa.ChunkedArray, text: pa.ChunkedArray, what: str
) -> None:
    wrong = pc.fill_null(wrong, False)
    if pc.any(wrong).as_py():
        row = _first(wrong)
        raise bad_cell(uri, row, column.name, what, text[row].as_py(), "Correct the cell.")


def _refuse_twice(uri: str, text: pa.ChunkedArray, column: Column) -> None:
    """One pass of counting; the rows are looked for only when there is something to name."""
    present = text.drop_null()
    if pc.count_distinct(present).as_py() == len(present):
        return
    counts = pc.value_counts(present)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
    first, second = list(_rows_of(text, twice))[:2]
    raise bad_cell(
        uri,
        second,
        column.name,
        f"a value not given before (row {first + 1:,} has it)",
        twice,
        "Keep one of the rows.",
    )


def _rows_of(text: pa.ChunkedArray, value: str) -> Iterator[int]:
    return iter(pc.indices_nonzero(pc.fill_null(pc.equal(text, value), False)).to_pylist())


def _first(mask: pa.ChunkedArray) -> int:
    return int(pc.index(mask, True).as_py())
