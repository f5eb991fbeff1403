"""Rows of a shard in memory, before they are written: pixels, identity, target and place."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float16, Int64, UInt64

from mstar.data.shards.format import encode_targets, shard_schema
from mstar.data.shards.hashing import row_hashes

HASH = "hash"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlideRows:
    """Rows of one slide, in any order: what pass 1 makes of a piece of it."""

    slide_id: str
    case_id: str
    coords: Int64[np.ndarray, "row 2"]
    jpegs: Sequence[bytes]
    targets: Float16[np.ndarray, "row dim"]


def run_schema(target_dim: int) -> pa.Schema:
    """The schema of rows on their way: those of a shard, and their hash."""
    schema: pa.Schema = shard_schema(target_dim).insert(0, pa.field(HASH, pa.uint64()))
    return schema


def make_batch(rows: SlideRows, *, seed: int) -> pa.RecordBatch:
    """The rows as a record batch of `run_schema`."""
    assert len(rows.coords) == len(rows.jpegs) == len(rows.targets), rows.slide_id
    count = len(rows.coords)
    columns = [
        pa.array(row_hashes(seed, rows.slide_id, rows.coords)),
        pa.array(rows.jpegs, pa.binary()),
        pa.array([rows.slide_id] * count, pa.string()),
        pa.array([rows.case_id] * count, pa.string()),
        *(pa.array(rows.coords[:, axis].astype(np.int32)) for axis in (0, 1)),
        encode_targets(rows.targets),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=run_schema(rows.targets.shape[1]))


def hashes_of(batch: pa.RecordBatch) -> UInt64[np.ndarray, " row"]:
    """The hashes of a batch."""
    hashes: UInt64[np.ndarray, " row"] = batch.column(HASH).to_numpy()
    return hashes


class RowHeap:
    """Many batches as one sorted sequence of rows, none of which is copied before it is asked for.

    Several gigabytes of JPEG lie in the batches as they came; only the order is made here.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch], target_dim: int) -> None:
        """Sort the rows of `batches` by hash, then by slide and position."""
        self._batches = [batch for batch in batches if len(batch)]
        self._schema, self._hashed = shard_schema(target_dim), run_schema(target_dim)
        sizes = [len(batch) for batch in self._batches]
        self._batch = np.repeat(np.arange(len(sizes)), sizes)
        self._row = np.concatenate([np.arange(size) for size in sizes] or [np.empty(0, np.int64)])
        order = self._order()
        self._batch, self._row = self._batch[order], self._row[order]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._row)

    def hashes(self) -> UInt64[np.ndarray, " row"]:
        """The hashes, ascending."""
        if not self._batches:
            return np.empty(0, np.uint64)
        starts = np.cumsum([0, *(len(batch) for batch in self._batches)])
        merged = np.concatenate([hashes_of(batch) for batch in self._batches])
        hashes: UInt64[np.ndarray, " row"] = merged[starts[self._batch] + self._row]
        return hashes

    def take(self, start: int, stop: int, *, hashed: bool = False) -> pa.RecordBatch:
        """Copy rows [start, stop) out, in order: columns of a shard, the hash before if asked."""
        schema = self._hashed if hashed else self._schema
        chosen = self._batch[start:stop].tolist(), self._row[start:stop].tolist()
        places = list(zip(*chosen, strict=True))
        columns = []
        for field in schema:
            parts = [batch.column(field.name) for batch in self._batches]
            columns.append(pa.array([parts[b][row].as_py() for b, row in places], field.type))
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def duplicate(self) -> tuple[str, int, int] | None:
        """The slide and position of a patch that comes twice, None when none does."""
        hashes = self.hashes()
        for at in np.flatnonzero(hashes[1:] == hashes[:-1]).tolist():
            pair = self.take(at, at + 2)
            names = [tuple(pair.column(name).to_pylist()) for name in ("slide_id", "x_l0", "y_l0")]
            if all(left == right for left, right in names):
                return names[0][0], names[1][0], names[2][0]
        return None

    def _order(self) -> Int64[np.ndarray, " row"]:
        if not self._batches:
            return np.empty(0, np.int64)

        def column(name: str) -> np.ndarray:
            parts = [batch.column(name) for batch in self._batches]
            return np.concatenate([part.to_numpy(zero_copy_only=False) for part in parts])

        hashes = column(HASH)
        order: Int64[np.ndarray, " row"] = np.argsort(hashes, kind="stable").astype(np.int64)
        ties = hashes[order]
        if (ties[1:] == ties[:-1]).any():  # once in thousands of data sets, and with duplicates
            keys = (column("y_l0"), column("x_l0"), column("slide_id").astype(str), hashes)
            order = np.lexsort(keys).astype(np.int64)
        return order
