"""A restarted job goes on with its MLflow run, whatever the first one's tracker does."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from mstar.training.tracking import SpoolTracker, start_tracking

JOB = """
import sys, time
from mstar.training.tracking import start_tracking
tracker = start_tracking('stage1', {{'lr': 1}}, out={out!r}, run_id='one')
tracker.log_metrics({{'loss': 3.0}}, step=1)
tracker.log_metrics({{'loss': 2.0}}, step=2)
print(tracker.process.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _no_tracking_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def has_runs(out: Path) -> bool:
    """A client that opens the database while the tracker creates it races with its migrations."""
    try:
        with sqlite3.connect(f"file:{out}/mlflow.db?mode=ro", uri=True) as db:
            return bool(db.execute("SELECT COUNT(*) FROM runs").fetchone()[0])
    except sqlite3.OperationalError:
        return False


def the_run(out: Path) -> tuple[MlflowClient, Run] | None:
    if not has_runs(out):
        return None
    client = MlflowClient(tracking_uri=f"sqlite:///{out}/mlflow.db")
    found = client.get_experiment_by_name("stage1")
    runs = client.search_runs([found.experiment_id]) if found is not None else []
    assert len(runs) < 2
    return (client, runs[0]) if runs else None


def status_of(out: Path) -> str:
    found = the_run(out)
    return found[1].info.status if found else ""


def losses(out: Path) -> list[tuple[int, float]]:
    found = the_run(out)
    if found is None:
        return []
    client, run = found
    return sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss"))


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.1)


def gone(pid: int) -> bool:
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def killed_job(out: Path, *, tracker_stops: bool) -> int:
    """An attempt that dies without a word; the pid of its tracker process, stopped or not."""
    command = [sys.executable, "-c", JOB.format(out=str(out))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        pid = int(job.stdout.readline())
        wait_for(lambda: status_of(out) == "RUNNING", "the first attempt was not tracked")
        if tracker_stops:
            os.kill(pid, signal.SIGSTOP)
        job.kill()
    return pid


def second_attempt(out: Path) -> SpoolTracker:
    tracker = start_tracking("stage1", {"lr": 1, "workers": 2}, out=str(out), run_id="one")
    assert isinstance(tracker, SpoolTracker)
    tracker.log_metrics({"loss": 1.0}, step=3)
    return tracker


def test_both_attempts_are_one_run_that_is_finished(tmp_path: Path) -> None:
    pid = killed_job(tmp_path, tracker_stops=False)
    wait_for(lambda: gone(pid), "the first tracker process lives on")
    assert status_of(tmp_path) == "KILLED"
    tracker = second_attempt(tmp_path)
    wait_for(lambda: status_of(tmp_path) == "RUNNING", "the run is not taken up again")
    tracker.finish()
    assert status_of(tmp_path) == "FINISHED"
    assert losses(tmp_path) == [(1, 3.0), (2, 2.0), (3, 1.0)]


@pytest.mark.parametrize("when", ["while the second runs", "after the second"])
def test_a_late_word_of_the_first_attempt_does_not_end_the_run(tmp_path: Path, when: str) -> None:
    pid = killed_job(tmp_path, tracker_stops=True)
    try:
        tracker = second_attempt(tmp_path)
        wait_for(lambda: (3, 1.0) in losses(tmp_path), "the second attempt was not tracked")
        if when == "after the second":
            tracker.finish()
        os.kill(pid, signal.SIGCONT)
        wait_for(lambda: gone(pid), "the first tracker process lives on")
        wanted = "RUNNING" if when == "while the second runs" else "FINISHED"
        assert status_of(tmp_path) == wanted
        if when == "while the second runs":
            tracker.finish()
        assert status_of(tmp_path) == "FINISHED"
        assert losses(tmp_path) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    finally:
        if not gone(pid):
            os.kill(pid, signal.SIGKILL)


def test_the_last_attempt_says_how_the_run_ended(tmp_path: Path) -> None:
    pid = killed_job(tmp_path, tracker_stops=False)
    wait_for(lambda: gone(pid), "the first tracker process lives on")
    second_attempt(tmp_path).finish("FAILED")
    assert status_of(tmp_path) == "FAILED"
