"""All 97 tasks of the list in one sweep, killed half-way and gone on; and the page of them."""

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

from mstar.data.tables import Column, read_table
from mstar.data.task_registry import read_task_registry
from mstar.data.tasks import Task
from mstar.downstream.families import FAMILIES
from mstar.downstream.journal import FILE
from mstar.downstream.predictions import read_predictions
from mstar.downstream.results import job as results
from mstar.downstream.results.config import ResultsConfig
from mstar.downstream.tasks_job import TasksCheckConfig, check_tasks
from support import sweep_driver
from support.full_sweep import TINY_DECODER, full_cohort

LIMIT_S = 1500.0  # on two cores, both runs together
COLUMNS = (
    Column(name="task"),
    Column(name="marks"),
    Column(name="low", kind="number", nullable=True),
)


@pytest.mark.ray
@pytest.mark.slow
def test_the_full_list_killed_half_way_is_whole_in_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of the 97 rows has its predictions and its run in MLflow; none rests on real data."""
    cohort, store = full_cohort(tmp_path)
    space = tmp_path / "short.py"
    space.write_text("from mstar.downstream.spaces import Space\nSPACE = Space(epochs=(3,))\n")
    out = tmp_path / "R"
    tasks = read_task_registry().tasks
    assert len(tasks) == 97
    settings = {
        "tasks": [task.task_id for task in tasks],  # and not the four of every generated cohort
        "labels": f"{cohort}/labels",
        "features": [f"enc={store}"],
        "cohort": cohort,
        "stage1": str(tmp_path / "S1"),
        "stage2": str(tmp_path / "S2"),
        "option": list(TINY_DECODER),
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

    asked = TasksCheckConfig(labels=f"{cohort}/labels", features=(f"enc={store}",), cohort=cohort)
    states = {state.task.task_id: state.state for state in check_tasks(asked)}
    assert all(states[task.task_id] == "ready" for task in tasks)
    for task in tasks:
        part = "external" if task.trained_on else "test"
        found = read_predictions(
            f"{out}/{task.task_id}/enc/{head_of(task)}/predictions-{part}.parquet"
        )
        assert found.facts.data_source == "generated"
        assert len(found) > 0

    page = ResultsConfig(
        runs=(str(out),), out=str(tmp_path / "page"), resamples=100, difference_resamples=100
    )
    assert results.run(page) == 0
    said = capsys.readouterr().out
    assert "97 rows" in said
    headline = "97 of the 97 tasks of the list have a result; none of them rest on real data"
    assert headline in said
    assert headline in (tmp_path / "page" / "index.html").read_text()
    rows = read_table(f"{tmp_path}/page/results.csv", COLUMNS).to_pylist()
    assert sorted(row["task"] for row in rows) == sorted(task.task_id for task in tasks)
    assert all("generated data" in row["marks"] for row in rows)
    assert sum(row["low"] is not None for row in rows) >= 90

    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    experiment = client.get_experiment_by_name("sweep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    names = [run.info.run_name for run in runs if run.data.tags["mstar.kind"] == "study"]
    assert len(set(names)) == len(names)
    assert {f"{task.task_id}/enc/{head_of(task)}" for task in tasks} <= set(names)
    kinds = Counter(run.data.tags["mstar.kind"] for run in runs)
    untrained = sum(task.trained_on is not None or task.kind in FAMILIES for task in tasks)
    assert kinds["sweep"] == 1
    assert kinds["trial"] == kinds["study"] - untrained
    assert {run.info.status for run in runs} == {"FINISHED"}


def head_of(task: Task) -> str:
    """What its study is named by: the paper's method, or the head of the sweep."""
    family = FAMILIES.get(task.kind)
    return next(iter(family.methods)) if family else "abmil"
