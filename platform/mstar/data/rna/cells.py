"""Cells of numbers, from text: fast when all is well, by row and column when something is not."""

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import Float64

from mstar.data import tables
from mstar.data.rna.layout import MatrixLayout

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WAY_OUT = "Correct the cell, or name its column in ignore_columns if it holds no expression."


def parse_cells(
    layout: MatrixLayout,
    payloads: Sequence[bytes],
    delimiter: bytes,
    first_row: int,
    row_names: Sequence[str],
) -> Float64[np.ndarray, "row column"]:
    """The numbers of some rows, each a run of cells with the delimiter between them.

    Empty cells and the usual words for nothing become NaN.

    Raises:
        TableError: a cell is no number.
    """
    shape = (len(payloads), len(layout.value_columns))
    column = b"\n".join(payloads).replace(delimiter, b"\n") + b"\n"
    try:
        parsed = _parse_column(column)
    except pa.ArrowInvalid:
        return _parse_slowly(layout, payloads, delimiter, first_row, row_names)
    assert len(parsed) == shape[0] * shape[1]
    return parsed.reshape(shape)


def _parse_column(text: bytes) -> Float64[np.ndarray, " cell"]:
    table = pa.csv.read_csv(
        pa.BufferReader(text),
        read_options=pa.csv.ReadOptions(column_names=["x"], block_size=1 << 22),
        parse_options=pa.csv.ParseOptions(
            delimiter="\x01", quote_char=False, ignore_empty_lines=False
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types={"x": pa.float64()}, null_values=list(tables.NULLS)
        ),
    )
    return np.asarray(table.column("x").to_numpy(), dtype=np.float64)


def _parse_slowly(
    layout: MatrixLayout,
    payloads: Sequence[bytes],
    delimiter: bytes,
    first_row: int,
    row_names: Sequence[str],
) -> Float64[np.ndarray, "row column"]:
    """Cell by cell: what Arrow does not take (`+1`) is a number too, anything else is named."""
    values = np.empty((len(payloads), len(layout.value_columns)))
    for row, payload in enumerate(payloads):
        for place, cell in enumerate(payload.split(delimiter)):
            text = cell.decode("utf-8", "replace").strip()
            if text in tables.NULLS:
                values[row, place] = np.nan
            elif _NUMBER.fullmatch(text):
                values[row, place] = float(text)
            else:
                label = layout.label(row_names[row], layout.value_names[place])
                raise tables.bad_cell(
                    layout.uri, first_row + row, label, "a number", text, _WAY_OUT
                )
    return values
