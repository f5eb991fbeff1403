"""Checkpoints of a run alone: whole or not counted, on a disk and on a real S3 server."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mstar.errors import CheckpointError
from mstar.storage import objects
from mstar.training.sessions import (
    STATE_FILE,
    LocalSession,
    Session,
    TrainState,
    checkpoint_name,
    read_state,
)
from support.s3 import make_bucket

STATE = TrainState(step=0, world_size=1, fingerprint="f", extra={"waited": 2}, best=0.25)


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on each kind of storage."""
    if request.param == "disk":
        return str(tmp_path / "root")
    request.getfixturevalue("s3_server")
    return f"{make_bucket('mstar-sessions')}/{secrets.token_hex(6)}"


def session_at(root: str, keep: int = 2) -> LocalSession:
    return LocalSession(root, device=torch.device("cpu"), keep=keep)


def write(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "weights.bin").write_bytes(b"w" * 1000)
    (folder / "latest").write_text("deep")


def save(session: LocalSession, step: int) -> None:
    session.save(write, replace(STATE, step=step), {"loss": 1.0})


def newest_step(root: str) -> int | None:
    with session_at(root).latest() as folder:
        if folder is None:
            return None
        assert (folder / "deep" / "weights.bin").read_bytes() == b"w" * 1000
        assert (folder / "latest").read_text() == "deep"
        return read_state(folder).step


def names_in(root: str) -> set[str]:
    return {info.rel.split("/")[0] for info in objects.list_files(root)}


def test_the_newest_is_found_and_old_ones_go(root: str) -> None:
    session: Session = session_at(root)
    assert isinstance(session, Session)
    assert newest_step(root) is None
    for step in (5, 10, 99_999_999, 100_000_000):  # more digits than the name pads to
        save(session_at(root), step)
        assert newest_step(root) == step
    assert len(names_in(root)) == 2
    with session_at(root).latest() as folder:
        assert folder is not None
        assert read_state(folder) == replace(STATE, step=100_000_000)


def test_a_save_that_failed_half_way_does_not_count_and_is_tidied_up(root: str) -> None:
    save(session_at(root), 1)

    def fails(folder: Path) -> None:
        write(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        session_at(root).save(fails, replace(STATE, step=2), {})
    objects.write_whole(objects.join(root, "step-00000003-w1-abcdef01", "latest"), b"killed here")
    assert newest_step(root) == 1
    save(session_at(root), 4)
    assert len(names_in(root)) == 2  # 1 and 4


@pytest.mark.parametrize("damage", ["file gone", "file cut", "state cut", "state gone"])
def test_a_damaged_checkpoint_does_not_count_and_is_never_kept_for_a_whole_one(
    root: str, damage: str
) -> None:
    save(session_at(root), 1)
    save(session_at(root), 2)
    newest = max(names_in(root))
    weights, state = (objects.join(root, newest, rel) for rel in ("deep/weights.bin", STATE_FILE))
    if damage == "file gone":
        objects.delete(weights)
    elif damage == "file cut":
        objects.write_whole(weights, b"w" * 999)
    elif damage == "state cut":
        objects.write_whole(state, objects.read_bytes(state)[:-30])
    else:
        objects.delete(state)
    assert newest_step(root) == 1
    save(session_at(root, keep=2), 3)
    assert newest_step(root) == 3
    assert newest not in names_in(root)
    assert len(names_in(root)) == 2  # 1 is kept: a broken one does not take its place


def test_what_is_no_checkpoint_of_ours_is_left_alone(root: str) -> None:
    others = (
        "notes.txt",
        "stage1-abc/step-00000001-w2-aaaa/latest",
        "step-1/x",
        "best/model.safetensors",
    )
    for rel in others:
        objects.write_whole(objects.join(root, rel), b"mine")
    for step in range(5):
        save(session_at(root, keep=1), step)
    assert {info.rel for info in objects.list_files(root)} >= set(others)
    assert newest_step(root) == 4


def test_two_runs_in_one_folder_are_noticed(root: str) -> None:
    """One prunes what the other is still writing; that one must not take it for whole."""

    def slow(folder: Path) -> None:
        write(folder)

    class Other(LocalSession):
        """Is overtaken between its files and its state."""

        def _prune(self, mine: str) -> None:
            objects.delete_tree(objects.join(root, mine))
            objects.write_whole(objects.join(root, mine, STATE_FILE), b'{"files": {"latest": 4}}')
            super()._prune(mine)

    with pytest.raises(CheckpointError, match="another run works in this folder"):
        Other(root, device=torch.device("cpu")).save(slow, STATE, {})
    assert newest_step(root) is None


def test_names_differ_by_attempt_and_number_of_ranks() -> None:
    names = {
        checkpoint_name(replace(STATE, step=step, world_size=ranks), attempt)
        for step in (1, 2)
        for ranks in (1, 2)
        for attempt in ("aaaaaaaa", "bbbbbbbb")
    }
    assert len(names) == 8


@pytest.mark.parametrize("content", [None, "", "[]", '{"step": 1}', '{"a": 1}'])
def test_a_state_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / STATE_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=STATE_FILE):
        read_state(tmp_path)


SAVER = """
import sys, time
from dataclasses import replace
from pathlib import Path
import torch
from mstar.training.interrupts import stop_on_sigterm
from mstar.training.sessions import LocalSession, TrainState

def write(folder):
    for number in range(20):
        (folder / f"{number}.bin").write_bytes(bytes([step % 251]) * 200_000)

stop_on_sigterm()
session = LocalSession(sys.argv[1], device=torch.device("cpu"))
for step in range(1, 100_000):
    session.save(write, TrainState(step=step, world_size=1, fingerprint="f"), {})
    print(step, flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_killed_while_saving_leaves_a_whole_checkpoint(
    tmp_path: Path, how: signal.Signals
) -> None:
    root = str(tmp_path / "root")
    command = [sys.executable, "-c", SAVER, root]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as job:
        assert job.stdout is not None
        for _ in range(3):
            said = int(job.stdout.readline())
        time.sleep(0.013)
        os.kill(job.pid, how)
        said = max([said, *map(int, job.stdout.read().split())])
    with session_at(root).latest() as folder:
        assert folder is not None
        step = read_state(folder).step
        assert step >= said
        for rel in json.loads((folder / STATE_FILE).read_text())["files"]:
            assert (folder / rel).read_bytes() == bytes([step % 251]) * 200_000
