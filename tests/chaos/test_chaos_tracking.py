"""The MLflow server is killed and started again in the middle of a job, which does not wait."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from mstar.training.run_log import read_steps
from mstar.training.tracking import leftover_spools
from support.chaos_cluster import wait_until
from support.chaos_jobs import JOBS, ChaosJob, Places, Running, results_of
from support.s3 import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


class Server:
    """An MLflow server over one SQLite file, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        """Choose a port; nothing runs yet."""
        self._folder = folder
        (port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{port}"

    def start(self) -> None:
        """Returns when it answers."""
        command = ["-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self.uri[17:]}"]
        command += ["--workers=1", f"--backend-store-uri=sqlite:///{self._folder}/server.db"]
        command += [f"--artifacts-destination={self._folder}/artifacts"]
        self._process = subprocess.Popen([sys.executable, *command], start_new_session=True)
        wait_until(self._answers, "MLflow answers")

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
        except OSError:
            return False
        return True


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that runs."""
    made = Server(tmp_path)
    made.start()
    yield made
    with contextlib.suppress(ProcessLookupError):
        made.kill()


def tracked(job: ChaosJob) -> ChaosJob:
    """The job with tracking on."""

    def command(places: Places) -> list[str]:
        return [word for word in job.command(places) if word != "--no-tracking"]

    return replace(job, command=command)


@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_restarted_in_the_middle(
    name: str, server: Server, inputs_of: Callable[[str], Path], tmp_path: Path, undisturbed: Any
) -> None:
    """The job works on meanwhile; afterwards MLflow has every step, once.

    A server takes long to start, so a short job may end first: then it says how to send the rest.
    """
    job = tracked(JOBS[name])
    out = tmp_path / "out"
    places = Places(inputs=str(inputs_of(name)), out=str(out), notes=tmp_path / "notes", workers=0)
    expected = undisturbed(name, 0)
    running = Running(job, places, env={"MLFLOW_TRACKING_URI": server.uri})
    running.wait_for_the_middle()
    server.kill()
    before = last_step(out)
    wait_until(lambda: last_step(out) > before + 2, "steps go on without the server")
    server.start()
    assert running.end() == 0, running.tail
    assert results_of(job, places) == expected
    for spool in leftover_spools(str(out)):  # it ended before it met the server again
        command = f"python -m mstar.training.tracking_process {spool}"
        assert command in running.said, "how to send the rest is said"
        subprocess.run([sys.executable, *command.split()[1:]], check=True)
    client = MlflowClient(server.uri)
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [metric.step for metric in history] == sorted(int(s) for s in expected["losses"])
    assert {str(m.step): m.value for m in history} == pytest.approx(expected["losses"])


def last_step(out: Path) -> int:
    """Of the log of steps."""
    return max((row["step"] for row in read_steps(out / "steps.jsonl")), default=0)
