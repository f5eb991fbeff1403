"""One row group of a shard, opened from its bytes; the JPEGs stay where they lie."""

from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mstar.data.shards.faults import BrokenShardError
from mstar.data.shards.format import COLUMNS, piece_schema, shard_schema
from mstar.data.shards.pages import plain_views
from mstar.data.shards.pieces import Piece
from mstar.storage.seekable import SeekableReader

Result = TypeVar("Result")
JPEG, *OTHERS = COLUMNS


def group_extent(metadata: pq.FileMetaData, piece: Piece) -> tuple[int, int]:
    """Where the row group of a piece lies in its file.

    Raises:
        BrokenShardError: the footer and the index do not agree.
    """
    _check_layout(metadata, piece)
    group = metadata.row_group(piece.group)
    extents = [_chunk_extent(group.column(number)) for number in range(group.num_columns)]
    start, stop = min(start for start, _ in extents), max(stop for _, stop in extents)
    if not 0 <= start < stop <= piece.shard_bytes:
        raise BrokenShardError(f"its footer places the row group at bytes {start} to {stop}")
    return start, stop


def open_row_group(
    data: memoryview, start: int, metadata: pq.FileMetaData, piece: Piece, *, verify: bool
) -> pa.RecordBatch:
    """The rows of the row group that a piece is of.

    Args:
        data: what lies at its extent; the JPEGs of the result are views of it.
        start: where the extent begins in the file.
        metadata: of the file.
        piece: names the row group.
        verify: whether pages that carry a checksum are held against it.

    Raises:
        BrokenShardError: it is not what the index says, or was changed.
    """

    def read() -> pa.Table:
        source = pa.PythonFile(_Span(start, data, piece.shard_bytes), "r")
        file = pq.ParquetFile(
            source,
            metadata=metadata,
            pre_buffer=False,  # a copy: all of it is in memory
            page_checksum_verification=verify,
        )
        _check_schema(file.schema_arrow, shard_schema(piece.target_dim))
        return file.read_row_group(piece.group, columns=OTHERS, use_threads=False)

    others = parse(read)
    if any(column.null_count for column in others.columns):
        raise BrokenShardError("expected every value to be there, got empty ones")
    jpegs = plain_views(_jpeg_chunk(data, start, metadata, piece), piece.group_rows, verify=verify)
    columns = [jpegs, *(column.combine_chunks() for column in others.columns)]
    return pa.RecordBatch.from_arrays(columns, schema=piece_schema(piece.target_dim))


def parse(act: Callable[[], Result]) -> Result:
    """What Arrow makes of a file; its complaints about the content are faults of the shard."""
    try:
        return act()
    except (pa.ArrowException, OSError, OverflowError) as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise BrokenShardError(first_line) from error


def _check_layout(metadata: pq.FileMetaData, piece: Piece) -> None:
    """The footer agrees with the index on the rows of this group."""
    if metadata.num_row_groups != piece.shard_groups:
        raise BrokenShardError(
            f"expected {piece.shard_groups} row groups, got {metadata.num_row_groups}"
        )
    found = metadata.row_group(piece.group).num_rows
    if found != piece.group_rows:
        raise BrokenShardError(f"expected {piece.group_rows} rows, got {found}")


def _check_schema(found: pa.Schema, expected: pa.Schema) -> None:
    if found.names != expected.names or found.types != expected.types:
        wanted, got = (
            ", ".join(f"{field.name} {field.type}" for field in schema)
            for schema in (expected, found)
        )
        raise BrokenShardError(f"expected the columns {wanted}, got {got}")


def _jpeg_chunk(
    data: memoryview, start: int, metadata: pq.FileMetaData, piece: Piece
) -> memoryview:
    """The pages of the column `jpeg`."""
    place = COLUMNS.index(JPEG)
    column, chunk = metadata.schema.column(place), metadata.row_group(piece.group).column(place)
    if column.max_definition_level or column.max_repetition_level:
        raise BrokenShardError(f"expected every {JPEG} to be there, got a column that allows none")
    if chunk.compression != "UNCOMPRESSED":
        raise BrokenShardError(f"expected {JPEG} not to be compressed, got {chunk.compression}")
    first, stop = _chunk_extent(chunk)
    return data[first - start : stop - start]


def _chunk_extent(chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    starts = (chunk.data_page_offset, chunk.dictionary_page_offset)
    start = min(start for start in starts if start is not None)
    return start, start + chunk.total_compressed_size


class _Span(SeekableReader):
    """A stretch of a file that is in memory, at its place in the file; Arrow reads views of it."""

    def __init__(self, start: int, data: memoryview, file_bytes: int) -> None:
        """Hold the bytes from `start` on."""
        super().__init__(file_bytes)
        self._start, self._data = start, data

    def read(self, size: int = -1) -> memoryview:
        """A view of the next bytes, where they are held."""
        first = self.at - self._start
        if first < 0 or size < 0 or first + size > len(self._data):
            raise OSError(f"bytes {self.at} to {self.at + size} are outside its row group")
        self.at += size
        return self._data[first : first + size]
