"""Conditional writes on a disk, alone in their folder for a moment."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from mstar.storage import folder_locks, local
from mstar.storage.folder_locks import alone_in


def test_no_third_writer_finds_a_name_free_while_another_looks_at_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A has replaced the file; B, who looked before, has it aside; C must not create it then."""
    path = tmp_path / "lease"
    path.write_bytes(b"A's")
    look = local.tag
    looks: list[Path] = []
    created: list[Future[bool]] = []
    creator = ThreadPoolExecutor(1)

    def slow_look(at: Path) -> str | None:
        looks.append(at)
        if len(looks) == 1:
            return "as it was before A"
        created.append(creator.submit(local.write, path, b"C's", if_absent=True))
        with pytest.raises(TimeoutError):
            created[0].result(0.2)  # it waits
        return look(at)

    monkeypatch.setattr(local, "tag", slow_look)
    assert not local.replace_if(path, b"B's", "as it was before A")
    assert created[0].result(10) is False
    creator.shutdown()
    assert path.read_bytes() == b"A's"
    assert [file.name for file in tmp_path.iterdir()] == ["lease"]


def test_a_holder_that_is_stopped_blocks_nobody_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_locks, "WAIT_S", 0.1)
    with alone_in(tmp_path):
        assert local.write(tmp_path / "x", b"1", if_absent=True)
    assert (tmp_path / "x").read_bytes() == b"1"


def test_threads_take_turns(tmp_path: Path) -> None:
    inside, most = 0, 0
    barrier = threading.Barrier(6)

    def enter(_: int) -> None:
        nonlocal inside, most
        barrier.wait()
        for _ in range(20):
            with alone_in(tmp_path):
                inside += 1
                most = max(most, inside)
                inside -= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(enter, range(6)))
    assert most == 1


def test_disks_without_locks_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(folder_locks.fcntl, "flock", refuse)
    path = tmp_path / "x"
    assert local.write(path, b"1", if_absent=True)
    assert not local.write(path, b"2", if_absent=True)
    tag = local.tag(path)
    assert tag is not None
    assert local.replace_if(path, b"3", tag)
    assert path.read_bytes() == b"3"


def test_a_folder_that_is_not_there_has_nothing_to_delete(tmp_path: Path) -> None:
    assert not local.delete_if(tmp_path / "none" / "x", "tag")
