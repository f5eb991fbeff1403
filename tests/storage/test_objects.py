"""Whole writes: equal on disk and S3, atomic, exclusive, and never half visible."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import numpy as np
import pytest

from mstar.errors import ConfigError, StorageError
from mstar.storage import local, objects, retry, s3
from mstar.storage.processes import process_mark
from support.s3 import CountingProxy, Fault, s3_environment
from support.storage_children import read_in_fork, write_forever, write_race

SPAWN = multiprocessing.get_context("spawn")
ODD_NAMES = ["a b", "ünïcode-切片", "100%25", "plus+and&", "#hash?x=1", "it's", "deep/er/name.h5"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_what_is_written_is_read_and_listed_under_its_name(root: str, name: str) -> None:
    uri = objects.join(root, name)
    assert not objects.exists(uri)
    assert objects.write_whole(uri, b"content")
    assert objects.read_bytes(uri) == b"content"
    listed = list(objects.list_files(root))
    assert [(info.uri, info.rel, info.size_bytes) for info in listed] == [(uri, name, 7)]
    assert objects.stat(uri).tag == listed[0].tag
    objects.delete(uri)
    objects.delete(uri)
    assert not objects.exists(uri)


def test_file_addresses_are_percent_encoded_paths(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    root = (tmp_path / "a b").as_uri()
    assert "%20" in root
    objects.write_whole(objects.join(root, "c d%"), b"x")
    assert (tmp_path / "a b" / "c d%").read_bytes() == b"x"
    (info,) = objects.list_files(root)
    assert info.rel == "c d%"
    assert objects.read_bytes(info.uri) == b"x"


@pytest.mark.parametrize("part", ["../x", "a/../../x", "/etc/passwd", ".."])
def test_join_does_not_leave_the_folder(part: str) -> None:
    with pytest.raises(ConfigError, match="leads out"):
        objects.join("/data", part)


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"gs:// is not supported.*s3://"):
        objects.read_bytes("gs://bucket/x")


def test_missing_files_raise_file_not_found(root: str) -> None:
    with pytest.raises(FileNotFoundError):
        objects.read_bytes(objects.join(root, "absent"))
    with pytest.raises(FileNotFoundError):
        objects.open_read(objects.join(root, "absent"))
    assert objects.read_tagged(objects.join(root, "absent")) is None
    assert list(objects.list_files(objects.join(root, "absent"))) == []


def test_a_missing_bucket_is_not_an_empty_one(s3_server: str) -> None:
    for act in (
        lambda: objects.write_whole("s3://no-such-bucket/x", b""),
        lambda: list(objects.list_files("s3://no-such-bucket/x")),
    ):
        with pytest.raises(StorageError, match=r"no-such-bucket.*Make the bucket"):
            act()


def test_if_absent_keeps_the_first(root: str) -> None:
    uri = objects.join(root, "x")
    assert objects.write_whole(uri, b"first", if_absent=True)
    assert not objects.write_whole(uri, b"second", if_absent=True)
    assert objects.read_bytes(uri) == b"first"
    assert objects.write_whole(uri, b"third")
    assert objects.read_bytes(uri) == b"third"


def test_large_files_go_up_in_parts_and_stay_exclusive(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)  # the least that S3 allows
    data = np.random.default_rng(0).bytes(13 << 20)
    source = tmp_path / "large"
    source.write_bytes(data)
    uri = objects.join(bucket, "large")
    assert objects.put_file(source, uri, if_absent=True)
    assert "-3" in objects.stat(uri).tag, "the ETag of an upload in three parts"
    assert not objects.put_file(source, uri, if_absent=True)
    assert not objects.write_whole(uri, bytes(13 << 20), if_absent=True)
    assert objects.read_bytes(uri) == data


def test_put_file_copies(root: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"payload")
    assert objects.put_file(source, objects.join(root, "sub/x"), if_absent=True)
    assert not objects.put_file(source, objects.join(root, "sub/x"), if_absent=True)
    assert objects.read_bytes(objects.join(root, "sub/x")) == b"payload"


def test_of_racing_processes_one_writes_each_name(root: str) -> None:
    uris = [objects.join(root, f"race-{n}") for n in range(8)]
    barrier, wins = SPAWN.Barrier(2), SPAWN.Queue()
    children = [
        SPAWN.Process(target=write_race, args=(uris, content, barrier, wins))
        for content in (b"same", b"same")  # equal bytes, as equal work gives
    ]
    for child in children:
        child.start()
    results = [wins.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert [a + b for a, b in zip(*results, strict=True)] == [1] * len(uris)


def test_of_racing_threads_one_replaces(root: str) -> None:
    uri = objects.join(root, "x")
    with ThreadPoolExecutor(6) as pool:
        for _ in range(2):
            objects.write_whole(uri, b"old")
            tag = objects.read_tagged(uri)[1]
            wins = list(
                pool.map(lambda n, tag=tag: objects.replace_if(uri, b"%d" % n, tag), range(6))
            )
            assert sum(wins) == 1
            assert objects.read_bytes(uri) == b"%d" % wins.index(True)


@pytest.mark.parametrize("step", ["rename", "link"])
def test_a_writer_stopped_half_way_through_replacing_wins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    uri = tmp_path / "x"
    objects.write_whole(uri, b"old")
    tag = objects.read_tagged(uri)[1]
    act = getattr(os, step)

    def late(source: Path, target: Path) -> None:
        monkeypatch.undo()
        objects.write_whole(uri, b"another's")
        act(source, target)

    monkeypatch.setattr(local.os, step, late)
    assert not objects.replace_if(uri, b"mine", tag)
    assert objects.read_bytes(uri) == b"another's"
    assert os.listdir(tmp_path) == ["x"]


def test_conditional_delete_spares_a_newer_file(root: str) -> None:
    uri = objects.join(root, "x")
    objects.write_whole(uri, b"old")
    tag = objects.read_tagged(uri)[1]
    objects.write_whole(uri, b"newer")
    assert not objects.delete_if(uri, tag)
    assert objects.read_bytes(uri) == b"newer"
    assert objects.delete_if(uri, objects.read_tagged(uri)[1])
    assert not objects.exists(uri)


def test_a_killed_writer_leaves_nothing_half_written(root: str) -> None:
    uri, megabytes = objects.join(root, "x"), 4
    for _ in range(3):
        started = SPAWN.Event()
        child = SPAWN.Process(target=write_forever, args=(uri, started, megabytes))
        child.start()
        assert started.wait(60)
        for _ in range(5):  # what a reader sees meanwhile
            assert_whole(objects.read_bytes(uri), megabytes)
        child.kill()
        child.join()
        assert_whole(objects.read_bytes(uri), megabytes)
        assert [info.rel for info in objects.list_files(root)] == ["x"]


def assert_whole(data: bytes, megabytes: int) -> None:
    assert len(data) == megabytes << 20
    assert data.count(data[:1]) == len(data)


def test_temporary_files_of_dead_writers_are_hidden_and_collected(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    old, young = tmp_path / "sub" / ".mstar-1-ab.tmp", tmp_path / ".mstar-2-cd.tmp"
    kept = [tmp_path / ".mstar-notes", tmp_path / "x.h5"]
    for path in (old, young, *kept):
        path.touch()
    for path in (old, *kept):
        os.utime(path, (time.time() - 7200,) * 2)
    assert [info.rel for info in objects.list_files(tmp_path)] == ["x.h5"]
    assert objects.collect_stale_temps(tmp_path, older_than_s=3600) == 1
    assert not old.exists()
    assert young.exists()
    assert all(path.exists() for path in kept)


def test_a_temporary_file_of_a_process_known_dead_needs_no_age(tmp_path: Path) -> None:
    command = "import sys; from mstar.storage.processes import process_mark; print(process_mark())"
    dead = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    mine, elsewhere = process_mark(), f"0123456789ab-{dead.stdout.split('-', 1)[1].strip()}"
    names = {mark: tmp_path / f".mstar-{mark}-ab.tmp" for mark in (mine, elsewhere, "1")}
    gone = tmp_path / f".mstar-{dead.stdout.strip()}-ab.tmp"
    for path in (gone, *names.values()):
        path.touch()
    assert objects.collect_stale_temps(tmp_path, older_than_s=3600) == 1
    assert not gone.exists()
    assert all(path.exists() for path in names.values())


def test_writers_leave_no_temporary_files(tmp_path: Path) -> None:
    uri = str(tmp_path / "x")
    objects.write_whole(uri, b"1", if_absent=True)
    objects.write_whole(uri, b"2", if_absent=True)
    objects.write_whole(uri, b"3")
    objects.replace_if(uri, b"4", objects.read_tagged(uri)[1])
    objects.replace_if(uri, b"5", "stale")
    with pytest.raises(FileNotFoundError):
        objects.put_file(tmp_path / "absent", uri)
    assert os.listdir(tmp_path) == ["x"]


def test_listing_is_fresh_and_filtered(root: str) -> None:
    for name in ("a.h5", "b/c.h5", "b/d.txt", ".hidden/e.h5"):
        objects.write_whole(objects.join(root, name), b"")
    rels = sorted(info.rel for info in objects.list_files(root, suffix=".h5"))
    assert rels == ["a.h5", "b/c.h5"]
    objects.write_whole(objects.join(root, "later.h5"), b"")
    objects.delete(objects.join(root, "a.h5"))
    rels = sorted(info.rel for info in objects.list_files(root, suffix=".h5"))
    assert rels == ["b/c.h5", "later.h5"]


def test_listing_does_not_mistake_a_prefix_for_a_folder(root: str) -> None:
    objects.write_whole(objects.join(root, "run/x"), b"")
    objects.write_whole(objects.join(root, "run2/y"), b"")
    assert [info.rel for info in objects.list_files(objects.join(root, "run"))] == ["x"]
    objects.delete_tree(objects.join(root, "run"))
    assert [info.rel for info in objects.list_files(root)] == ["run2/y"]


def test_more_files_than_one_request_holds_are_listed_and_deleted(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "LIST_AT_ONCE", 40)
    monkeypatch.setattr(s3, "DELETE_AT_ONCE", 30)
    names = [f"{n:04d}" for n in range(100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: objects.write_whole(objects.join(bucket, name), b""), names))
    assert [info.rel for info in objects.list_files(bucket)] == names
    objects.delete_tree(bucket)
    assert list(objects.list_files(bucket)) == []


def test_delete_tree_spares_buckets(s3_server: str) -> None:
    with pytest.raises(StorageError, match="whole bucket"):
        objects.delete_tree("s3://mstar-storage/")


def test_a_folder_linked_into_itself_is_listed_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "x")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    assert sorted(i.rel for i in objects.list_files(tmp_path)) == ["a/x", "link"]


def test_open_read_seeks_like_a_file(root: str, tmp_path: Path) -> None:
    data = np.random.default_rng(1).bytes(3_000_000)
    uri = objects.join(root, "x")
    objects.write_whole(uri, data)
    rng = np.random.default_rng(2)
    with objects.open_read(uri) as file:
        for _ in range(20):
            start, length = (int(n) for n in rng.integers(0, [3_100_000, 200_000]))
            file.seek(start)
            assert file.read(length) == data[start : start + length]
        file.seek(-10, os.SEEK_END)
        assert file.read() == data[-10:]


def test_a_read_notices_that_the_object_was_replaced(bucket: str) -> None:
    uri = objects.join(bucket, "x")
    objects.write_whole(uri, bytes(5_000_000))
    with objects.open_read(uri) as file:
        file.read(10)
        objects.write_whole(uri, bytes(5_000_001))
        file.seek(4_000_000)
        with pytest.raises(StorageError, match="replaced while"):
            file.read(10)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local, "_flush", full)
    with pytest.raises(StorageError, match=r"writing .*/x: .*disk is full") as caught:
        objects.write_whole(tmp_path / "x", b"data")
    assert caught.value.transient
    assert os.listdir(tmp_path) == []


def test_wrong_keys_are_not_retried(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = retry.retries_made()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone-else")
    with pytest.raises(StorageError, match=r"HTTP 403.*keys of the store"):
        objects.read_bytes(objects.join(bucket, "x"))
    assert retry.retries_made() == before


@pytest.mark.parametrize("kind", ["503", "500", "cut"])
def test_reads_outlast_passing_trouble(
    bucket: str, proxy: CountingProxy, no_waiting: list[int], kind: str
) -> None:
    uri, data = objects.join(bucket, "x"), os.urandom(200_000)
    objects.write_whole(uri, data)
    before = retry.retries_made()
    proxy.inject(Fault(kind=kind, times=2))
    assert objects.read_bytes(uri) == data
    assert retry.retries_made() == before + 2
    assert len(no_waiting) == 2
    proxy.inject(Fault(kind=kind))
    assert len(list(objects.list_files(bucket))) == 1
    proxy.inject(Fault(kind="503", method="HEAD"))
    assert objects.exists(uri)


def test_writes_outlast_passing_trouble(
    bucket: str, proxy: CountingProxy, no_waiting: list[int]
) -> None:
    uri = objects.join(bucket, "x")
    proxy.inject(Fault(kind="503", method="PUT", times=2))
    assert objects.write_whole(uri, b"data", if_absent=True)
    assert objects.read_bytes(uri) == b"data"


def test_a_lost_answer_does_not_make_the_writer_a_loser(
    bucket: str, proxy: CountingProxy, no_waiting: list[int]
) -> None:
    uri = objects.join(bucket, "x")
    for times in (1, 3):
        proxy.inject(Fault(kind="lost", method="PUT", times=times))
        assert objects.write_whole(uri, b"data", if_absent=True)
        assert not objects.write_whole(uri, b"data", if_absent=True)
        objects.delete(uri)


def test_lasting_trouble_ends_as_a_storage_error(
    bucket: str, proxy: CountingProxy, no_waiting: list[int]
) -> None:
    uri = objects.join(bucket, "x")
    proxy.inject(Fault(kind="503", times=1000))
    with pytest.raises(StorageError, match=rf"{uri} failed 13 times.*503 SlowDown") as caught:
        objects.read_bytes(uri)
    assert caught.value.__cause__ is not None
    assert len(no_waiting) == retry.DEFAULT_POLICY.tries - 1


def test_a_server_that_is_not_there_ends_as_a_storage_error(
    no_waiting: list[int], s3_server: str
) -> None:
    with (
        s3_environment("http://127.0.0.1:9"),
        pytest.raises(StorageError, match=r"s3://bucket/x failed 13 times.*mstar doctor"),
    ):
        objects.read_bytes("s3://bucket/x")


def test_many_threads_share_one_client(bucket: str) -> None:
    def write_and_read(number: int) -> bytes:
        uri = objects.join(bucket, f"{number}")
        objects.write_whole(uri, b"%d" % number)
        return objects.read_bytes(uri)

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(write_and_read, range(100))) == [b"%d" % n for n in range(100)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_reads_what_its_parent_wrote(bucket: str, method: str) -> None:
    uri = objects.join(bucket, "x")
    objects.write_whole(uri, b"from the parent")  # the parent's client is in use
    context = multiprocessing.get_context(method)
    answers: Queue[bytes] = context.Queue()
    child = context.Process(target=read_in_fork, args=(uri, answers))
    child.start()
    assert answers.get(timeout=30) == b"from the parent"
    child.join()
    assert objects.read_bytes(uri) == b"from the parent"
