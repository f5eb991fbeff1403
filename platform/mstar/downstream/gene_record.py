"""The genes that a study's models read, so that new cases are read alike: `<study>/genes.json`.

    genes      names, in the order of the models' input
    groups     name → places of its genes
    missing    what became of a gene that a case lacked
    unit       of the expression store before the logarithm; empty: it was files of cases

A new case's genes are found by their names, so its table may hold others too, in any order.
"""

import json
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32

from mstar.config import to_json
from mstar.data.label_tables import Sample
from mstar.data.rna.store import ExpressionStore
from mstar.data.task_genes import GeneReader, MissingGenes, TaskGenes
from mstar.errors import CohortError, WeightsError
from mstar.models.heads import GroupedGenes
from mstar.storage import objects

FILE = "genes.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneRecord:
    """What `genes.json` holds; see the module. layout: its digest, as the models know it."""

    genes: tuple[str, ...]
    groups: dict[str, tuple[int, ...]]
    missing: MissingGenes
    unit: str
    layout: str

    def grouped(self, row: Float32[np.ndarray, " gene"], device: str = "cpu") -> GroupedGenes:
        """One case's expression as heads take it; NaN becomes the mean of the training part."""
        own = self.groups.values()
        return GroupedGenes(
            values=torch.from_numpy(row)[None].to(device),
            columns=tuple(torch.tensor(p, dtype=torch.int64, device=device) for p in own),
        )


def write_gene_record(folder: str, genes: TaskGenes) -> None:
    """Write what the models of a study read."""
    source = genes.source
    record = {
        "genes": list(source.genes),
        "groups": {
            name: own.tolist() for name, own in zip(genes.groups, genes.columns, strict=True)
        },
        "missing": genes.missing,
        "unit": source.unit if isinstance(source, ExpressionStore) else "",
        "layout": genes.layout,
    }
    objects.write_whole(objects.join(folder, FILE), to_json(record).encode())


def read_gene_record(folder: str, layout: str) -> GeneRecord:
    """The record of a study's folder.

    Raises:
        WeightsError: there is none, or it is of other models than those of the layout.
    """
    uri = objects.join(folder, FILE)
    try:
        found = json.loads(objects.read_bytes(uri))
    except FileNotFoundError as error:
        raise WeightsError(
            f"{uri}: expected the names of the genes that the models of this study read, got no "
            "file. It was trained by an older mstar: train it again."
        ) from error
    if found["layout"] != layout:
        raise WeightsError(
            f"{uri}: expected the genes of these models ({layout[:12]}), got others "
            f"({found['layout'][:12]}). Give the whole folder of the study."
        )
    return GeneRecord(
        genes=tuple(found["genes"]),
        groups={name: tuple(places) for name, places in found["groups"].items()},
        missing=found["missing"],
        unit=found["unit"],
        layout=found["layout"],
    )


class NewGenes:
    """Gene expression of new cases, in the order that a study's models read it."""

    def __init__(self, record: GeneRecord, reader: GeneReader) -> None:
        """Read where genes are.

        Raises:
            CohortError: none of the record's genes is there, or the unit is another.
        """
        source = reader.source
        self._record, self._reader = record, reader
        unit = source.unit if isinstance(source, ExpressionStore) else ""
        if unit and record.unit and unit != record.unit:
            raise CohortError(
                f"{source.folder}: expected expression in {record.unit}, as the models were "
                f"trained on, got {unit}. Build the store from {record.unit}."
            )
        places = {gene: place for place, gene in enumerate(source.genes)}
        self._found = [at for at, gene in enumerate(record.genes) if gene in places]
        self._taken = [places[record.genes[at]] for at in self._found]
        if not self._found:
            raise CohortError(
                f"{source.folder}: expected genes like {', '.join(record.genes[:3])}, got none of "
                f"the {len(record.genes):,} that the models read. Give the same kind of names."
            )

    @property
    def folder(self) -> str:
        """Where they are from."""
        return self._reader.source.folder

    def row(self, case_id: str) -> Float32[np.ndarray, " gene"]:
        """The expression of a case; NaN where the mean of the training part is to be taken.

        Raises:
            CohortError: it has none, or lacks a gene where the study refused that.
        """
        key = self._reader.key_of(Sample(case_id=case_id, slides=(), row=1, patient=case_id))
        if key is None:
            raise CohortError(
                f"case {case_id}: expected its gene expression in {self.folder}, got none. The "
                "models read slides and genes together: without genes there is no prediction."
            )
        row = np.full(len(self._record.genes), np.nan, np.float32)
        row[self._found] = self._reader.source.rows([key])[0][self._taken]
        absent = np.flatnonzero(np.isnan(row))
        if len(absent) == len(row):
            raise CohortError(f"case {case_id}: {self.folder} has no value of any of its genes.")
        if len(absent) and self._record.missing == "error":
            raise CohortError(
                f"case {case_id}: expected a value of gene {self._record.genes[absent[0]]} in "
                f"{self.folder}, got none; {len(absent):,} genes like this, and the study refused "
                "cases that lack one."
            )
        return np.nan_to_num(row, nan=0.0) if self._record.missing == "zero" else row
