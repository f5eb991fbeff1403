"""Between the two passes of the shuffle: files of rows, cut by bucket.

    header = put_unit(uri, batches, num_buckets=K, target_dim=512, facts={...})    # pass 1
    batch = read_bucket(header, 17)                                               # pass 2

Pass 1 writes the rows of a few slides as one file, sorted by hash, so that the rows of a bucket lie
together in it. Pass 2 takes one bucket from every file, by a range of bytes. That is as many
requests as there are files times buckets, and no file is ever appended to: each is whole or absent,
and a listing says which are done.

    for each bucket with rows an Arrow batch, then a footer (JSON), its length, "MSTARROW"
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from mstar.data.shards.hashing import buckets_of
from mstar.data.shards.rows import RowHeap, run_schema
from mstar.errors import FeatureError
from mstar.storage import objects

SUFFIX = ".rows"
_MAGIC = b"MSTARROW"
_TAIL_BYTES = 8 + len(_MAGIC)
_GUESS_BYTES = 1 << 16  # most footers are smaller: one request


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitHeader:
    """What a file of rows holds.

    tag: of the file when it was read, so that a replaced one is noticed.
    starts: offset of each bucket, and of the end.
    rows: of each bucket.
    facts: what pass 1 found out about these rows.
    """

    uri: str
    tag: str
    target_dim: int
    starts: Int64[np.ndarray, " edge"]
    rows: Int64[np.ndarray, " bucket"]
    facts: Mapping[str, Any]

    def num_bytes(self, bucket: int) -> int:
        """Bytes of a bucket's rows in this file."""
        return int(self.starts[bucket + 1] - self.starts[bucket])


def unit_name(number: int) -> str:
    """The name of the file of unit `number`."""
    return f"unit-{number:06d}{SUFFIX}"


def put_unit(
    uri: str,
    batches: Sequence[pa.RecordBatch],
    *,
    num_buckets: int,
    target_dim: int,
    facts: Mapping[str, Any],
) -> None:
    """Write the rows of one unit, whole or not at all.

    Args:
        uri: where to.
        batches: of `run_schema`, in any order.
        num_buckets: how many buckets there are.
        target_dim: length of a target.
        facts: JSON values to go with the rows.
    """
    heap = RowHeap(batches, target_dim)
    buckets = buckets_of(heap.hashes(), num_buckets)
    cuts = np.searchsorted(buckets, np.arange(num_buckets + 1)).tolist()
    body, starts = BytesIO(), [0]
    for start, stop in pairwise(cuts):
        if stop > start:
            body.write(heap.take(start, stop, hashed=True).serialize())
        starts.append(body.tell())
    header = {
        "target_dim": target_dim,
        "starts": starts,
        "rows": np.diff(cuts).tolist(),
        "facts": dict(facts),
    }
    text = json.dumps(header, sort_keys=True).encode()
    body.write(text + len(text).to_bytes(8, "little") + _MAGIC)
    objects.write_whole(uri, body.getvalue())  # shares the memory, as the footer comes last


def read_unit(uri: str) -> UnitHeader | None:
    """The header of a unit's file; None when there is none.

    Raises:
        FeatureError: it is not one of these files.
    """
    found = objects.stat(uri)
    if found is None:
        return None
    size, tag = found.size_bytes, found.tag
    tail = objects.read_range(uri, max(0, size - _GUESS_BYTES), size, tag=tag)
    if not tail.endswith(_MAGIC):
        raise FeatureError(f"{uri}: expected rows of patch shards, got {tail[-8:]!r}. Delete it.")
    length = int.from_bytes(tail[-_TAIL_BYTES : -len(_MAGIC)], "little") + _TAIL_BYTES
    if length > len(tail):
        tail = objects.read_range(uri, size - length, size, tag=tag)
    fields = json.loads(tail[-length:-_TAIL_BYTES])
    return UnitHeader(
        uri=uri,
        tag=tag,
        target_dim=fields["target_dim"],
        starts=np.array(fields["starts"], np.int64),
        rows=np.array(fields["rows"], np.int64),
        facts=fields["facts"],
    )


def read_bucket(header: UnitHeader, bucket: int) -> pa.RecordBatch | None:
    """The rows of one bucket in one unit's file, sorted by hash; None when it has none."""
    if not header.rows[bucket]:
        return None
    start, stop = (int(edge) for edge in header.starts[bucket : bucket + 2])
    data = objects.read_range(header.uri, start, stop, tag=header.tag)
    return pa.ipc.read_record_batch(pa.py_buffer(data), run_schema(header.target_dim))
