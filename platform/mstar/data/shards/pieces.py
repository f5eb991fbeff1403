"""Pieces: what is read of the shards at a time, and what reading gave."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from mstar.data.shards.format import ShardIndex
from mstar.data.shards.order import Pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows [first, stop) of one row group, with what a reader must know of the shard."""

    number: int  # among the pieces of a stream
    shard: str
    shard_bytes: int
    shard_groups: int
    group: int
    group_rows: int
    first: int
    stop: int
    target_dim: int

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.shard}, row group {self.group}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PieceRows:
    """What reading a piece gave: its rows, or why there are none."""

    piece: Piece
    rows: pa.RecordBatch | None = None
    fault: str = ""


class PieceTable:
    """The pieces of a stream, made one by one: a column a field rather than an object a piece."""

    def __init__(self, index: ShardIndex, pieces: Pieces) -> None:
        """Join what is read, and in which order, with the shards it lies in."""
        self._index, self._pieces = index, pieces
        counts = np.array([len(shard.row_groups) for shard in index.shards], np.int64)
        self._shards = np.repeat(np.arange(len(counts)), counts)[pieces.group]
        self._first_groups = np.cumsum(counts) - counts

    def __len__(self) -> int:
        """Number of pieces."""
        return len(self._pieces)

    def __getitem__(self, number: int) -> Piece:
        """One of them."""
        shard = self._index.shards[self._shards[number]]
        group = int(self._pieces.group[number] - self._first_groups[self._shards[number]])
        return Piece(
            number=number,
            shard=shard.name,
            shard_bytes=shard.num_bytes,
            shard_groups=len(shard.row_groups),
            group=group,
            group_rows=shard.row_groups[group],
            first=int(self._pieces.first[number]),
            stop=int(self._pieces.stop[number]),
            target_dim=self._index.target_dim,
        )

    def size_bytes(self, number: int) -> int:
        """About how large a piece is: as many bytes a row as its shard has."""
        shard = self._index.shards[self._shards[number]]
        rows = int(self._pieces.stop[number] - self._pieces.first[number])
        return int(rows * shard.num_bytes // max(1, shard.num_rows))


def group_rows(index: ShardIndex) -> Int64[np.ndarray, " group"]:
    """The rows of every row group of the data set, by its global number."""
    rows = [count for shard in index.shards for count in shard.row_groups]
    return np.array(rows, dtype=np.int64)
