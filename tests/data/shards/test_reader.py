"""Pieces read from disk and from an object store, and what is said of broken shards."""

from __future__ import annotations

import json
import pickle
import secrets
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mstar.data.shards.buffers import Buffers
from mstar.data.shards.format import ShardIndex, shard_schema
from mstar.data.shards.pieces import Piece
from mstar.data.shards.read_ahead import ReadAhead
from mstar.data.shards.reader import ShardReader
from mstar.errors import StorageError
from mstar.storage import objects, retry
from support.s3 import CountingProxy, Fault, make_bucket, s3_environment
from support.shard_sets import table_of, write_three_shards


@pytest.fixture(scope="module")
def bucket(s3_server: str) -> tuple[str, ShardIndex]:
    """The same set in a bucket."""
    folder = f"{make_bucket('shard-reader')}/{secrets.token_hex(4)}"
    return folder, write_three_shards(folder)


@pytest.fixture(scope="module")
def _proxy(s3_server: str) -> Iterator[CountingProxy]:
    with CountingProxy(s3_server) as proxy:
        yield proxy


@pytest.fixture
def proxy(_proxy: CountingProxy) -> Iterator[CountingProxy]:
    """The server through a proxy; one for the module, since a new client takes a second."""
    _proxy.reset()
    with s3_environment(_proxy.endpoint):
        yield _proxy


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry.RetryPolicy, "wait_s", lambda *_: 0.0)


def expected_rows(folder: str, piece: Piece) -> pa.Table:
    data = objects.read_bytes(objects.join(folder, piece.shard))
    group = pq.ParquetFile(pa.BufferReader(data)).read_row_group(piece.group)
    return group.slice(piece.first, piece.stop - piece.first)


def check_all(folder: str, index: ShardIndex) -> None:
    """Every piece is what Arrow's own reader finds there."""
    reader, pieces = ShardReader(folder), table_of(index)
    assert len(pieces) >= 10
    for number in range(len(pieces)):
        found = reader.read(pieces[number])
        assert found.rows is not None
        assert found.fault == ""
        rows = pa.Table.from_batches([found.rows]).cast(shard_schema(index.target_dim))
        assert rows.equals(expected_rows(folder, pieces[number]))


def test_pieces_from_disk_are_what_arrow_reads(disk: tuple[str, ShardIndex]) -> None:
    check_all(*disk)


def test_pieces_from_an_object_store_are_what_arrow_reads(bucket: tuple[str, ShardIndex]) -> None:
    check_all(*bucket)


def test_a_small_footer_guess_only_costs_a_request(
    bucket: tuple[str, ShardIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mstar.data.shards.footers.GUESS_BYTES", 16)
    monkeypatch.setattr("mstar.data.shards.footers.CACHE_BYTES", 1)  # one is always held
    check_all(*bucket)


def test_a_remote_piece_is_one_request_of_its_row_group(
    bucket: tuple[str, ShardIndex], proxy: CountingProxy
) -> None:
    folder, index = bucket
    reader, pieces = ShardReader(folder), table_of(index)
    for number in range(len(pieces)):
        reader.read(pieces[number])  # the footers are held from here on
    for number in range(len(pieces)):
        proxy.reset()
        found = reader.read(pieces[number])
        assert found.rows is not None
        assert sum(proxy.served.requests.values()) == 1
        assert proxy.bytes_served < 1.5 * index.shards[0].num_bytes / 4


def test_readers_travel_to_other_processes(disk: tuple[str, ShardIndex]) -> None:
    folder, index = disk
    reader = pickle.loads(pickle.dumps(ShardReader(folder, patience_s=5.0, verify_checksums=False)))
    assert reader.arguments == (folder, 5, False)
    assert reader.read(table_of(index)[0]).rows is not None


def test_cut_connections_and_refusals_change_nothing(
    bucket: tuple[str, ShardIndex], proxy: CountingProxy, no_waiting: None
) -> None:
    folder, index = bucket
    proxy.inject(Fault(kind="503", times=5))
    proxy.inject(Fault(kind="cut", times=2, after_bytes=300))
    before = retry.retries_made()
    check_all(folder, index)
    assert retry.retries_made() == before + 7


def test_storage_that_is_away_longer_than_a_call_waits_is_waited_for(
    bucket: tuple[str, ShardIndex], proxy: CountingProxy, no_waiting: None
) -> None:
    folder, index = bucket
    piece = table_of(index)[0]
    longer = retry.DEFAULT_POLICY.tries + 1
    proxy.inject(Fault(kind="503", method="HEAD", times=longer))
    proxy.inject(Fault(kind="503", method="GET", times=longer))
    found = ShardReader(folder, patience_s=60.0).read(piece)
    assert found.rows is not None
    proxy.inject(Fault(kind="503", times=longer))
    with pytest.raises(StorageError, match="503"):
        ShardReader(folder, patience_s=0.0).read(piece)


def test_an_object_replaced_under_way_is_an_error_at_once(
    bucket: tuple[str, ShardIndex], proxy: CountingProxy
) -> None:
    folder, index = bucket
    piece = table_of(index)[0]
    copy = f"{folder}-copy"
    uri = objects.join(copy, piece.shard)
    data = objects.read_bytes(objects.join(folder, piece.shard))
    objects.write_whole(uri, data)
    reader = ShardReader(copy, patience_s=60.0)
    assert reader.read(piece).rows is not None
    objects.write_whole(uri, data[:-1] + b"2")
    with pytest.raises(StorageError, match="replaced while it was read"):
        reader.read(piece)


def test_readers_use_memory_again(disk: tuple[str, ShardIndex]) -> None:
    folder, index = disk
    buffers, pieces = Buffers(), table_of(index)
    for _ in range(2):  # epochs
        reader = ShardReader(folder, buffers=buffers)
        for number in range(len(pieces)):
            found = reader.read(pieces[number])
            assert found.rows is not None
            del found
    assert 1 <= sum(map(len, buffers._free.values())) <= 2  # by size


def test_reading_ahead_keeps_the_order_and_the_bound(disk: tuple[str, ShardIndex]) -> None:
    folder, index = disk
    pieces = table_of(index)
    most_bytes = max(pieces.size_bytes(number) for number in range(len(pieces)))
    for bound in (1, 3 * most_bytes, 10**9):
        ahead = ReadAhead(ShardReader(folder), pieces, ahead_bytes=bound, threads=3)
        found = [rows.piece.number for rows in ahead]
        ahead.close()
        assert found == list(range(len(pieces)))
        assert ahead.held_bytes == 0
        assert ahead.most_held_bytes <= max(bound, most_bytes)
    assert ahead.most_held_bytes > 5 * most_bytes  # without a bound it does read on


def test_sizes_of_pieces_add_up_to_the_shards(disk: tuple[str, ShardIndex]) -> None:
    folder, index = disk
    pieces = table_of(index)
    total = sum(pieces.size_bytes(number) for number in range(len(pieces)))
    on_disk = sum((Path(folder) / shard.name).stat().st_size for shard in index.shards)
    assert total == pytest.approx(on_disk, rel=0.02)
    rows = json.loads((Path(folder) / "index.json").read_text())["num_rows"]
    assert sum(pieces[n].stop - pieces[n].first for n in range(len(pieces))) == rows
