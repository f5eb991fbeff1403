"""Runs read back through MLflow's own client; dead tracker processes, dead servers, replays."""

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

import mstar
from mstar.errors import StorageError
from mstar.training import spool as spool_module
from mstar.training.run_facts import flatten, redact, run_tags
from mstar.training.spool import RunInfo, Spool, read_position, read_records
from mstar.training.tracker import NullTracker, Tracker
from mstar.training.tracking import SpoolTracker, leftover_spools, replay, start_tracking
from mstar.training.tracking_places import state_folder, tracking_notes, tracking_uri
from support.memory_tracker import MemoryTracker


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """A nested config."""

    target_mpp: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A config as jobs have them."""

    slides: str = "s3://key:secret@bucket/slides"
    grid: Inner = field(default_factory=Inner)
    tags: tuple[str, ...] = ("a", "b")
    long: str = "x" * 7000


@pytest.fixture(autouse=True)
def _no_tracking_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def the_run(uri: str, experiment: str = "embed") -> tuple[MlflowClient, Run]:
    """The only run of an experiment."""
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    return client, run


def start(out: Path, **options: float) -> SpoolTracker:
    """A tracker that is known to be tracking."""
    tracker = start_tracking("embed", Config(), out=str(out), **options)
    assert isinstance(tracker, SpoolTracker)
    return tracker


def refused_address() -> str:
    """An address at which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


def wait_for(condition: object, what: str, timeout_s: float = 60) -> None:
    """Waits until a condition holds."""
    assert callable(condition)
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)


def test_all_that_was_logged_is_in_mlflow_and_the_spool_is_gone(tmp_path: Path) -> None:
    tracker = start(tmp_path)
    picture = tmp_path / "contact sheet.png"
    picture.write_bytes(b"\x89PNG")
    for step in range(2500):
        tracker.log_metrics({"patches/s": step / 2}, step=step)
    tracker.log_metrics({"odd#name": math.nan}, step=0)
    tracker.log_artifact(picture, "thumbnails")
    picture.unlink()  # the spool has its own copy
    tracker.log_text("slide,reason\na,bad\n", "failures.csv")
    tracker.set_tags({"counts": 3})
    said = tracker.finish()

    client, run = the_run(f"sqlite:///{tmp_path}/mlflow.db")
    assert run.info.status == "FINISHED"
    assert run.data.params["slides"] == "s3://bucket/slides"
    assert run.data.params["grid.target_mpp"] == "0.5"
    assert run.data.params["tags"] == '["a", "b"]'
    assert run.data.params["long"].endswith("(7000 characters)")
    history = client.get_metric_history(run.info.run_id, "patches/s")
    assert [(m.step, m.value) for m in history] == [(s, s / 2) for s in range(2500)]
    assert "odd_name" in run.data.metrics
    assert run.data.tags["counts"] == "3"
    assert run.data.tags["mstar.run_id"] == tracker.run_id
    assert run.data.tags["mstar.version"] == mstar.__version__
    assert run.data.tags["mstar.torch"]
    assert len(run.data.tags["mstar.config_fingerprint"]) == 16
    artifacts = tmp_path / "mlartifacts" / run.info.run_id / "artifacts"
    assert (artifacts / "thumbnails" / "contact sheet.png").read_bytes() == b"\x89PNG"
    assert (artifacts / "failures.csv").read_text() == "slide,reason\na,bad\n"
    assert json.loads((artifacts / "config.json").read_text())["long"] == "x" * 7000
    assert tracker.run_id in said
    assert list(leftover_spools(str(tmp_path))) == []


def test_kill_9_of_the_tracker_process_is_survived_and_a_replay_completes_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start(tmp_path)
    tracker.log_metrics({"a": 0.0}, step=0)
    wait_for(lambda: read_position(tracker.folder).offset_bytes > 0, "nothing was sent")
    os.kill(tracker.process.pid, signal.SIGKILL)
    tracker.process.wait()

    with caplog.at_level(logging.WARNING, logger="mstar.tracking"):
        for step in range(1, 1500):
            tracker.log_metrics({"a": float(step)}, step=step)
    assert [str(tracker.folder) in r.getMessage() for r in caplog.records] == [True]  # one warning
    tracker._append("finish", status="FINISHED")  # the job's end, without finish()'s own retry

    for _ in range(2):  # again changes nothing
        replay(tracker.folder)
        client, run = the_run(tracker.uri)
        assert run.info.status == "FINISHED"
        history = client.get_metric_history(run.info.run_id, "a")
        assert [m.value for m in history] == [float(step) for step in range(1500)]


def test_finish_itself_completes_a_run_whose_tracker_process_was_killed(tmp_path: Path) -> None:
    tracker = start(tmp_path)
    tracker.process.kill()
    tracker.process.wait()
    tracker.log_metrics({"a": 1.0}, step=0)
    tracker.finish("FAILED")
    _, run = the_run(tracker.uri)
    assert run.info.status == "FAILED"
    assert run.data.metrics == {"a": 1.0}


@pytest.mark.parametrize("lost", ["offset", "run"])
def test_a_batch_sent_twice_changes_nothing(tmp_path: Path, lost: str) -> None:
    """The process died after MLflow had a batch and before the offset was stored."""
    tracker = start(tmp_path)
    for step in range(10):
        tracker.log_metrics({"a": step, "b": math.inf}, step=step)
    tracker._append("finish", status="FINISHED")
    tracker.process.wait(60)
    position = tracker.folder / spool_module.POSITION
    if lost == "run":
        position.unlink()
    else:
        kept = json.loads(position.read_text())
        position.write_text(json.dumps(kept | {"offset_bytes": 0, "done": False}))
    replay(tracker.folder)
    client, run = the_run(tracker.uri)  # still one run
    assert [m.value for m in client.get_metric_history(run.info.run_id, "a")] == list(range(10))
    assert len(client.get_metric_history(run.info.run_id, "b")) == 10


def test_a_server_that_refuses_connections_costs_a_bounded_time_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", refused_address())
    tracker = start(tmp_path, finish_wait_s=5)
    began_s = time.monotonic()
    for step in range(1000):
        tracker.log_metrics({"a": 1.0}, step=step)
    assert time.monotonic() - began_s < 2
    began_s = time.monotonic()
    said = tracker.finish()
    assert time.monotonic() - began_s < 10
    assert str(tracker.folder) in said
    assert list(leftover_spools(str(tmp_path))) == [tracker.folder]
    assert tracker.process.poll() is not None  # no process is left behind

    with pytest.raises(StorageError, match=str(tracker.folder)):
        replay(tracker.folder)
    elsewhere = f"sqlite:///{tmp_path}/later.db"
    replay(tracker.folder, uri=elsewhere)
    client, run = the_run(elsewhere)
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "a")) == 1000


def test_a_server_that_accepts_and_never_answers_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        tracker = start(tmp_path, finish_wait_s=3)
        began_s = time.monotonic()
        said = tracker.finish()
        assert time.monotonic() - began_s < 6
    assert str(tracker.folder) in said


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back_has_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = refused_address()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    def serve() -> subprocess.Popen[bytes]:
        port = uri.rsplit(":", 1)[1]
        database = f"--backend-store-uri=sqlite:///{tmp_path}/server.db"
        artifacts = f"--artifacts-destination={tmp_path}/server-artifacts"
        command = ["-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
        return subprocess.Popen(
            [sys.executable, *command, database, artifacts], start_new_session=True
        )

    def end(server: subprocess.Popen[bytes]) -> None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()

    server = serve()
    try:
        tracker = start(tmp_path)
        tracker.log_metrics({"a": 0.0}, step=0)
        wait_for(lambda: read_position(tracker.folder).offset_bytes > 0, "nothing was sent", 120)
        end(server)
        for step in range(1, 500):
            tracker.log_metrics({"a": float(step)}, step=step)
        wait_for(lambda: read_position(tracker.folder).error, "the loss was not noticed", 120)
        server = serve()
        tracker.log_text("table", "failures.tsv")
        wait_for(lambda: not read_position(tracker.folder).error, "it was not found again", 120)
        tracker.finish()
        client, run = the_run(uri)
        assert run.info.status == "FINISHED"
        assert len(client.get_metric_history(run.info.run_id, "a")) == 500
        assert [f.path for f in client.list_artifacts(run.info.run_id)] == [
            "config.json",
            "failures.tsv",
        ]
    finally:
        end(server)


def test_a_killed_job_leaves_a_run_marked_killed_and_no_process(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from mstar.training.tracking import start_tracking\n"
        f"tracker = start_tracking('embed', {{}}, out={str(tmp_path)!r})\n"
        "tracker.log_metrics({'a': 1.0}, step=0)\n"
        "print(tracker.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        tracker_pid = int(job.stdout.readline())
        job.kill()
    wait_for(lambda: not Path(f"/proc/{tracker_pid}/cmdline").exists(), "the tracker lives on")
    _, run = the_run(f"sqlite:///{tmp_path}/mlflow.db")
    assert run.info.status == "KILLED"
    assert run.data.metrics == {"a": 1.0}


def test_a_record_that_mlflow_refuses_does_not_hold_up_the_others(tmp_path: Path) -> None:
    tracker = start(tmp_path)
    tracker.log_params({"lr": 1})
    tracker.log_params({"lr": 2})  # MLflow never lets a param change
    with (tracker.folder / spool_module.RECORDS).open("ab") as file:
        file.write(b'{"kind": "metr\n')  # a disk that was full for a moment
    tracker.log_metrics({"a": 1.0}, step=0)
    tracker.finish()
    _, run = the_run(tracker.uri)
    assert run.info.status == "FINISHED"
    assert run.data.params["lr"] == "1"
    assert run.data.metrics == {"a": 1.0}


def test_a_spool_that_cannot_be_written_costs_a_warning_not_the_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out").write_text("a file where a folder should be")
    tracker = start_tracking("embed", Config(), out=str(tmp_path / "out"))
    assert isinstance(tracker, NullTracker)
    assert "cannot be written" in caplog.text


def test_the_job_itself_never_imports_mlflow() -> None:
    imports = "import sys, mstar.training.tracking, mstar.training.progress"
    code = f"{imports}; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_half_a_line_is_not_read_until_it_is_whole(tmp_path: Path) -> None:
    info = RunInfo(run_id="a", experiment="e", run_name="n", uri="", start_ms=0, host="h", pid=1)
    spool = Spool.create(tmp_path / "spool", info)
    spool.append("tags", tags={"é": "\udcff"})
    path = spool.folder / spool_module.RECORDS
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole + whole[:cut])
        ((record, offset),) = read_records(spool.folder, 0)
        assert offset == len(whole)
        assert record["tags"] == {"é": "\udcff"}
        assert read_records(spool.folder, offset) == []
    assert [r["kind"] for r, _ in read_records(spool.folder, 0, max_bytes=1)] == ["tags"]
    spool.close()


def test_where_the_runs_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSTAR_STATE", str(tmp_path / "state"))
    assert tracking_uri(str(tmp_path / "out")) == f"sqlite:///{tmp_path}/out/mlflow.db"
    assert tracking_uri(f"file://{tmp_path}/out") == f"sqlite:///{tmp_path}/out/mlflow.db"
    assert state_folder("s3://bucket/out") == tmp_path / "state"
    uri = tracking_uri("s3://bucket/out")
    assert uri == f"sqlite:///{tmp_path}/state/mlflow.db"
    (note,) = tracking_notes(uri, "s3://bucket/out", num_nodes=1)
    assert str(tmp_path / "state") in note
    assert any("2 nodes" in n for n in tracking_notes(uri, "s3://bucket/out", num_nodes=2))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri("s3://bucket/out") == "http://tracking:5000"
    assert tracking_notes("http://tracking:5000", "s3://bucket/out", num_nodes=9) == []


def test_tags_name_the_commit_the_command_and_the_ray_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/env/bin/mstar", "embed", "--slides", "s3://k:s@b/x y"])
    monkeypatch.setenv(
        "RAY_JOB_CONFIG_JSON_ENV_VAR",
        json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}),
    )
    tags = run_tags()
    assert tags["mstar.command"] == "mstar embed --slides 's3://b/x y'"
    assert tags["ray.submission_id"] == "raysubmit_1"
    checkout = Path(mstar.__file__).parents[2]
    git = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--verify", "--quiet", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert tags.get("mstar.git_commit", "") == git.stdout.strip()


def test_flatten_and_redact() -> None:
    nested = {"a": {"b": 1, "c": None, "d": {}}, "e": True, "f g": "http://u:p@h/x"}
    assert flatten(nested) == {
        "a.b": "1",
        "a.c": "null",
        "a.d": "{}",
        "e": "true",
        "f g": "http://h/x",
    }
    assert redact("s3://bucket/a@b") == "s3://bucket/a@b"


def test_the_trackers_without_mlflow_take_the_same_calls(tmp_path: Path) -> None:
    trackers: list[Tracker] = [NullTracker(), MemoryTracker()]
    file = tmp_path / "a.txt"
    file.write_text("a")
    for tracker in trackers:
        tracker.log_params({"a": {"b": 1}})
        tracker.log_metrics({"m": 1.0}, step=3)
        tracker.log_artifact(file, "folder")
        tracker.log_text("b", "b.txt")
        tracker.set_tags({"t": 1})
        tracker.finish()
    memory = trackers[1]
    assert isinstance(memory, MemoryTracker)
    assert memory.params == {"a.b": "1"}
    assert memory.metrics == [(3, {"m": 1.0})]
    assert memory.artifacts == {"folder/a.txt": b"a", "b.txt": b"b"}
    assert memory.status == "FINISHED"
