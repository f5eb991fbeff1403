"""A matrix of any format, in blocks that are oriented the same way."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from mstar.data import tables
from mstar.data.rna import parquet_matrix, text_matrix
from mstar.data.rna.config import ExpressionConfig
from mstar.data.rna.layout import MatrixLayout, Piece, RowId
from mstar.errors import TableError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """Some genes of all samples, or all genes of some samples; NaN where a cell is empty.

    first_sample, first_gene: where the block lies in the matrix, counted in its samples and genes.
    """

    first_sample: int
    first_gene: int
    samples: tuple[str, ...]
    genes: tuple[RowId, ...]
    values: Float64[np.ndarray, "sample gene"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """An open matrix: its blocks can be taken once.

    first_row: rows of the file before the first of the matrix (a second header is one).
    hint: what a second header says of the numbers, else empty.
    """

    layout: MatrixLayout
    first_row: int
    hint: str
    blocks: Iterator[Block]

    def bad_cell(
        self, sample: int, gene: int, names: tuple[str, str], what: str, got: object, way_out: str
    ) -> TableError:
        """The error of one cell, by the place of its sample and gene and by their names."""
        rows_are_genes = self.layout.genes_by_cases
        row, pair = (gene, names[::-1]) if rows_are_genes else (sample, names)
        return tables.bad_cell(
            self.layout.uri, self.first_row + row, self.layout.label(*pair), what, got, way_out
        )


@contextmanager
def open_matrix(uri: str, config: ExpressionConfig) -> Iterator[Matrix]:
    """Opens a matrix: Parquet by its name, text otherwise (gzip by its name).

    Raises:
        TableError: there is none, or it is malformed; also while the blocks are taken.
    """
    opened = parquet_matrix.opened if uri.endswith(".parquet") else text_matrix.opened
    with opened(uri, config) as (layout, first_row, hint, pieces):
        blocks = _oriented(layout, pieces)
        yield Matrix(layout=layout, first_row=first_row, hint=hint, blocks=blocks)


def sample_names(source_uri: str, config: ExpressionConfig) -> list[str]:
    """The samples of a matrix in its order, without reading its numbers.

    Raises:
        TableError: there is no such matrix, or its header is malformed, or a sample comes twice.
    """
    names = parquet_matrix if source_uri.endswith(".parquet") else text_matrix
    found: list[str] = names.sample_names(source_uri, config)
    refuse_repeated(source_uri, found)
    return found


def refuse_repeated(uri: str, samples: list[str], first_row: int = 0) -> None:
    """Refuses a sample that has two rows."""
    seen: dict[str, int] = {}
    for index, name in enumerate(samples):
        if name in seen:
            raise tables.bad_cell(
                uri,
                first_row + index,
                "of sample names",
                f"a sample not given before (row {first_row + seen[name] + 1:,} has it)",
                name,
                "Keep one of the rows.",
            )
        seen[name] = index


def _oriented(layout: MatrixLayout, pieces: Iterator[Piece]) -> Iterator[Block]:
    for piece in pieces:
        if layout.genes_by_cases:
            yield Block(
                first_sample=piece.first_column,
                first_gene=piece.first_row,
                samples=piece.columns,
                genes=piece.rows,
                values=piece.values.T,
            )
        else:
            yield Block(
                first_sample=piece.first_row,
                first_gene=piece.first_column,
                samples=tuple(name for name, _ in piece.rows),
                genes=tuple((name, "") for name in piece.columns),
                values=piece.values,
            )
