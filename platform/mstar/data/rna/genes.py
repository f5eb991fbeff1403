"""One name per gene (symbols, `SYMBOL|ENTREZ`, Ensembl ids), and rows that share one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from mstar.data import tables
from mstar.data.rna.config import DuplicateRule

_ENSEMBL = re.compile(r"^(ENS[A-Z]*G\d{11})(\.\d+)?(_PAR_Y)?$")
_ENSEMBL_PAR = re.compile(r"^ENSGR(\d{10})(\.\d+)?$")  # GENCODE before 25: the Y copy
_PIPED = re.compile(r"^(.*)\|(\d+)$")
_COUNTER_ROWS = re.compile(r"^(__\w+|N_(unmapped|multimapping|noFeature|ambiguous))$")
_NO_NAME = frozenset({"", "?", "NA", "NaN", "nan", "null", "None", "---", "."})
_DATE_LIKE = re.compile(r"^\d{1,2}-(Mar|Sep|Dec|Oct|Apr|Feb|Nov)$", re.IGNORECASE)

NOT_A_GENE = "not a gene"  # rows that sum up what an aligner left out
UNNAMED = "unnamed"


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneNamer:
    """Ids as tables write them → one name.

    known: other ids (Ensembl without version, Entrez number, anything) → name.
    """

    known: Mapping[str, str]

    def name(self, written: str, entrez: str = "") -> str:
        """The gene's name; UNNAMED when there is none, NOT_A_GENE for an aligner's counters.

        Ensembl ids lose their version, and the Y copy of a pseudoautosomal gene its mark, so that
        both become one gene. A row with an Entrez number but no symbol is `entrez:<number>`.
        """
        written = written.strip()
        if _COUNTER_ROWS.match(written):
            return NOT_A_GENE
        piped = _PIPED.match(written)
        symbol = piped[1] if piped else written
        number = piped[2] if piped else entrez.removesuffix(".0")
        number = number if number.isdigit() and int(number) else ""
        plain = strip_version(symbol)
        for key in (written, symbol, plain, number):
            if key in self.known and key not in _NO_NAME:
                return self.known[key]
        if plain not in _NO_NAME:
            return plain
        return f"entrez:{number}" if number else UNNAMED


def strip_version(name: str) -> str:
    """An Ensembl gene id without version and Y mark; any other name as it is."""
    if found := _ENSEMBL.match(name):
        return found[1]
    if found := _ENSEMBL_PAR.match(name):
        return f"ENSG0{found[1]}"
    return name


def is_date_like(name: str) -> bool:
    """Whether a spreadsheet turned the symbol into a date (MARCHF1 → 1-Mar)."""
    return _DATE_LIKE.match(name) is not None


def read_gene_map(uri: str) -> dict[str, str]:
    """Id → name, from a table with columns id and gene; ids also without their version.

    Raises:
        TableError: the table is not what it should be.
    """
    columns = (
        tables.Column(
            name="id",
            aliases=("ensembl_id", "gene_id", "ensembl_gene_id", "entrez_gene_id", "#id"),
            nullable=True,
        ),
        tables.Column(
            name="gene",
            aliases=("symbol", "hugo_symbol", "gene_name", "gene_symbol", "hgnc_symbol"),
            nullable=True,
        ),
    )
    table = tables.read_table(uri, columns)
    known: dict[str, str] = {}
    pairs = zip(table.column("id").to_pylist(), table.column("gene").to_pylist(), strict=True)
    for written, name in pairs:
        if written and name:
            known.setdefault(written.strip(), name.strip())
            known.setdefault(strip_version(written.strip()), name.strip())
    return known


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GenePlan:
    """How the rows of one table become genes.

    first_row: per gene, its first row; -1 when the table lacks it.
    repeats: genes of more than one row, with all of their rows.
    """

    genes: tuple[str, ...]
    first_row: Int64[np.ndarray, " gene"]
    repeats: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def absent(self) -> Int64[np.ndarray, " absent"]:
        """Indices of the genes that the table lacks."""
        return np.flatnonzero(self.first_row < 0)


def plan_genes(row_names: Sequence[str], genes: Sequence[str]) -> GenePlan:
    """Which rows make each of the genes."""
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(row_names):
        rows_of.setdefault(name, []).append(row)
    found = [rows_of.get(name, [-1]) for name in genes]
    return GenePlan(
        genes=tuple(genes),
        first_row=np.array([rows[0] for rows in found], dtype=np.int64),
        repeats=tuple((gene, tuple(rows)) for gene, rows in enumerate(found) if len(rows) > 1),
    )


def merge_rows(
    values: Float32[np.ndarray, "case row"], plan: GenePlan, rule: DuplicateRule
) -> Float32[np.ndarray, "case gene"]:
    """Linear values per gene; genes that the table lacks are zero."""
    merged = values[:, plan.first_row]
    merged[:, plan.absent] = 0.0
    if rule in ("first", "error"):  # `error` was refused where the second row was read
        return merged
    for gene, rows in plan.repeats:
        merged[:, gene] = _joined(values[:, list(rows)].astype(np.float64), rule)
    return merged


def _joined(rows: Float64[np.ndarray, "case row"], rule: str) -> Float64[np.ndarray, " case"]:
    joined: Float64[np.ndarray, " case"]
    if rule == "sum":
        joined = rows.sum(axis=1)
    elif rule == "mean":
        joined = rows.mean(axis=1)
    else:
        assert rule == "max"
        joined = rows.max(axis=1)
    return joined
