"""Gene expression as one small table a case: `<case>.csv` with `Gene,Value[,Index]`.

The vocabulary is all genes of all files, in alphabetical order, so it does not depend on which file
comes first. All files are read once and kept in memory; for thousands of cases build an expression
store (`mstar cohort build --rna …`), which is mapped instead.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32

from mstar.data.tables import Column, read_table
from mstar.errors import CohortError, TableError
from mstar.storage import objects

Scale = Literal["log", "linear"]
SUFFIX = ".csv"
LARGEST_LOG = 50.0  # 2^50 counts are not measured
_COLUMNS = (Column(name="Gene", unique=True), Column(name="Value", kind="number", nullable=True))


class CaseFiles:
    """The expression of the cases of a folder; NaN where a file lacks a gene or its value."""

    def __init__(
        self, folder: str, genes: tuple[str, ...], values: dict[str, Float32[np.ndarray, " gene"]]
    ) -> None:
        """See `read_case_files`."""
        self.folder, self.genes, self._values = folder, genes, values

    def __len__(self) -> int:
        """Number of cases."""
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        """Whether there is a file of that name, without its ending."""
        return key in self._values

    @property
    def digest(self) -> str:
        """Of genes, cases and values."""
        hasher = hashlib.sha256("\n".join(self.genes).encode())
        for key, row in sorted(self._values.items()):
            hasher.update(key.encode() + b"\0" + row.tobytes())
        return hasher.hexdigest()

    def rows(self, keys: Sequence[str]) -> Float32[np.ndarray, "case gene"]:
        """Some cases' values, in the order asked for."""
        return np.stack([self._values[key] for key in keys])

    def only(self, keys: Sequence[str]) -> "CaseFiles":
        """Those cases alone, so that no more travels than is needed; the vocabulary stays."""
        return CaseFiles(self.folder, self.genes, {key: self._values[key] for key in keys})


def read_case_files(folder: str, scale: Scale = "log") -> CaseFiles:
    """Read every file of a folder.

    Args:
        folder: local or s3://, of `<case>.csv` files.
        scale: log takes values as they are; linear takes log(1 + value).

    Raises:
        CohortError: there is no file.
        TableError: a gene twice in a file, a value that is no number, or one that is not of the
            scale that was said.
    """
    infos = [i for i in objects.list_files(folder, suffix=SUFFIX) if "/" not in i.rel]
    if not infos:
        raise CohortError(
            f"{folder}: expected an expression store (expression.json) or a file <case>.csv for "
            "each case, got neither. Give the folder that `mstar cohort build` wrote, or that of "
            "the files."
        )
    read = {info.rel.removesuffix(SUFFIX): _read(info.uri, scale) for info in infos}
    genes = tuple(sorted({gene for names, _ in read.values() for gene in names}))
    places = {gene: place for place, gene in enumerate(genes)}
    values = {}
    for key, (names, own) in read.items():
        row = np.full(len(genes), np.nan, np.float32)
        row[[places[name] for name in names]] = own
        values[key] = row
    return CaseFiles(folder, genes, values)


def _read(uri: str, scale: Scale) -> tuple[list[str], Float32[np.ndarray, " gene"]]:
    table = read_table(uri, _COLUMNS)
    values = np.asarray(table.column("Value").to_numpy(), np.float64)
    known = values[~np.isnan(values)]
    if scale == "linear":
        if (known < 0).any():
            raise TableError(
                f"{uri}: Value: expected numbers from 0 up on a linear scale, got {known.min():g}. "
                "Say --gene-scale log if they are logarithms."
            )
        values = np.log1p(values)
    elif len(known) and np.abs(known).max() > LARGEST_LOG:
        raise TableError(
            f"{uri}: Value: expected logarithms (none beyond {LARGEST_LOG:g}), got "
            f"{known[np.abs(known).argmax()]:g}. Say --gene-scale linear to have log(1 + value) "
            "taken."
        )
    return table.column("Gene").to_pylist(), values.astype(np.float32)
