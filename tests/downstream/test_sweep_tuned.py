"""`--space tune` through Ray Tune: Optuna and halving, killed and gone on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from mstar.downstream.journal import FILE
from mstar.downstream.predictions import read_predictions
from support import sweep_driver
from support.planted_sweep import EASY, RISK, plant, sweep_config
from support.serve_sweep import files, serve

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]
TRIALS = 16  # two populations: the second is drawn by what Optuna learnt of the first
FULL, HALVED = 6, 10
LINES = 3  # of some twelve: the search of no study is at its end


def test_a_tuned_sweep_killed_half_way_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """The same questions to Optuna, the same winners, predictions byte for byte, every trial once.

    The undisturbed one is run in this process, without Ray.
    """
    settings = plant(tmp_path, (EASY, RISK)) | {
        "space": "tune",
        "trials": TRIALS,
        "heads": ("linear",),
    }
    killed = settings | {"out": str(tmp_path / "killed"), "tracking": True}
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, sweep_driver.__file__, json.dumps(killed)]
    process = subprocess.Popen(command, env=environment)
    wait_for_lines(tmp_path / "killed" / FILE, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "killed").rglob("predictions-test.parquet"))
    assert subprocess.run(command, env=environment, timeout=1200).returncode == 0

    whole = serve(sweep_config(settings, out=str(tmp_path / "whole")))
    assert dict(files(str(tmp_path / "killed"))) == dict(files(str(tmp_path / "whole")))
    for task in ("easy", "risk"):
        path = tmp_path / "killed" / task / "enc/linear/predictions-test.parquet"
        assert read_predictions(str(path)).facts.trials == TRIALS
    ended = [end for run in whole.studies.values() for end in run.search.ended.values()]
    assert Counter(end.full for end in ended) == {True: 2 * FULL, False: 2 * HALVED}
    told = Counter(endings(tmp_path / "killed"))
    assert told == {"full length": 2 * FULL, "halved": 2 * HALVED}


def wait_for_lines(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until some pieces are finished."""
    deadline_s = time.monotonic() + 400
    while not path.exists() or path.read_bytes().count(b"\n") < LINES:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def endings(out: Path) -> list[str]:
    """How the trials in MLflow ended."""
    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    experiment = client.get_experiment_by_name("sweep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    return [run.data.tags["mstar.ended"] for run in runs if "mstar.ended" in run.data.tags]
