"""Writing an expression store: cases in any order, nothing to be seen before it is complete."""

import hashlib
import io
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import Float32

from mstar import config as configs
from mstar.data.rna.config import ExpressionConfig
from mstar.data.rna.store import FACTS, GENES, ROWS, SCHEMA_VERSION, VALUES, VECTORS
from mstar.data.rna.summary import ExpressionSummary
from mstar.storage import objects

_STATED = ("duplicate_genes", "missing_cells", "negative_cells", "absent_genes", "log_base")


class StoreWriter:
    """Writes a store whose cases come in any order; nothing is to be seen before `finish`."""

    def __init__(
        self, folder: str, case_ids: Sequence[str], genes: Sequence[str], *, scratch: str = ""
    ) -> None:
        """Takes the final order of cases and genes."""
        self._folder = folder
        self._case_ids = tuple(case_ids)
        self._genes = tuple(genes)
        self._places = {case_id: row for row, case_id in enumerate(case_ids)}
        self._stack = ExitStack()
        self._scratch = scratch

    def __enter__(self) -> "StoreWriter":
        """Opens the file that the values go to first."""
        made = tempfile.TemporaryDirectory(dir=self._scratch or None, prefix="mstar_rna_")
        self._path = Path(self._stack.enter_context(made)) / VALUES
        self._file: IO[bytes] = self._stack.enter_context(self._path.open("wb"))
        shape = (len(self._case_ids), len(self._genes))
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._offset = self._file.tell()
        return self

    def __exit__(self, *error: object) -> None:
        """Removes it."""
        self._stack.close()

    def write(self, case_ids: Sequence[str], values: Float32[np.ndarray, "case gene"]) -> None:
        """Writes some rows at their places."""
        assert np.isfinite(values).all()
        for case_id, row in zip(case_ids, values, strict=True):
            self._file.seek(self._offset + self._places[case_id] * row.nbytes)
            self._file.write(row.astype("<f4").tobytes())

    def finish(
        self,
        summary: ExpressionSummary,
        config: ExpressionConfig,
        vectors: Float32[np.ndarray, "gene dim"] | None,
    ) -> ExpressionSummary:
        """Publishes the store; returns the summary with its digest."""
        self._file.close()
        with self._path.open("rb") as file:
            sha256 = {VALUES: hashlib.file_digest(file, "sha256").hexdigest()}
        small = {
            ROWS: _csv("case_id", self._case_ids),
            GENES: _csv("gene", self._genes),
            **({} if vectors is None else {VECTORS: _npy(vectors)}),
        }
        sha256 |= {name: hashlib.sha256(data).hexdigest() for name, data in small.items()}
        digest = hashlib.sha256(json.dumps(sha256, sort_keys=True).encode()).hexdigest()
        facts = _facts(replace(summary, digest=digest), config, vectors, sha256)
        objects.delete(objects.join(self._folder, FACTS))  # an older store ends here
        objects.put_file(self._path, objects.join(self._folder, VALUES))
        for name, data in small.items():
            objects.write_whole(objects.join(self._folder, name), data)
        objects.write_whole(objects.join(self._folder, FACTS), configs.to_json(facts).encode())
        return replace(summary, digest=digest)


def _facts(
    summary: ExpressionSummary,
    config: ExpressionConfig,
    vectors: Float32[np.ndarray, "gene dim"] | None,
    sha256: dict[str, str],
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "unit": summary.unit,
        "transform": summary.transform,
        "values": f"log(x + 1), base {config.log_base}",
        "policy": {name: getattr(config, name) for name in _STATED},
        "vocabulary": summary.vocabulary,
        "gene_vectors": {} if vectors is None else {"dim": int(vectors.shape[1])},
        "counts": configs.to_dict(summary),
        "sha256": sha256,
        "digest": summary.digest,
    }


def _csv(name: str, cells: Sequence[str]) -> bytes:
    sink = io.BytesIO()
    pa.csv.write_csv(pa.table({name: list(cells)}), sink)
    return sink.getvalue()


def _npy(values: Float32[np.ndarray, "gene dim"]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.ascontiguousarray(values, dtype="<f4"), allow_pickle=False)
    return sink.getvalue()
