"""Every classification and survival task of the list in one sweep, killed half-way and gone on."""

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

from mstar.data.task_registry import read_task_registry
from mstar.downstream.journal import FILE
from mstar.downstream.predictions import read_predictions
from support import sweep_driver
from support.full_sweep import full_cohort

LIMIT_S = 600.0  # on two cores, both runs together; measured: about two minutes on shared ones


@pytest.mark.ray
@pytest.mark.slow
def test_the_full_list_killed_half_way_is_whole_in_the_end(tmp_path: Path) -> None:
    """Each of the 61 + 16 rows has its predictions, and its run in MLflow."""
    cohort, store = full_cohort(tmp_path)
    space = tmp_path / "short.py"
    space.write_text("from mstar.downstream.spaces import Space\nSPACE = Space(epochs=(3,))\n")
    out = tmp_path / "R"
    settings = {
        "labels": f"{cohort}/labels",
        "features": [f"enc={store}"],
        "cohort": cohort,
        "heads": ["abmil"],
        "space": str(space),
        "cache_dir": str(tmp_path / "cache"),
        "figures": False,
        "out": str(out),
    }
    command = [sys.executable, sweep_driver.__file__, json.dumps(settings)]
    began_s = time.monotonic()
    first = subprocess.Popen(command)
    while not (out / FILE).exists() or (out / FILE).read_bytes().count(b"\n") < 40:
        assert first.poll() is None
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert subprocess.run(command, timeout=LIMIT_S).returncode == 0
    assert time.monotonic() - began_s < LIMIT_S

    runnable = [task for task in read_task_registry().tasks if not task.comes_later]
    survival = sum(task.kind == "survival" for task in runnable)
    assert (len(runnable) - survival, survival) == (61, 16)
    for task in runnable:
        part = "external" if task.trained_on else "test"
        found = read_predictions(
            str(out / task.task_id / "enc/abmil" / f"predictions-{part}.parquet")
        )
        assert found.facts.data_source == "generated"
        assert len(found) > 0

    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    experiment = client.get_experiment_by_name("sweep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    names = [run.info.run_name for run in runs if run.data.tags["mstar.kind"] == "study"]
    assert len(set(names)) == len(names)
    assert {f"{task.task_id}/enc/abmil" for task in runnable} <= set(names)
    kinds = Counter(run.data.tags["mstar.kind"] for run in runs)
    external = sum(task.trained_on is not None for task in runnable)
    assert kinds["sweep"] == 1
    assert kinds["trial"] == kinds["study"] - external
    assert {run.info.status for run in runs} == {"FINISHED"}
