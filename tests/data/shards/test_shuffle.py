"""Hashes, buckets and sorted rows: any cut of the work gives one order."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.data.shards.buckets import put_unit, read_bucket, read_unit
from mstar.data.shards.hashing import buckets_of, row_hashes
from mstar.data.shards.rows import RowHeap, SlideRows, make_batch
from mstar.errors import FeatureError
from support.shard_sets import slide_rows

DIM = 16


def coords_of(num: int) -> np.ndarray:
    index = np.arange(num)
    return np.stack([index % 300, index // 300], axis=1).astype(np.int64) * 256


def test_a_hash_depends_on_seed_slide_and_position_alone() -> None:
    coords = coords_of(1000)
    hashes = row_hashes(0, "a", coords)
    order = np.random.default_rng(0).permutation(1000)
    np.testing.assert_array_equal(row_hashes(0, "a", coords[order]), hashes[order])
    for other in (
        row_hashes(1, "a", coords),
        row_hashes(0, "b", coords),
        row_hashes(0, "a", coords + 1),
    ):
        assert not (other == hashes).any()


def test_hashes_are_spread_evenly_and_without_repeats() -> None:
    hashes = np.concatenate([row_hashes(0, str(slide), coords_of(20_000)) for slide in range(5)])
    assert len(np.unique(hashes)) == len(hashes)
    counts = np.bincount(buckets_of(hashes, 50), minlength=50)
    chi = ((counts - 2000) ** 2 / 2000).sum()
    assert 20 < chi < 100, "49 degrees of freedom"
    neighbours = np.corrcoef(hashes[:-1].astype(float), hashes[1:].astype(float))[0, 1]
    assert abs(neighbours) < 0.02, "neighbours on the slide are strangers in the order"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), num_buckets=st.integers(1, 1 << 20))
def test_buckets_are_in_the_order_of_the_hash(seed: int, num_buckets: int) -> None:
    hashes = np.sort(row_hashes(seed, "a", coords_of(200)))
    buckets = buckets_of(hashes, num_buckets)
    assert (np.diff(buckets) >= 0).all()
    assert 0 <= buckets.min() <= buckets.max() < num_buckets


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 30), max_size=4), num_buckets=st.integers(1, 9))
def test_units_and_buckets_give_the_order_of_one_sort(
    cuts: list[int], num_buckets: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("units")
    slides = [slide_rows(slide, 15, target_dim=DIM, patch_px=8) for slide in range(2)]
    whole = RowHeap([make_batch(rows, seed=3) for rows in slides], DIM)
    edges = [0, *sorted(cuts), 30]
    one = pa.Table.from_batches([make_batch(rows, seed=3) for rows in slides]).combine_chunks()
    batch = one.to_batches()[0]
    headers = []
    for number, (start, stop) in enumerate(pairwise(edges)):
        uri = str(folder / f"{number}.rows")
        part = batch.slice(start, stop - start)
        put_unit(uri, [part], num_buckets=num_buckets, target_dim=DIM, facts={"n": number})
        headers.append(read_unit(uri))
    found: list[dict[str, object]] = []
    for bucket in range(num_buckets):
        parts = [read_bucket(header, bucket) for header in headers if header is not None]
        heap = RowHeap([part for part in parts if part is not None], DIM)
        assert len(heap) == sum(header.rows[bucket] for header in headers if header is not None)
        found += heap.take(0, len(heap)).to_pylist()
    assert found == whole.take(0, 30).to_pylist()
    assert [header.facts["n"] for header in headers if header] == list(range(len(headers)))


def test_a_large_header_is_read_whole(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.rows")
    batch = make_batch(slide_rows(0, 9, target_dim=DIM, patch_px=8), seed=0)
    put_unit(uri, [batch], num_buckets=50_000, target_dim=DIM, facts={"long": "x" * 100_000})
    header = read_unit(uri)
    assert header is not None
    assert header.rows.sum() == 9
    buckets = np.flatnonzero(header.rows).tolist()
    rows = [read_bucket(header, bucket) for bucket in buckets]
    assert sum(len(part) for part in rows if part is not None) == 9
    assert read_bucket(header, int(np.argmin(header.rows))) is None


def test_what_is_no_unit_is_told(tmp_path: Path) -> None:
    assert read_unit(str(tmp_path / "absent.rows")) is None
    (tmp_path / "other.rows").write_bytes(b"something else")
    with pytest.raises(FeatureError, match="expected rows of patch shards"):
        read_unit(str(tmp_path / "other.rows"))


def test_rows_with_equal_hashes_are_sorted_by_slide_and_position() -> None:
    """It happens once in thousands of data sets, so it is made to happen."""
    rows = [slide_rows(slide, 6, target_dim=DIM, patch_px=8) for slide in (1, 0)]
    batches = []
    for part in rows:
        batch = make_batch(part, seed=0).to_pydict()
        batch["hash"] = [7] * 6
        schema = make_batch(part, seed=0).schema
        batches.append(pa.RecordBatch.from_pydict(batch, schema=schema))
    heap = RowHeap(batches, DIM)
    found = heap.take(0, 12).to_pylist()
    keys = [(row["slide_id"], row["x_l0"], row["y_l0"]) for row in found]
    assert keys == sorted(keys)
    assert heap.duplicate() is None
    assert RowHeap([batches[0], batches[0]], DIM).duplicate() is not None


def test_a_patch_that_comes_twice_is_named() -> None:
    once = slide_rows(0, 5, target_dim=DIM, patch_px=8)
    again = SlideRows(
        slide_id=once.slide_id,
        case_id=once.case_id,
        coords=once.coords[3:4],
        jpegs=once.jpegs[3:4],
        targets=once.targets[3:4],
    )
    heap = RowHeap([make_batch(rows, seed=0) for rows in (once, again)], DIM)
    assert heap.duplicate() == ("slide-00", 768, 0)
    assert RowHeap([make_batch(once, seed=0)], DIM).duplicate() is None


def test_no_rows_are_no_trouble() -> None:
    heap = RowHeap([], DIM)
    assert len(heap) == len(heap.hashes()) == len(heap.take(0, 0)) == 0
