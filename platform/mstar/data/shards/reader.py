"""Reads pieces of shards: compressed rows as Arrow columns, from a disk or an object store.

    reader = ShardReader("T/shards")
    found = reader.read(piece)
    found.rows                  # jpeg, slide_id, case_id, x_l0, y_l0, target; None where broken
    found.fault                 # why, in words: the run decides how much of that it bears

Only the row group is read, in one request; the footer that says where it lies is read once and
kept. Storage that is away for a while is waited for, far longer than one call's retries would.
What is wrong with the *data* never raises: a run of days must not end for one file out of
thousands.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa

from mstar.data.shards.buffers import Buffers
from mstar.data.shards.faults import BrokenShardError
from mstar.data.shards.footers import FooterCache, fetch_footer
from mstar.data.shards.pieces import Piece, PieceRows
from mstar.data.shards.row_groups import group_extent, open_row_group
from mstar.errors import StorageError
from mstar.storage import objects, retry

Result = TypeVar("Result")


class ShardReader:
    """Reads pieces of the shards in one folder; threads may share it."""

    def __init__(
        self,
        folder: str,
        *,
        patience_s: float = 600.0,
        verify_checksums: bool = True,
        buffers: Buffers | None = None,
    ) -> None:
        """Name the folder; nothing is read yet.

        Args:
            folder: that holds the shards, on a disk or `s3://…`.
            patience_s: how long storage may be away before that is an error.
            verify_checksums: whether pages that carry a checksum are held against it.
            buffers: for what is read of a disk; those of an earlier epoch are used on.
        """
        self._folder, self._patience_s, self._verify = folder, patience_s, verify_checksums
        self._footers, self._buffers = FooterCache(), buffers or Buffers()

    @property
    def arguments(self) -> tuple[str, float, bool]:
        """What another process needs to make an equal reader."""
        return self._folder, self._patience_s, self._verify

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """Another process opens the folder anew."""
        return _reopened, self.arguments

    def give_up(self) -> None:
        """Wait no longer for storage that is away: the next failure is raised."""
        self._patience_s = 0.0

    def read(self, piece: Piece) -> PieceRows:
        """The rows of a piece, or what is wrong with it; the JPEGs are views of what was read.

        Raises:
            StorageError: storage was away for longer than `patience_s`, or refuses, or the shard
                was replaced since it was read first.
        """
        try:
            rows = self._read(piece)
        except BrokenShardError as error:
            return PieceRows(piece=piece, fault=str(error))
        except FileNotFoundError:
            return PieceRows(piece=piece, fault="the shard is not there")
        return PieceRows(piece=piece, rows=rows.slice(piece.first, piece.stop - piece.first))

    def _read(self, piece: Piece) -> pa.RecordBatch:
        uri = objects.join(self._folder, piece.shard)
        footer = self._footers.get(
            uri, lambda: self._patiently(lambda: fetch_footer(uri, piece.shard_bytes))
        )
        metadata = footer.metadata()
        start, stop = group_extent(metadata, piece)
        data = self._patiently(lambda: self._fetch(uri, start, stop, footer.tag))
        return open_row_group(data, start, metadata, piece, verify=self._verify)

    def _fetch(self, uri: str, start: int, stop: int, tag: str) -> memoryview:
        """Bytes of a shard: of a disk into memory used again, of a store as its client has them."""
        if not objects.is_local(uri):
            return memoryview(objects.read_range(uri, start, stop, tag=tag))
        buffer = self._buffers.take((stop - start,))
        objects.read_into(uri, start, buffer.data, tag=tag)
        return buffer.data

    def _patiently(self, act: Callable[[], Result]) -> Result:
        """The result of `act`, tried again as long as storage is away and patience lasts.

        A call has made its own retries before it fails, so there is no pause to add.
        """
        started_s = time.monotonic()
        while True:
            try:
                return act()
            except StorageError as error:
                waited_s = time.monotonic() - started_s
                if not retry.is_passing(error) or waited_s >= self._patience_s:
                    raise


def _reopened(folder: str, patience_s: float, verify_checksums: bool) -> ShardReader:
    return ShardReader(folder, patience_s=patience_s, verify_checksums=verify_checksums)
