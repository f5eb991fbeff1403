"""Values of a column chunk taken where they lie, against what Arrow's reader makes of it."""

from __future__ import annotations

import io
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.data.shards.faults import BrokenShardError
from mstar.data.shards.pages import plain_views, view_spans

SCHEMA = pa.schema([pa.field("jpeg", pa.binary(), nullable=False)])


def chunk_of(values: list[bytes], **options: Any) -> memoryview:
    """The column chunk that Arrow writes of some values."""
    sink = io.BytesIO()
    settled: dict[str, Any] = {"compression": "none", "use_dictionary": False} | options
    pq.write_table(pa.table([pa.array(values, pa.binary())], SCHEMA), sink, **settled)
    column = pq.read_metadata(sink).row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    return memoryview(sink.getvalue())[start : start + column.total_compressed_size]


def images(count: int) -> list[bytes]:
    return [random.Random(row).randbytes(100 + 7 * row) for row in range(count)]


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.binary(max_size=40), min_size=1, max_size=60),
    page_bytes=st.sampled_from([1, 50, 1 << 20]),
    with_checksums=st.booleans(),
    cut=st.tuples(st.integers(0, 60), st.integers(0, 60)),
)
def test_values_are_those_that_were_written(
    values: list[bytes], page_bytes: int, with_checksums: bool, cut: tuple[int, int]
) -> None:
    """Short ones stand in the views themselves; pages may be one or many; slices are views too."""
    options = {"data_page_size": page_bytes, "write_page_checksum": with_checksums}
    chunk = chunk_of(values, write_batch_size=7, **options)
    found = plain_views(chunk, len(values), verify=True)
    found.validate(full=True)
    assert found.to_pylist() == values
    assert found.cast(pa.binary()).to_pylist() == values
    start, stop = sorted(cut)
    spans = view_spans(found[start:stop])
    assert [bytes(memory[a:b]) for memory, a, b in spans] == values[start:stop]


@pytest.mark.parametrize("values", [images(9), [b"", b"short", b"x" * 12, b"x" * 13]])
def test_views_travel_between_processes(values: list[bytes]) -> None:
    """As Ray Data sends them: Arrow's own bytes of a slice."""
    views = plain_views(chunk_of(values), len(values), verify=True)
    rows = pa.RecordBatch.from_arrays([views], ["jpeg"]).slice(1, 2)
    received = pa.ipc.read_record_batch(pa.py_buffer(rows.serialize().to_pybytes()), rows.schema)
    spans = view_spans(received.column("jpeg"))
    assert [bytes(memory[start:stop]) for memory, start, stop in spans] == values[1:3]


def test_nothing_is_copied() -> None:
    chunk = chunk_of(images(8))
    (memory, start, stop), *_ = view_spans(plain_views(chunk, 8, verify=True))
    assert memory.obj is not None
    assert pa.py_buffer(memory).address == pa.py_buffer(chunk).address
    assert bytes(chunk[start:stop]) == images(1)[0]


def test_any_flipped_bit_of_a_page_is_found() -> None:
    values = images(4)
    chunk = chunk_of(values, write_page_checksum=True)
    body = len(chunk) - sum(len(value) + 4 for value in values)
    for place in range(body, len(chunk), 13):
        spoiled = bytearray(chunk)
        spoiled[place] ^= 1 << place % 8
        with pytest.raises(BrokenShardError, match="checksum"):
            plain_views(memoryview(bytes(spoiled)), 4, verify=True)


def test_whatever_the_bytes_are_it_is_a_fault_or_values() -> None:
    """Broken headers and lengths never lead out of the chunk, nor to another error."""
    chunk, rng, faults = chunk_of(images(5)), random.Random(0), 0
    for _ in range(3000):
        spoiled = bytearray(chunk[: rng.choice([len(chunk), rng.randrange(len(chunk))])])
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(min(40, max(1, len(spoiled))))
            if place < len(spoiled):
                spoiled[place] = rng.randrange(256)
        try:
            found = plain_views(memoryview(bytes(spoiled)), 5, verify=False)
        except BrokenShardError:
            faults += 1
        else:
            found.validate(full=True)
            assert all(0 <= a <= b <= len(memory) for memory, a, b in view_spans(found))
    assert faults > 1000


@pytest.mark.parametrize(
    "header",
    [
        "15 00 18 00 3c 15 04 15 00 00 00",  # a text where the size should be
        "15 00 15 02 15 02 2c 18 00 15 00 00 00",  # and where the number of values should be
        "15 00 15 02 15 02 18 00 1c 15 04 15 00 00 00",  # and where the checksum should be
        "15 00 15 02 15 02 25 02",  # an end before its time
    ],
)
def test_headers_with_other_types_are_faults(header: str) -> None:
    with pytest.raises(BrokenShardError):
        plain_views(memoryview(bytes.fromhex(header) + bytes(8)), 2, verify=True)


OTHER_LAYOUTS: dict[str, dict[str, Any]] = {
    "a dictionary": {"use_dictionary": True},
    "compressed": {"compression": "snappy"},
    "another encoding": {"column_encoding": "DELTA_LENGTH_BYTE_ARRAY"},
    "another version": {"data_page_version": "2.0"},
}


@pytest.mark.parametrize("options", OTHER_LAYOUTS.values(), ids=list(OTHER_LAYOUTS))
def test_other_layouts_are_refused(options: dict[str, Any]) -> None:
    chunk = chunk_of([b"the same" * 20] * 9, **options)
    with pytest.raises(BrokenShardError, match="plain bytes, as `mstar targets` writes them"):
        plain_views(chunk, 9, verify=True)


def test_another_number_of_values_is_a_fault() -> None:
    values = images(6)
    with pytest.raises(BrokenShardError, match="expected 5 values in a column, got 6"):
        plain_views(chunk_of(values), 5, verify=True)
    with pytest.raises(BrokenShardError, match="header of a page cannot be read"):
        plain_views(chunk_of(values), 7, verify=True)
