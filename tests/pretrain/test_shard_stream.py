"""Streams of batches: equal from Ray Data and from threads, resumable, bounded, ended cleanly."""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mstar.data.shards.batches import Seat
from mstar.data.shards.buffers import Buffers
from mstar.data.shards.decode import PatchBatch
from mstar.data.shards.format import read_index
from mstar.data.shards.order import NO_ROW, Cursor, EpochOrder, OrderConfig
from mstar.data.shards.pieces import PieceTable, group_rows
from mstar.data.shards.reader import ShardReader
from mstar.errors import ConfigError, StorageError, TrainingError
from mstar.pretrain import shard_pieces
from mstar.pretrain.shard_pieces import RayPieces, RayReaders, read_pieces, take_pieces
from mstar.pretrain.shard_stream import PatchStream, StreamConfig, open_stream
from mstar.storage import objects, retry
from support.s3 import CountingProxy, Fault, free_ports, make_bucket, s3_environment
from support.shard_sets import write_shard_set

ORDER = OrderConfig(batch_size=24, lanes=6)
THREADS = StreamConfig(via="threads", reader_threads=3)
RAY = StreamConfig(via="ray", readers=RayReaders(tasks=2, pieces_per_task=3))
NUM_ROWS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 rows in five shards, in T/shards."""
    folder = tmp_path_factory.mktemp("stream") / "shards"
    write_shard_set(folder, num_rows=NUM_ROWS, rows_per_group=16, rows_per_shard=60)
    return folder


def collect(
    folder: Path | str,
    config: StreamConfig,
    *,
    cursor: Cursor | None = None,
    seat: Seat | None = None,
    order: OrderConfig = ORDER,
) -> list[tuple[int, PatchBatch]]:
    stream = open_stream(str(folder), order, cursor or Cursor(), seat or Seat(), config)
    found = list(stream)
    stream.close()
    return found


def assert_equal(left: list[tuple[int, PatchBatch]], right: list[tuple[int, PatchBatch]]) -> None:
    assert [step for step, _ in left] == [step for step, _ in right]
    for (_, one), (_, other) in zip(left, right, strict=True):
        for name in ("rows", "weights", "targets", "pixels"):
            assert (getattr(one, name) == getattr(other, name)).all()
        assert one.identities() == other.identities()


@pytest.mark.ray
def test_ray_and_threads_give_the_same_batches(
    folder: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_pieces, "CHAPTER_TASKS", 4)  # two chapters, of twelve pieces at most
    seat, cursor = Seat(rank=1, world_size=2), Cursor(epoch=1, step=2)
    ours = collect(folder, THREADS, seat=seat, cursor=cursor)
    assert len(ours) == 11
    assert_equal(ours, collect(folder, RAY, seat=seat, cursor=cursor))


@pytest.mark.ray
def test_ray_says_what_is_broken_as_threads_do(tmp_path: Path, local_ray: None) -> None:
    index = write_shard_set(tmp_path, num_rows=90, rows_per_group=8, rows_per_shard=30)
    (tmp_path / index.shards[1].name).write_bytes(b"no longer a shard")
    told = []
    for config in (THREADS, RAY):
        stream = open_stream(
            str(tmp_path), ORDER, Cursor(), Seat(), replace(config, max_bad_share=0.5)
        )
        trained = [int(batch.weights.sum()) for _, batch in stream]
        stream.close()
        assert sum(trained) == 90 - index.shards[1].num_rows
        told.append([str(fault) for fault in stream.faults.first])
    assert told[0] == told[1]
    assert len(told[0]) >= 4


@pytest.mark.ray
def test_a_ray_stream_that_is_closed_early_ends_its_dataset(folder: Path, local_ray: None) -> None:
    before = _executors()
    stream = open_stream(str(folder), ORDER, Cursor(), Seat(), RAY)
    step, _ = next(iter(stream))
    assert step == 0
    assert _executors() > before
    stream.close()
    deadline_s = time.monotonic() + 20
    while _executors() > before and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert _executors() == before


@pytest.mark.ray
def test_a_ray_stream_rests_while_its_batches_wait(folder: Path, local_ray: None) -> None:
    """Ray Data's own loop runs in the trainer's process: all it takes, the trainer has not."""
    stream = open_stream(str(folder), ORDER, Cursor(), Seat(), RAY)
    next(iter(stream))
    time.sleep(1.0)  # everything is read ahead, and nobody takes it
    started_s = time.process_time()
    time.sleep(2.0)
    busy_s = time.process_time() - started_s
    stream.close()
    assert busy_s < 0.6, f"{busy_s:.2f} s of CPU in 2 s"


def _executors() -> int:
    return sum("StreamingExecutor" in thread.name for thread in threading.enumerate())


def test_trouble_with_storage_comes_through_a_task_by_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would make another exception of it; so it travels as a value."""
    index = read_index(str(folder))
    table = PieceTable(index, EpochOrder(group_rows(index), ORDER, epoch=0).pieces(0, 1))
    todo = pa.Table.from_pylist([asdict(table[0])])
    monkeypatch.setattr(retry.RetryPolicy, "wait_s", lambda *_: 0.0)
    nowhere = ShardReader("s3://bucket/shards", patience_s=0.0)
    with s3_environment(f"http://127.0.0.1:{free_ports(1)[0]}"):
        (block,) = read_pieces(todo, reader=nowhere)
    with pytest.raises(StorageError, match=r"s3://bucket/shards.*failed 13 times"):
        list(take_pieces(block, table, Buffers()))
    (block,) = read_pieces(todo, reader=ShardReader(str(folder)))
    (found,) = take_pieces(block, table, Buffers())
    assert found.rows is not None
    assert found.rows.equals(ShardReader(str(folder)).read(table[0]).rows)


@pytest.mark.slow
@pytest.mark.ray
def test_ray_reads_no_further_ahead_than_allowed(tmp_path: Path, local_ray: None) -> None:
    """With a slow trainer the readers stop: what they read no more is gone when it is asked for."""
    index = write_shard_set(tmp_path, num_rows=1200, rows_per_group=8, rows_per_shard=8)
    epoch = EpochOrder(group_rows(index), OrderConfig(batch_size=8, lanes=2), epoch=0)
    pieces = PieceTable(index, epoch.pieces(0, 1))
    readers = RayReaders(tasks=2, pieces_per_task=2)
    bound = 10 * pieces.size_bytes(0)
    source = RayPieces(ShardReader(str(tmp_path)), pieces, readers, ahead_bytes=bound)
    arriving = iter(source)
    found = [next(arriving)]
    time.sleep(3)
    for path in tmp_path.glob("*.parquet"):
        path.unlink()
    found += arriving
    source.close()
    assert [each.piece.number for each in found] == list(range(len(pieces)))
    read = [each.piece.number for each in found if not each.fault]
    assert len(read) < 30
    assert len(pieces) >= 150


def test_every_row_is_trained_once_across_a_kill_and_another_world_size(folder: Path) -> None:
    seen: list[int] = []
    for rank in range(2):
        stream = open_stream(str(folder), ORDER, Cursor(), Seat(rank=rank, world_size=2), THREADS)
        for step, batch in stream:
            if step == 7:  # not trained: the run was killed here
                break
            seen += batch.rows[batch.weights > 0].tolist()
        stream.close()
    for rank in range(3):
        seat = Seat(rank=rank, world_size=3)
        for _, batch in collect(folder, THREADS, cursor=Cursor(step=7), seat=seat):
            seen += batch.rows[batch.weights > 0].tolist()
    assert sorted(seen) == list(range(NUM_ROWS))


def test_ranks_have_equally_many_rows_at_every_step(folder: Path) -> None:
    """Four ranks on six lanes: two of them own one lane, and pad."""
    ranks = [collect(folder, THREADS, seat=Seat(rank=rank, world_size=4)) for rank in range(4)]
    steps = [[(step, len(batch)) for step, batch in rank] for rank in ranks]
    assert steps[0] == steps[1] == steps[2] == steps[3]
    weights = sum(float(batch.weights.sum()) for rank in ranks for _, batch in rank)
    assert weights == NUM_ROWS


def test_a_stream_that_is_closed_early_leaves_no_thread(folder: Path) -> None:
    _await_no_threads()  # those of the test before may be on their way out
    stream = open_stream(str(folder), ORDER, Cursor(), Seat(), THREADS)
    assert isinstance(stream, PatchStream)
    step, _ = next(iter(stream))
    assert step == 0
    assert len(_own_threads()) >= 3
    stream.close()
    stream.close()
    assert list(stream) == []
    _await_no_threads()


def _await_no_threads() -> None:
    deadline_s = time.monotonic() + 20
    while _own_threads() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert _own_threads() == []


def _own_threads() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name.startswith(("shard-stream", "decode", "read-ahead"))]


def test_the_trainers_wait_is_measured(folder: Path) -> None:
    stream = open_stream(str(folder), ORDER, Cursor(), Seat(), THREADS)
    steps = iter(stream)
    next(steps)
    first_s = stream.waited_s
    assert first_s > 0
    time.sleep(1.0)  # two batches are made meanwhile
    next(steps)
    assert stream.waited_s - first_s < 0.5
    assert stream.num_steps == 13
    stream.close()


def test_what_went_wrong_ahead_is_raised_behind_the_batches_before_it(tmp_path: Path) -> None:
    index = write_shard_set(tmp_path, num_rows=120, rows_per_group=8, rows_per_shard=120)
    order = OrderConfig(batch_size=4, lanes=1)
    epoch = EpochOrder(group_rows(index), order, epoch=0)
    pieces = epoch.pieces(0, 1)
    path = tmp_path / index.shards[0].name
    _spoil_group(path, int(pieces.group[9]))
    stream = open_stream(str(tmp_path), order, Cursor(), Seat(), THREADS)
    steps = iter(stream)
    assert [next(steps)[0] for _ in range(18)] == list(range(18))  # nine groups of eight rows
    with pytest.raises(TrainingError, match="cannot be trained"):
        next(steps)
    stream.close()


def _spoil_group(path: Path, group: int) -> None:
    """Overwrite the JPEG column of a row group."""
    column = pq.read_metadata(path).row_group(group).column(0)
    data = bytearray(path.read_bytes())
    start = column.data_page_offset
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(data)


def test_a_run_goes_on_when_an_object_store_refuses_and_cuts(
    s3_server: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = _uploaded(folder)
    expected = collect(folder, THREADS)
    monkeypatch.setattr(retry.RetryPolicy, "wait_s", lambda *_: 0.0)
    with CountingProxy(s3_server) as proxy, s3_environment(proxy.endpoint):
        proxy.inject(Fault(kind="cut", path_part=".parquet", times=3, after_bytes=200))
        proxy.inject(Fault(kind="503", path_part=".parquet", times=15))
        assert_equal(expected, collect(remote, THREADS))


@pytest.mark.slow
def test_a_run_goes_on_after_30_s_without_the_object_store(s3_server: str, folder: Path) -> None:
    """With the waits that a user has."""
    remote = _uploaded(folder)
    expected = collect(folder, THREADS)
    with CountingProxy(s3_server) as proxy, s3_environment(proxy.endpoint):
        stream = open_stream(remote, ORDER, Cursor(), Seat(), replace(THREADS, ahead_bytes=1))
        steps = iter(stream)
        found = [next(steps)]
        started_s = time.monotonic()
        outage = Fault(kind="503", path_part=".parquet", times=10**9)
        proxy.inject(outage)
        threading.Timer(30.0, proxy.reset).start()
        found += list(steps)
        stream.close()
    assert time.monotonic() - started_s > 25
    assert_equal(expected, found)


def _uploaded(folder: Path) -> str:
    remote = f"{make_bucket('shard-stream')}/{secrets.token_hex(4)}"
    for info in objects.list_files(folder):
        objects.put_file(info.uri, objects.join(remote, info.rel))
    return remote


def test_an_empty_lane_or_a_finished_epoch_is_no_trouble(tmp_path: Path) -> None:
    write_shard_set(tmp_path, num_rows=4, rows_per_group=2, rows_per_shard=4, num_slides=2)
    found = collect(tmp_path, THREADS)
    rows = np.concatenate([batch.rows for _, batch in found])
    assert sorted(rows[rows != NO_ROW].tolist()) == [0, 1, 2, 3]
    assert collect(tmp_path, THREADS, cursor=Cursor(step=1)) == []


def test_settings_that_cannot_work_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="decode_threads: expected at least 1, got 0"):
        StreamConfig(decode_threads=0)
    with pytest.raises(ConfigError, match="max_bad_share"):
        StreamConfig(max_bad_share=1.5)
    with pytest.raises(ConfigError, match="7 workers: expected no more than the 6 lanes"):
        open_stream(str(folder), ORDER, Cursor(), Seat(rank=0, world_size=7), THREADS)


def test_the_folder_above_the_shards_will_do(folder: Path) -> None:
    assert_equal(collect(folder.parent, THREADS), collect(folder, THREADS))
