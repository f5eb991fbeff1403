"""Gene expression of a task's samples, in a vocabulary and groups that no single case decides.

    reader = GeneReader(GeneSettings(source="C/expression", signatures="C/signatures.csv"))
    kept, dropped = reader.with_genes(table, samples)
    genes = reader.of(kept)                 # goes into TaskData.genes
    genes.values()                          # [sample, gene], NaN where a gene was not measured

A sample's row is looked for under the name that its label table gives (column RNA), then under its
case id. What is wrong is an error with file and way out; what is left out is counted.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from mstar.data.label_tables.samples import LabelTable, Sample
from mstar.data.rna.case_files import SUFFIX, CaseFiles, Scale, read_case_files
from mstar.data.rna.signatures import GeneGroups, RepeatedGenes, read_signatures
from mstar.data.rna.store import FACTS, ExpressionStore
from mstar.errors import CohortError
from mstar.storage import objects

MissingGenes = Literal["mean", "zero", "error"]
MissingRna = Literal["drop", "error"]
NO_RNA = "no gene expression"


@runtime_checkable
class GeneSource(Protocol):
    """Rows of gene expression by name: an expression store, or files of cases."""

    folder: str
    genes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Names the content."""

    def __contains__(self, key: object) -> bool:
        """Whether there is a row of that name."""

    def rows(self, keys: Sequence[str], /) -> Float32[np.ndarray, "case gene"]:
        """Some rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneSettings:
    """Where gene expression is, and what becomes of what it lacks."""

    source: str
    """Expression store (C/expression), or a folder of <case>.csv files."""
    signatures: str = ""
    """Signature table (`mstar.data.rna.signatures`); empty: genes have no groups."""
    missing_genes: MissingGenes = "mean"
    """A gene that a case lacks: mean (of the training split), zero (not expressed), or refused."""
    missing_rna: MissingRna = "drop"
    """A case without expression: left out and counted, as in the paper, or refused."""
    repeated_genes: RepeatedGenes = "error"
    """A gene twice in a group: refused, or dropped and counted."""
    scale: Scale = "log"
    """Of the values in <case>.csv files: log, or linear (log(1 + value) is taken)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskGenes:
    """The gene expression of a task's samples, not read yet.

    keys: the row of each sample. columns: of each group the places of its genes.
    layout: digest of vocabulary and groups: what a trained head must find again.
    digest: of all that decides a number.
    facts: counts for summaries and records.
    """

    source: GeneSource
    keys: tuple[str, ...]
    groups: tuple[str, ...]
    columns: tuple[Int64[np.ndarray, " _"], ...]
    missing: MissingGenes
    layout: str
    digest: str
    facts: Mapping[str, Any]

    def values(self) -> Float32[np.ndarray, "sample gene"]:
        """Logarithmic expression of each sample; NaN where the training mean is to be taken."""
        values = np.asarray(self.source.rows(self.keys), np.float32)
        if self.missing == "zero":
            values = np.nan_to_num(values, nan=0.0)
        return values


class GeneReader:
    """Reads source and signatures when they are first needed, once for all tasks."""

    def __init__(self, settings: GeneSettings) -> None:
        """Nothing is read yet."""
        self.settings = settings

    @cached_property
    def source(self) -> GeneSource:
        """The expression itself."""
        folder = self.settings.source
        if objects.exists(objects.join(folder, FACTS)):
            return ExpressionStore.open(folder)
        return read_case_files(folder, self.settings.scale)

    @cached_property
    def groups(self) -> GeneGroups | None:
        """The signature table, if one is given."""
        if not self.settings.signatures:
            return None
        return read_signatures(self.settings.signatures, self.settings.repeated_genes)

    @cached_property
    def columns(self) -> tuple[Int64[np.ndarray, " _"], ...]:
        """Places of the genes of each group."""
        return self.groups.columns(self.source.genes) if self.groups else ()

    def key_of(self, sample: Sample) -> str | None:
        """The row of a sample; None where it has none."""
        empty = self.source.zero_cases if isinstance(self.source, ExpressionStore) else frozenset()
        for name in (sample.rna, (sample.rna or "").removesuffix(SUFFIX), sample.case_id):
            if name and name in self.source and name not in empty:
                return name
        return None

    def with_genes(
        self, table: LabelTable, samples: Sequence[Sample]
    ) -> tuple[list[Sample], Counter[str]]:
        """The samples that have expression; the others counted.

        Raises:
            CohortError: one has none where that is refused, or none has any.
        """
        kept = [sample for sample in samples if self.key_of(sample) is not None]
        left = len(samples) - len(kept)
        if left and (self.settings.missing_rna == "error" or not kept):
            first = next(s for s in samples if self.key_of(s) is None)
            raise CohortError(
                f"{table.uri}: row {first.row:,}, case {first.case_id}: expected its gene "
                f"expression in {self.source.folder}, got none; {left:,} of {len(samples):,} "
                "samples like this. Correct the ids, or leave such cases out with --missing-rna "
                "drop."
            )
        return kept, Counter({NO_RNA: left} if left else {})

    def of(self, samples: Sequence[Sample]) -> TaskGenes:
        """The genes of samples that all have some.

        Raises:
            CohortError: a gene is missing where that is refused.
        """
        keys = tuple(key for sample in samples if (key := self.key_of(sample)) is not None)
        assert len(keys) == len(samples)
        source, columns = self.source, self.columns
        if isinstance(source, CaseFiles):
            source = source.only(keys)
        layout = _digest([source.genes, self.groups.names if self.groups else ()], *columns)
        missing = self.settings.missing_genes
        return TaskGenes(
            source=source,
            keys=keys,
            groups=self.groups.names if self.groups else (),
            columns=columns,
            missing=missing,
            layout=layout,
            digest=_digest([layout, source.digest, keys, missing]),
            facts=self._facts(source, keys),
        )

    def _facts(self, source: GeneSource, keys: Sequence[str]) -> dict[str, Any]:
        """How many genes, how many of each group, and how many are missing in how many cases."""
        lacking = 0
        cells = 0
        if isinstance(source, CaseFiles):  # a store lacks nothing: its own policy saw to it
            absent = np.isnan(source.rows(keys))
            cells, lacking = int(absent.sum()), int(absent.any(1).sum())
            if lacking and self.settings.missing_genes == "error":
                case, gene = np.argwhere(absent)[0].tolist()
                raise CohortError(
                    f"{source.folder}/{keys[case]}{SUFFIX}: expected a value of gene "
                    f"{source.genes[gene]}, got none; {lacking:,} of {len(keys):,} cases lack some "
                    "gene. Take --missing-genes mean or zero."
                )
        facts: dict[str, Any] = {
            "genes": len(source.genes),
            "missing_genes": self.settings.missing_genes,
            "values_missing": cells,
            "cases_missing_some": lacking,
        }
        if self.groups:
            listed = zip(self.groups.names, self.groups.genes, self.columns, strict=True)
            facts["groups"] = {name: [len(own), len(all_)] for name, all_, own in listed}
            facts["genes_in_no_group"] = len(source.genes) - len(
                np.unique(np.concatenate(self.columns))
            )
            facts["repeated_in_groups"] = self.groups.repeated
        return facts


def _digest(parts: Any, *arrays: np.ndarray) -> str:
    hasher = hashlib.sha256(json.dumps(parts).encode())
    for array in arrays:
        hasher.update(array.tobytes() + b"|")
    return hasher.hexdigest()
