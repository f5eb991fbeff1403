"""Reads pieces of shards: compressed rows as Arrow columns, from a disk or an object store.

    reader = ShardReader("T/shards")
    found = reader.read(piece)
    found.rows                  # jpeg, slide_id, case_id, x_l0, y_l0, target; None where broken
    found.fault                 # why, in words: the run decides how much of that it bears

A local shard is mapped. Of a remote one only the row group is fetched, in one request; the footer
that says where it lies is fetched once and kept. Storage that is away for a while is waited for,
far longer than one call's retries would. What is wrong with the *data* never raises: a run of days
must not end for one file out of thousands.
"""

import io
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mstar.data.shards.format import COLUMNS, shard_schema
from mstar.data.shards.pieces import Piece, PieceRows
from mstar.errors import StorageError
from mstar.storage import objects, retry

FOOTER_GUESS_BYTES = 64 << 10  # holds the footer of some 170 row groups
FOOTER_CACHE_BYTES = 256 << 20  # holds those of 2 TB of shards
_TAIL_BYTES = 8  # length of the footer and the magic word

Result = TypeVar("Result")


class ShardReader:
    """Reads pieces of the shards in one folder; threads may share it."""

    def __init__(
        self, folder: str, *, patience_s: float = 600.0, verify_checksums: bool = True
    ) -> None:
        """Name the folder; nothing is read yet.

        Args:
            folder: that holds the shards, on a disk or `s3://…`.
            patience_s: how long storage may be away before that is an error.
            verify_checksums: whether pages that carry a checksum are held against it.
        """
        self._folder, self._patience_s, self._verify = folder, patience_s, verify_checksums
        self._footers: OrderedDict[str, _Footer] = OrderedDict()
        self._footer_bytes = 0
        self._lock = threading.Lock()

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
        """The rows of a piece, or what is wrong with it.

        Raises:
            StorageError: storage was away for longer than `patience_s`, or refuses.
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
        if objects.is_local(uri):
            return self._read_mapped(uri, piece)
        footer = self._footer(uri, piece)
        metadata = _parse(lambda: pq.read_metadata(pa.BufferReader(footer.data)))
        start, stop = _extent(metadata, piece)
        read = partial(objects.read_range, uri, start, stop, tag=footer.tag)
        source = pa.PythonFile(_Span(start, self._patiently(read), piece.shard_bytes), "r")
        return self._row_group(source, piece, metadata)

    def _read_mapped(self, uri: str, piece: Piece) -> pa.RecordBatch:
        path = objects.local_path(uri)
        _check_size(path.stat().st_size, piece)
        with _parse(lambda: pa.memory_map(str(path))) as source:
            return self._row_group(source, piece, None)

    def _row_group(
        self, source: pa.NativeFile, piece: Piece, metadata: pq.FileMetaData | None
    ) -> pa.RecordBatch:
        """One row group, if it is what the index says."""

        def read() -> pa.Table:
            file = pq.ParquetFile(
                source,
                metadata=metadata,
                pre_buffer=False,  # a copy: all of it is in memory, or mapped
                page_checksum_verification=self._verify,
            )
            _check_layout(file.metadata, piece)
            return file.read_row_group(piece.group, columns=list(COLUMNS), use_threads=False)

        table = _parse(read)
        _check_columns(table, shard_schema(piece.target_dim))
        (rows,) = table.combine_chunks().to_batches()
        return rows

    def _footer(self, uri: str, piece: Piece) -> "_Footer":
        """The end of a remote shard, from the last time where it is still held."""
        with self._lock:
            if uri in self._footers:
                self._footers.move_to_end(uri)
                return self._footers[uri]
        footer = self._patiently(lambda: _fetch_footer(uri, piece))
        with self._lock:
            if uri not in self._footers:  # another thread may have been faster
                self._footers[uri] = footer
                self._footer_bytes += len(footer.data)
            while self._footer_bytes > FOOTER_CACHE_BYTES and len(self._footers) > 1:
                self._footer_bytes -= len(self._footers.popitem(last=False)[1].data)
        return footer

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


class BrokenShardError(Exception):
    """A shard is not what the index says; its message is the fault of the pieces in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Footer:
    """The last bytes of a shard, and the tag of the object they are of."""

    data: bytes
    tag: str


def _fetch_footer(uri: str, piece: Piece) -> _Footer:
    """The footer of a remote shard, in one request where it is of usual size."""
    found = objects.stat(uri)
    if found is None:
        raise FileNotFoundError(uri)
    _check_size(found.size_bytes, piece)
    size, tag = found.size_bytes, found.tag
    data = objects.read_range(uri, max(0, size - FOOTER_GUESS_BYTES), size, tag=tag)
    needed = int.from_bytes(data[-_TAIL_BYTES:-4], "little") + _TAIL_BYTES
    if needed > size:
        raise BrokenShardError("it does not end as a Parquet file does")
    if needed > len(data):
        data = objects.read_range(uri, size - needed, size, tag=tag)
    return _Footer(data=data[-needed:], tag=tag)


def _check_size(found_bytes: int, piece: Piece) -> None:
    if found_bytes != piece.shard_bytes:
        raise BrokenShardError(f"expected {piece.shard_bytes} bytes, got {found_bytes}")


def _check_layout(metadata: pq.FileMetaData, piece: Piece) -> None:
    """The footer agrees with the index on the rows of this group."""
    if metadata.num_row_groups != piece.shard_groups:
        raise BrokenShardError(
            f"expected {piece.shard_groups} row groups, got {metadata.num_row_groups}"
        )
    found = metadata.row_group(piece.group).num_rows
    if found != piece.group_rows:
        raise BrokenShardError(f"expected {piece.group_rows} rows, got {found}")


def _check_columns(table: pa.Table, expected: pa.Schema) -> None:
    """The columns are those of the format, and every value is there."""
    if table.schema.names != expected.names or table.schema.types != expected.types:
        wanted, found = (
            ", ".join(f"{field.name} {field.type}" for field in schema)
            for schema in (expected, table.schema)
        )
        raise BrokenShardError(f"expected the columns {wanted}, got {found}")
    if any(column.null_count for column in table.columns):
        raise BrokenShardError("expected every value to be there, got empty ones")


def _extent(metadata: pq.FileMetaData, piece: Piece) -> tuple[int, int]:
    """Where a row group lies in the file."""
    _check_layout(metadata, piece)
    group = metadata.row_group(piece.group)
    columns = [group.column(number) for number in range(group.num_columns)]
    starts = [
        c.data_page_offset if c.dictionary_page_offset is None else c.dictionary_page_offset
        for c in columns
    ]
    stops = [start + c.total_compressed_size for start, c in zip(starts, columns, strict=True)]
    start, stop = min(starts), max(stops)
    if not 0 <= start < stop <= piece.shard_bytes:
        raise BrokenShardError(f"its footer places the row group at bytes {start} to {stop}")
    return start, stop


def _parse(act: Callable[[], Result]) -> Result:
    """What Arrow makes of a file; its complaints about the content are faults of the shard."""
    try:
        return act()
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, OverflowError) as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise BrokenShardError(first_line) from error


class _Span(io.RawIOBase):
    """A stretch of a file that is in memory, at its place in the file; Arrow reads views of it."""

    def __init__(self, start: int, data: bytes, file_bytes: int) -> None:
        """Hold the bytes from `start` on."""
        self._start, self._data, self._file_bytes, self._at = start, memoryview(data), file_bytes, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The position of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position, as in any file."""
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file_bytes}[whence]
        self._at += offset
        return self._at

    def read(self, size: int = -1) -> memoryview:
        """A view of the next bytes, where they are held."""
        first = self._at - self._start
        if first < 0 or size < 0 or first + size > len(self._data):
            raise OSError(f"bytes {self._at} to {self._at + size} are outside its row group")
        self._at += size
        return self._data[first : first + size]


def _reopened(folder: str, patience_s: float, verify_checksums: bool) -> ShardReader:
    return ShardReader(folder, patience_s=patience_s, verify_checksums=verify_checksums)
