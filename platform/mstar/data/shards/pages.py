"""Values of a column where they lie in a shard: pages of plain bytes, read without copying them.

Arrow's own reader puts every value into fresh memory; for JPEGs that is four megabytes a row group,
and the system makes each of its pages anew. A shard is not compressed and its values are plain, so
that all one has to know is where each begins: a page is a header in Thrift's compact form, then a
length of four bytes before every value (apache/parquet-format: README and Encodings).
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mstar.data.shards.faults import BrokenShardError

VIEW = np.dtype([("length", "<i4"), ("prefix", "V4"), ("buffer", "<i4"), ("offset", "<i4")])
INLINE_BYTES = 12  # a view of no more holds the value itself, behind its length
_DATA_PAGE, _PLAIN = 0, 0
_TYPE, _SIZE, _STORED_SIZE, _CHECKSUM, _DATA_HEADER = 1, 2, 3, 4, 5  # fields of a page header
_NUM_VALUES, _ENCODING = 1, 2  # of a data page's
_LENGTH_BYTES = 4


def plain_views(chunk: memoryview, count: int, *, verify: bool) -> pa.Array:
    """The values of a column chunk, as views of its memory.

    Args:
        chunk: the pages of a required BYTE_ARRAY column, not compressed.
        count: how many values are in it.
        verify: whether pages that carry a checksum are held against it.

    Returns:
        An array of the type binary_view.

    Raises:
        BrokenShardError: the pages are not what the format says, or were changed.
    """
    starts: list[int] = []
    lengths: list[int] = []
    at = 0
    while len(starts) < count:
        page = _open_page(chunk, at)
        body = chunk[page.start : page.stop]
        if verify and page.checksum is not None and zlib.crc32(body) != page.checksum:
            raise BrokenShardError("the checksum of a page is not that of its bytes")
        for start, length in _values(body, page.num_values):
            starts.append(page.start + start)
            lengths.append(length)
        at = page.stop
    if len(starts) != count:
        raise BrokenShardError(f"expected {count} values in a column, got {len(starts)}")
    return _views(chunk, np.array(starts, np.int32), np.array(lengths, np.int32))


def view_spans(values: pa.Array) -> list[tuple[memoryview, int, int]]:
    """The memory that each value of an array of views lies in, with its start and stop."""
    _, views, *data = values.buffers()
    memories = [memoryview(buffer).cast("B") for buffer in (views, *data)]
    found = np.frombuffer(views, VIEW, count=len(values), offset=values.offset * VIEW.itemsize)
    is_inline = found["length"] <= INLINE_BYTES
    inline = (values.offset + np.arange(len(values))) * VIEW.itemsize + _LENGTH_BYTES
    starts = np.where(is_inline, inline, found["offset"])
    places = np.where(is_inline, 0, found["buffer"] + 1)
    spans = zip(places.tolist(), starts.tolist(), found["length"].tolist(), strict=True)
    return [(memories[place], start, start + length) for place, start, length in spans]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """A data page: where its values lie in the chunk, how many, and their CRC-32 if it is known."""

    start: int
    stop: int
    num_values: int
    checksum: int | None


def _open_page(chunk: memoryview, at: int) -> _Page:
    """The page whose header begins at `at`."""
    try:
        fields, start = _read_struct(chunk, at)
        kind, size, data = fields[_TYPE], fields[_SIZE], fields.get(_DATA_HEADER, {})
        is_plain = kind == _DATA_PAGE and data[_ENCODING] == _PLAIN
        num_values, checksum = data.get(_NUM_VALUES, 0), fields.get(_CHECKSUM)
        if any(type(number) is not int for number in (size, num_values, checksum or 0)):
            raise TypeError("a number is of another type")
    except (IndexError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BrokenShardError("the header of a page cannot be read") from error
    if not is_plain or size != fields.get(_STORED_SIZE):
        raise BrokenShardError("expected pages of plain bytes, as `mstar targets` writes them")
    if num_values <= 0 or not start <= start + size <= len(chunk):
        raise BrokenShardError(f"a page of {size} bytes is longer than its column")
    return _Page(
        start=start,
        stop=start + size,
        num_values=num_values,
        checksum=None if checksum is None else checksum & 0xFFFFFFFF,
    )


def _values(body: memoryview, count: int) -> Iterator[tuple[int, int]]:
    """Start and length of each value of a page."""
    at, size, take = 0, len(body), int.from_bytes
    for _ in range(count):
        start = at + _LENGTH_BYTES
        length = take(body[at:start], "little")
        at = start + length
        if at > size:
            raise BrokenShardError("a value is longer than its page")
        yield start, length
    if at != size:
        raise BrokenShardError(f"expected {count} values in a page, got {size - at} bytes more")


def _views(chunk: memoryview, starts: np.ndarray, lengths: np.ndarray) -> pa.Array:
    """Arrow's array of views; short values stand in the views themselves."""
    views = np.zeros(len(starts), VIEW)
    views["length"], views["offset"] = lengths, starts
    content = np.frombuffer(chunk, np.uint8)
    firsts = np.minimum(starts[:, None] + np.arange(_LENGTH_BYTES), max(0, len(content) - 1))
    views["prefix"] = content[firsts].view("V4")[:, 0]
    raw = views.view(np.uint8).reshape(len(views), VIEW.itemsize)
    for row in np.flatnonzero(lengths <= INLINE_BYTES).tolist():
        start, length = int(starts[row]), int(lengths[row])
        raw[row, _LENGTH_BYTES:] = 0
        raw[row, _LENGTH_BYTES : _LENGTH_BYTES + length] = content[start : start + length]
    buffers = [None, pa.py_buffer(views), pa.py_buffer(chunk)]
    return pa.Array.from_buffers(pa.binary_view(), len(views), buffers)


# Thrift's compact protocol, as far as headers use it: a field is a byte of type and step to its
# number, then its value; integers are zigzag varints
_STOP, _TRUE, _FALSE, _BINARY, _STRUCT = 0, 1, 2, 8, 12
_INTEGERS = (4, 5, 6)


def _read_struct(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """The fields of a struct by number, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while (head := data[at]) != _STOP:
        at += 1
        step, kind = head >> 4, head & 0x0F
        if step:
            number += step
        else:  # too far for the byte
            number, at = _read_integer(data, at)
        fields[number], at = _read_value(data, at, kind)
    return fields, at + 1


def _read_value(data: memoryview, at: int, kind: int) -> tuple[Any, int]:
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, at
    if kind in _INTEGERS:
        return _read_integer(data, at)
    if kind == _STRUCT:
        return _read_struct(data, at)
    if kind == _BINARY:
        length, at = _read_varint(data, at)
        return None, at + length
    raise KeyError(f"a field of the type {kind}")


def _read_integer(data: memoryview, at: int) -> tuple[int, int]:
    value, at = _read_varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
