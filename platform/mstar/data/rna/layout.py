"""Which way round a matrix lies, and which of its columns are ids, numbers or neither."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from mstar.data.rna.config import ExpressionConfig
from mstar.errors import TableError

GENE_COLUMNS = (  # in order of preference: names before numbers
    "hugo_symbol", "hgnc_symbol", "gene_symbol", "genesymbol", "symbol", "gene_name", "gene",
    "genes", "gene_id", "geneid", "ensembl_id", "ensembl_gene_id", "ensembl", "hybridization ref",
    "composite element ref",
)  # fmt: skip
ENTREZ_COLUMNS = ("entrez_gene_id", "entrez_id", "entrezid", "entrezgene", "entrez")
SAMPLE_COLUMNS = (
    "case_id", "case", "patient_id", "patient", "sample_id", "sample_name", "sampleid", "barcode",
    "sample_barcode", "bcr_patient_barcode", "submitter_id",
)  # fmt: skip
ID_COLUMNS = frozenset((*GENE_COLUMNS, *ENTREZ_COLUMNS, *SAMPLE_COLUMNS))
ANNOTATION_COLUMNS = frozenset({
    "cytoband", "description", "gene_type", "gene_biotype", "biotype", "chromosome", "chrom",
    "gene_length", "locus_id",
})  # fmt: skip
_COMMON_GENES = frozenset(
    {
        "TP53",
        "EGFR",
        "MYC",
        "PTEN",
        "KRAS",
        "ACTB",
        "GAPDH",
        "A1BG",
        "BRCA1",
        "ERBB2",
        "ESR1",
        "RB1",
    }
)
_GENE_LIKE = re.compile(r"^(ENS[A-Z]*G\d{11}(\.\d+)?(_PAR_Y)?|[^|]+\|\d+)$")
_SAMPLE_LIKE = re.compile(r"^(TCGA|GTEX|TARGET|CPTAC|C3[LN]|GEN)-\w")
_LOOKED_AT = 2_000

RowId = tuple[str, str]  # name, Entrez number or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixLayout:
    """Where things are in one matrix.

    genes_by_cases: rows are genes; otherwise rows are samples.
    columns: every column's name, as in the file.
    row_id: index of the column that names the rows.
    entrez: index of the column of Entrez numbers of the rows, None without one.
    value_columns: indices of the columns of numbers: samples, or genes.
    """

    uri: str
    genes_by_cases: bool
    columns: tuple[str, ...]
    row_id: int
    entrez: int | None
    value_columns: tuple[int, ...]

    @property
    def value_names(self) -> tuple[str, ...]:
        """Names of the columns of numbers."""
        return tuple(self.columns[index] for index in self.value_columns)

    def label(self, row_name: str, column_name: str) -> str:
        """How an error names a cell's column, with the row's own name."""
        return f"{column_name} ({'gene' if self.genes_by_cases else 'sample'} {row_name})"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """Some rows of a file with all columns, or some columns with all rows; NaN: an empty cell."""

    first_row: int
    first_column: int  # among the columns of numbers
    rows: tuple[RowId, ...]
    columns: tuple[str, ...]
    values: Float64[np.ndarray, "row column"]


def find_layout(
    uri: str, columns: Sequence[str], first_rows: Sequence[Sequence[str]], config: ExpressionConfig
) -> MatrixLayout:
    """The layout of a matrix from its header and first rows.

    Raises:
        TableError: it cannot be told, or names are missing or repeated.
    """
    names = [name.strip() for name in columns]
    places = {name.lower(): index for index, name in reversed(list(enumerate(names)))}
    genes_by_cases = _orientation(uri, names, places, first_rows, config)
    wanted = GENE_COLUMNS + ENTREZ_COLUMNS if genes_by_cases else SAMPLE_COLUMNS
    row_id = next((places[name] for name in wanted if name in places), 0)
    entrez = next((places[n] for n in ENTREZ_COLUMNS if n in places), None)
    entrez = entrez if genes_by_cases else None
    others = _not_values(names, config, genes_by_cases) | {row_id, -1 if entrez is None else entrez}
    values = tuple(index for index in range(len(names)) if index not in others)
    _check_values(uri, names, values)
    return MatrixLayout(
        uri=uri,
        genes_by_cases=genes_by_cases,
        columns=tuple(names),
        row_id=row_id,
        entrez=entrez,
        value_columns=values,
    )


def _orientation(
    uri: str,
    names: Sequence[str],
    places: dict[str, int],
    first_rows: Sequence[Sequence[str]],
    config: ExpressionConfig,
) -> bool:
    """Whether rows are genes: as stated, by the id columns' names, or by what the ids look like."""
    if config.orientation != "auto":
        return config.orientation == "genes-by-cases"
    genes = any(name in places for name in GENE_COLUMNS + ENTREZ_COLUMNS)
    samples = any(name in places for name in SAMPLE_COLUMNS)
    if genes != samples:
        return genes
    row_names = [row[0].strip() for row in first_rows if row]
    rows_are_genes = _any_gene(row_names) or any(map(_SAMPLE_LIKE.match, names[1:_LOOKED_AT]))
    rows_are_samples = any(map(_SAMPLE_LIKE.match, row_names)) or _any_gene(names[1:])
    if rows_are_genes != rows_are_samples:
        return rows_are_genes
    raise TableError(
        f"{uri}: expected a gene column ({', '.join(GENE_COLUMNS[:6])} …) or a sample column "
        f"({', '.join(SAMPLE_COLUMNS[:6])} …), got {', '.join(names[:6])} …; neither these nor the "
        "ids tell genes from samples. State the orientation: genes-by-cases or cases-by-genes."
    )


def _any_gene(names: Sequence[str]) -> bool:
    return any(name in _COMMON_GENES or _GENE_LIKE.match(name) for name in names)


def _not_values(names: Sequence[str], config: ExpressionConfig, genes_by_cases: bool) -> set[int]:
    known = ANNOTATION_COLUMNS | {name.lower() for name in config.ignore_columns}
    if genes_by_cases:
        known |= {*GENE_COLUMNS, *ENTREZ_COLUMNS}
    return {index for index, name in enumerate(names) if name.lower() in known}


def _check_values(uri: str, names: Sequence[str], values: Sequence[int]) -> None:
    if not values:
        raise TableError(
            f"{uri}: expected columns of numbers, got only {', '.join(names[:8]) or 'nothing'}. "
            "Check the separator: tab or comma."
        )
    nameless = next((index for index in values if not names[index]), None)
    if nameless is not None:
        raise TableError(f"{uri}: column {nameless + 1:,} has no name. Name it or remove it.")
    counts = Counter(names[index] for index in values)
    twice, times = counts.most_common(1)[0]
    if times > 1:
        first, second = [i + 1 for i in values if names[i] == twice][:2]
        raise TableError(
            f"{uri}: column {twice} comes twice (columns {first:,} and {second:,}). Keep one."
        )
