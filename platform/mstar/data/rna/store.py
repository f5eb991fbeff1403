"""The expression store: rows of log1p'd values by case, memory-mapped.

    values.npy          float32 [case, gene]
    rows.csv            case_id, in the order of the rows
    genes.csv           gene, in the order of the columns
    gene_vectors.npy    float32 [gene, dim], only when the vocabulary came with vectors
    expression.json     unit, transform, policies, counts, digests; written last: a folder that has
                        it is complete

Equal tables and settings give equal bytes.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float32

from mstar.data import tables
from mstar.errors import CohortError
from mstar.storage import objects

SCHEMA_VERSION = 1
FACTS, VALUES, ROWS, GENES = "expression.json", "values.npy", "rows.csv", "genes.csv"
VECTORS = "gene_vectors.npy"


class ExpressionStore:
    """Reads a store; a copy in another process opens the files anew instead of carrying them."""

    def __init__(self, folder: str) -> None:
        """Opens a store; `open` says the same.

        Raises:
            CohortError: there is none, or its files do not belong together.
        """
        self.folder = folder
        try:
            self.facts: dict[str, Any] = json.loads(objects.read_bytes(objects.join(folder, FACTS)))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CohortError(
                f"{folder}: expected an expression store, got no {FACTS}. Build the cohort "
                "with RNA."
            ) from error
        self.case_ids = _read_column(objects.join(folder, ROWS), "case_id")
        self.genes = _read_column(objects.join(folder, GENES), "gene")
        self._places = {case_id: row for row, case_id in enumerate(self.case_ids)}
        self._values = _open_values(objects.join(folder, VALUES))
        expected = (len(self.case_ids), len(self.genes))
        if self._values.shape != expected:
            raise CohortError(
                f"{folder}: {VALUES}: expected {expected} as {ROWS} and {GENES} say, got "
                f"{self._values.shape}. Build the store anew."
            )

    @staticmethod
    def open(folder: str) -> "ExpressionStore":
        """Opens the store in a folder, on disk or in an object store.

        Raises:
            CohortError: there is none, or its files do not belong together.
        """
        return ExpressionStore(folder)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Pickles as its address."""
        return ExpressionStore, (self.folder,)

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.case_ids)

    def __contains__(self, case_id: object) -> bool:
        """Whether the case has a row."""
        return case_id in self._places

    @property
    def digest(self) -> str:
        """Names the content: values, cases, genes and vectors."""
        return str(self.facts["digest"])

    @property
    def unit(self) -> str:
        """Unit before the logarithm: rsem, tpm, fpkm or counts."""
        return str(self.facts["unit"])

    @property
    def zero_cases(self) -> frozenset[str]:
        """Cases without any expression."""
        return frozenset(self.facts["counts"]["zero_cases"])

    @cached_property
    def gene_vectors(self) -> Float32[np.ndarray, "gene dim"] | None:
        """Frozen gene vectors in the order of `genes`, None when they are to be learned."""
        if not self.facts["gene_vectors"]:
            return None
        data = objects.read_bytes(objects.join(self.folder, VECTORS))
        vectors: Float32[np.ndarray, "gene dim"] = np.load(io.BytesIO(data))
        return vectors

    def row(self, case_id: str) -> Float32[np.ndarray, " gene"]:
        """One case's values, a copy.

        Raises:
            CohortError: the case has no row.
        """
        row: Float32[np.ndarray, " gene"] = self.rows([case_id])[0]
        return row

    def rows(self, case_ids: Sequence[str]) -> Float32[np.ndarray, "case gene"]:
        """Some cases' values in the order asked for, a copy.

        Raises:
            CohortError: a case has no row.
        """
        absent = next((case_id for case_id in case_ids if case_id not in self._places), None)
        if absent is not None:
            raise CohortError(
                f"{self.folder}: case {absent} has no expression ({len(self):,} cases have). "
                "Leave its rna empty in the case table."
            )
        return self._values.rows([self._places[case_id] for case_id in case_ids])

    def verify(self) -> None:
        """Reads everything and compares it with the digest.

        Raises:
            CohortError: a file is not the one that was written.
        """
        for name, expected in self.facts["sha256"].items():
            with objects.open_read(objects.join(self.folder, name)) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != expected:
                raise CohortError(
                    f"{self.folder}/{name}: expected sha256 {expected[:16]}, got {found[:16]}. "
                    "Build the store anew."
                )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Values:
    """values.npy: mapped on a disk, read by ranges from an object store."""

    uri: str
    shape: tuple[int, ...]
    offset: int
    tag: str
    mapped: Float32[np.ndarray, "case gene"] | None

    def rows(self, places: Sequence[int]) -> Float32[np.ndarray, "case gene"]:
        if self.mapped is not None:
            mapped: Float32[np.ndarray, "case gene"] = np.array(self.mapped[list(places)])
            return mapped
        line_bytes = self.shape[1] * 4
        found = np.empty((len(places), self.shape[1]), dtype=np.float32)
        for index, place in enumerate(places):
            start = self.offset + place * line_bytes
            data = objects.read_range(self.uri, start, start + line_bytes, tag=self.tag)
            found[index] = np.frombuffer(data, dtype="<f4")
        return found


def _open_values(uri: str) -> _Values:
    info = objects.stat(uri)
    if info is None:
        raise CohortError(f"{uri}: the values are missing. Build the store anew.")
    head = io.BytesIO(objects.read_range(uri, 0, min(info.size_bytes, 4096), tag=info.tag))
    try:
        np.lib.format.read_magic(head)
        shape, _, dtype = np.lib.format.read_array_header_1_0(head)
        complete = info.size_bytes == head.tell() + int(np.prod(shape)) * 4 and dtype == "<f4"
    except ValueError:
        complete = False
    if not complete:
        raise CohortError(f"{uri}: expected a whole float32 .npy file. Build the store anew.")
    mapped = None
    if objects.is_local(uri):
        mapped = np.load(objects.local_path(uri), mmap_mode="r", allow_pickle=False)
    return _Values(uri=uri, shape=shape, offset=head.tell(), tag=info.tag, mapped=mapped)


def _read_column(uri: str, name: str) -> tuple[str, ...]:
    table = tables.read_table(uri, [tables.Column(name=name, unique=True)])
    return tuple(str(cell) for cell in table.column(name).to_pylist())
