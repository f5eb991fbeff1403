"""Pass 2 of the shuffle: the rows of one bucket, sorted, into shards.

    shards = write_bucket(heap, ShardLayout(...), folder="T/shards", first_shard=12)

Bytes depend on the rows and the layout alone. A shard is put together in memory, since its sha256
is known only then, and written whole; a reader never sees half of one.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float64

from mstar.data.shards.format import (
    ROWS_PER_GROUP,
    ShardInfo,
    decode_targets,
    shard_name,
    shard_schema,
)
from mstar.data.shards.rows import RowHeap
from mstar.storage import objects

_PAGE_BYTES = 1 << 30  # one page a column and row group: a reader takes its bytes in one piece
_TEXT_COLUMNS = ["slide_id", "case_id"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLayout:
    """How rows are laid out in files.

    shard_bytes: the largest a shard gets, nearly; a bucket is cut into equal shards below it.
    """

    target_dim: int
    rows_per_group: int = ROWS_PER_GROUP
    shard_bytes: int = 512_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TargetSums:
    """Sums over targets in float64, from which mean and standard deviation follow."""

    num_rows: int
    total: Float64[np.ndarray, " dim"]
    squares: Float64[np.ndarray, " dim"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WrittenShard:
    """A shard that was written, and what was seen on the way."""

    info: ShardInfo
    sums: TargetSums


def num_shards(num_bytes: int, num_rows: int, layout: ShardLayout) -> int:
    """How many shards a bucket becomes: as few as the size allows, none without a row group."""
    groups = -(-num_rows // layout.rows_per_group)
    return min(groups, -(-num_bytes // layout.shard_bytes))


def write_bucket(
    heap: RowHeap, layout: ShardLayout, *, folder: str, first_shard: int, count: int
) -> Iterator[WrittenShard]:
    """Write the rows of a bucket as `count` shards of equally many row groups.

    Args:
        heap: the bucket's rows.
        layout: of the files.
        folder: where they go, local or s3://.
        first_shard: the number of the first one.
        count: how many; see `num_shards`.
    """
    groups = -(-len(heap) // layout.rows_per_group)
    cuts = [shard * groups // count * layout.rows_per_group for shard in range(count)]
    for number, (start, stop) in enumerate(zip(cuts, [*cuts[1:], len(heap)], strict=True)):
        yield _write_shard(heap, start, stop, layout, folder, shard_name(first_shard + number))


def _write_shard(
    heap: RowHeap, start: int, stop: int, layout: ShardLayout, folder: str, name: str
) -> WrittenShard:
    """Write rows [start, stop) as one file."""
    sink, sums, groups = io.BytesIO(), _no_sums(layout.target_dim), []
    with open_parquet(sink, layout.target_dim) as writer:
        for first in range(start, stop, layout.rows_per_group):
            rows = heap.take(first, min(first + layout.rows_per_group, stop))
            writer.write_batch(rows, row_group_size=len(rows))
            sums = _added(sums, decode_targets(rows.column("target"), layout.target_dim))
            groups.append(len(rows))
    data = sink.getvalue()
    objects.write_whole(objects.join(folder, name), data)
    info = ShardInfo(
        name=name,
        num_rows=stop - start,
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        row_groups=tuple(groups),
    )
    return WrittenShard(info=info, sums=sums)


def open_parquet(sink: io.BufferedIOBase, target_dim: int) -> pq.ParquetWriter:
    """A Parquet file as all shards are: uncompressed, JPEG and targets as plain bytes."""
    return pq.ParquetWriter(
        sink,
        shard_schema(target_dim),
        compression="none",
        use_dictionary=_TEXT_COLUMNS,
        write_statistics=False,
        data_page_size=_PAGE_BYTES,
        write_page_checksum=True,  # a flipped bit that still decodes is seen while streaming
        write_batch_size=1 << 20,
        version="2.6",
    )


def mean_and_std(
    sums: list[TargetSums],
) -> tuple[Float64[np.ndarray, " dim"], Float64[np.ndarray, " dim"]]:
    """Mean and standard deviation of each value, over the rows of some sums."""
    num_rows = max(1, sum(part.num_rows for part in sums))
    sums = sums or [_no_sums(0)]
    mean = np.sum([part.total for part in sums], axis=0) / num_rows
    square = np.sum([part.squares for part in sums], axis=0) / num_rows
    return mean, np.sqrt(np.maximum(square - mean**2, 0.0))


def _no_sums(dim: int) -> TargetSums:
    return TargetSums(num_rows=0, total=np.zeros(dim), squares=np.zeros(dim))


def _added(sums: TargetSums, targets: np.ndarray) -> TargetSums:
    values = targets.astype(np.float64)
    return TargetSums(
        num_rows=sums.num_rows + len(values),
        total=sums.total + values.sum(axis=0),
        squares=sums.squares + (values**2).sum(axis=0),
    )
