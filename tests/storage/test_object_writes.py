"""Whole writes: equal on disk and S3, atomic, exclusive, and never half visible."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mstar.storage import local, objects, s3
from mstar.storage.processes import process_mark
from support.storage_children import write_forever, write_race

SPAWN = multiprocessing.get_context("spawn")


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
