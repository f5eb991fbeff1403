"""Signature tables: groups of genes, a column each, that fusion heads read apart.

    Tumor Suppressor Genes,Oncogenes,Protein Kinases,…
    TP53,MYC,EGFR,…
    RB1,KRAS,,…

The header names the groups; below are gene names, in any order, empty where a column is shorter. A
gene may be in several groups. Published tables (MCAT's, which the mSTAR paper uses too) have six:
tumour suppressors, oncogenes, protein kinases, cell differentiation markers, transcription factors,
cytokines and growth factors. Any number is taken.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from mstar.data.tables import Column, bad_cell, column_names, read_table
from mstar.errors import TableError

RepeatedGenes = Literal["error", "drop"]
_INDEX = ("", "Unnamed: 0")  # how pandas names the index that it writes
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneGroups:
    """Groups of genes as a signature table lists them.

    genes: of each group, in the table's order, each once.
    repeated: cells that were left out because the group had the gene already.
    """

    uri: str
    names: tuple[str, ...]
    genes: tuple[tuple[str, ...], ...]
    repeated: int = 0

    @property
    def digest(self) -> str:
        """Of names and genes."""
        return hashlib.sha256(json.dumps([self.names, self.genes]).encode()).hexdigest()

    def columns(self, vocabulary: Sequence[str]) -> tuple[Int64[np.ndarray, " _"], ...]:
        """Of each group the places of its genes in a vocabulary; genes that it lacks are left out.

        Raises:
            TableError: a group has no gene of the vocabulary.
        """
        places = {gene: place for place, gene in enumerate(vocabulary)}
        found = [[places[gene] for gene in group if gene in places] for group in self.genes]
        if empty := [name for name, own in zip(self.names, found, strict=True) if not own]:
            raise self._absent(empty, vocabulary)
        return tuple(np.asarray(own, np.int64) for own in found)

    def _absent(self, empty: Sequence[str], vocabulary: Sequence[str]) -> TableError:
        if len(empty) == len(self.names):
            told = "no gene of the expression is in any group"
            way_out = "Are the ids of one kind? Names like TP53 are expected in both."
        else:
            told = f"group {empty[0]}: none of its genes is among the {len(vocabulary):,} measured"
            way_out = "Correct the names, or leave the group out."
        listed = self.genes[self.names.index(empty[0])][:_SHOWN]
        return TableError(
            f"{self.uri}: {told}: the table lists {', '.join(listed)} …, the expression has "
            f"{', '.join(vocabulary[:_SHOWN])} …. {way_out}"
        )


def read_signatures(uri: str, repeated: RepeatedGenes = "error") -> GeneGroups:
    """The groups of a signature table.

    Args:
        uri: CSV, TSV or Parquet, a column a group.
        repeated: what to do with a gene that a group lists twice: refuse it, or drop and count it.

    Raises:
        TableError: two groups of one name, a gene twice in a group, an empty group, or no group.
    """
    names = tuple(name for name in column_names(uri) if name not in _INDEX)
    if not names:
        raise TableError(f"{uri}: expected a column for each group of genes, got none.")
    table = read_table(uri, [Column(name=name, nullable=True) for name in names])
    groups, dropped = [], 0
    for name in names:
        genes, twice = _group(uri, name, table.column(name).to_pylist(), repeated)
        groups.append(genes)
        dropped += twice
    return GeneGroups(uri=uri, names=names, genes=tuple(groups), repeated=dropped)


def _group(
    uri: str, name: str, cells: Sequence[str | None], repeated: RepeatedGenes
) -> tuple[tuple[str, ...], int]:
    """The genes of one group, and how often one came again."""
    seen: dict[str, int] = {}
    twice = 0
    for row, cell in enumerate(cells):
        gene = (cell or "").strip()
        if not gene:
            continue
        if gene in seen:
            twice += 1
            if repeated == "error":
                expected = f"a gene not given before (row {seen[gene] + 1:,} of the group has it)"
                way_out = "Keep one of them, or drop such rows with --repeated-genes drop."
                raise bad_cell(uri, row, name, expected, gene, way_out)
        seen.setdefault(gene, row)
    if not seen:
        raise TableError(f"{uri}: group {name}: expected genes, got none. Leave the column out.")
    return tuple(seen), twice
