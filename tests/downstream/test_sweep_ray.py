"""`mstar sweep` through Ray Tune: to the end, with its MLflow tree; killed; with dying workers."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from mstar.data.tables import Column, read_table
from mstar.downstream import sweep
from mstar.downstream.journal import FILE, Journal
from mstar.downstream.predictions import read_predictions
from mstar.downstream.studies import SweepPlan, plan_sweep
from mstar.downstream.sweep_config import SweepConfig
from mstar.downstream.tune_pool import make_slots
from mstar.errors import ConfigError
from mstar.training.cluster import ClusterShape
from support import sweep_driver
from support.planted_sweep import EASY, HARD, RISK, plant, sweep_config


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_sweep_from_settings_to_tables_and_tracker(tmp_path: Path) -> None:
    """Two tasks of different kinds, two heads, a bad label table; everything is where it should be.

    MLflow: one run for the sweep, one a study, one a trial, params, metrics and files in place; a
    second run adds nothing. The bad table is left out and told; the sweep says so when it ends.
    """
    settings = plant(tmp_path, (EASY, RISK, HARD)) | {"tracking": True, "figures": True}
    bad = Path(settings["labels"], "hard.csv")
    bad.write_text(bad.read_text().replace(",yes,", ",maybe,"))
    config = sweep_config(settings)
    assert sweep.run(config) == 3
    out = Path(config.out)
    assert len(list(out.glob("*/enc/*/predictions-test.parquet"))) == 4
    columns = (Column(name="task"), Column(name="reason"))
    (row,) = read_table(str(out / sweep.LEFT_OUT), columns).to_pylist()
    assert row["task"] == "hard"
    assert "maybe" in row["reason"]
    first = tree(out)
    assert first["counts"] == {"sweep": 1, "study": 4, "trial": 16}
    assert set(first["status"]) == {"FINISHED"}
    assert first["files"]["easy/enc/abmil"] == {
        "predictions-test.parquet", "predictions-val.parquet",
        "models/0-s1.safetensors", "figures/roc.png", "figures/pr.png",
        "figures/confusion.png", "figures/calibration.png",
    }  # fmt: skip
    assert "figures/km.png" in first["files"]["risk/enc/abmil"]
    assert {"test_macro_auc", "val_macro_auc", "score"} <= first["metrics"]["easy/enc/linear"]
    assert len(list(out.glob("*/enc/*/figures/*.png"))) == 2 * 4 + 2
    assert sweep.run(config) == 3
    assert tree(out) == first


def tree(out: Path) -> dict[str, Any]:
    """What MLflow holds, read back."""
    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    experiment = client.get_experiment_by_name("sweep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    by_id = {run.info.run_id: run for run in runs}
    found: dict[str, Any] = {"files": {}, "metrics": {}, "status": [r.info.status for r in runs]}
    found["counts"] = dict(Counter(run.data.tags["mstar.kind"] for run in runs))
    above = {"study": "sweep", "trial": "study"}
    for run in runs:
        kind = run.data.tags["mstar.kind"]
        if kind in above:
            parent = by_id[run.data.tags["mlflow.parentRunId"]]
            assert parent.data.tags["mstar.kind"] == above[kind]
        if kind == "study":
            name = run.info.run_name
            found["files"][name] = set(listed(client, run.info.run_id))
            found["metrics"][name] = set(run.data.metrics)
            assert run.data.tags["mstar.digest.features"]
            assert run.data.params["best.lr"]
        if kind == "trial":
            assert {"lr", "weight_decay", "epochs", "trial"} <= run.data.params.keys()
            epochs = client.get_metric_history(run.info.run_id, "val_score")
            assert [metric.step for metric in epochs] == list(range(int(run.data.params["epochs"])))
    return found


def listed(client: MlflowClient, run_id: str, folder: str | None = None) -> list[str]:
    """All artifacts of a run."""
    paths = []
    for item in client.list_artifacts(run_id, folder):
        paths += listed(client, run_id, item.path) if item.is_dir else [item.path]
    return paths


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_study_whose_worker_dies_is_reported_and_the_rest_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task that kills whoever unpacks it, as memory that runs out does; it does not raise."""
    settings = plant(tmp_path, (EASY, RISK)) | {"heads": ("linear",)}

    def planned(config: SweepConfig) -> SweepPlan:
        plan = plan_sweep(config)
        return dataclasses.replace(plan, tasks={**plan.tasks, "risk/enc": Deadly()})

    monkeypatch.setattr(sweep, "plan_sweep", planned)
    assert sweep.run(sweep_config(settings)) == 1
    told = capsys.readouterr().out
    assert "risk/enc/linear: the worker died" in told
    assert "easy/enc/linear: val_macro_auc" in told
    record = json.loads(Path(settings["out"], "failures", "risk-enc-linear.json").read_text())
    assert "tried 2 times" in record["reason"]


class Deadly:
    """In the place of a task."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Unpacking it ends the process."""
        return os._exit, (1,)


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_driver_loses_only_what_was_running(tmp_path: Path) -> None:
    """`kill -9` in the middle, twice; then the same tables as undisturbed, and the tree whole."""
    settings = plant(tmp_path, (EASY, RISK)) | {"max_parallel": 2}
    whole = sweep_config(settings, out=str(tmp_path / "whole"), tracking=False)
    killed = settings | {"out": str(tmp_path / "killed"), "tracking": True}
    journal = tmp_path / "killed" / FILE
    for lines in (2, 7):
        process = start(killed)
        wait_for_lines(journal, lines, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    kept = journal.read_bytes().count(b"\n")
    end = start(killed)
    assert end.wait(300) == 0
    other = start(settings | {"out": whole.out})
    assert other.wait(300) == 0
    for path in sorted((tmp_path / "whole").rglob("predictions-*.parquet")):
        again = tmp_path / "killed" / path.relative_to(tmp_path / "whole")
        assert read_predictions(str(again)).scores.tolist() == (
            read_predictions(str(path)).scores.tolist()
        )
        assert again.read_bytes() == path.read_bytes()
    with closing(Journal(str(tmp_path / "killed"))) as read:
        fits = [fit["key"] for line in read.lines for fit in line["fits"]]
        assert len(set(fits)) == len(fits)
        assert len(read.lines) > kept >= 7
    found = tree(tmp_path / "killed")
    assert found["counts"] == {"sweep": 1, "study": 4, "trial": 16}
    assert set(found["status"]) == {"FINISHED"}


@pytest.mark.ray
@pytest.mark.slow
def test_a_stopped_sweep_says_so_and_goes_on(tmp_path: Path) -> None:
    """SIGTERM: nothing fails, what is finished stays, MLflow says that it was killed."""
    settings = plant(tmp_path, (EASY, RISK)) | {"tracking": True}
    out = Path(settings["out"])
    process = start(settings, stderr=subprocess.PIPE)
    wait_for_lines(out / FILE, 3, process)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert b"InterruptedRunError: stopped by SIGTERM; run it again to go on" in told
    assert not (out / "failures").exists()
    assert {"KILLED", "FINISHED"} == set(statuses(out))
    assert start(settings).wait(300) == 0
    assert set(statuses(out)) == {"FINISHED"}
    assert tree(out)["counts"] == {"sweep": 1, "study": 4, "trial": 16}


def statuses(out: Path) -> list[str]:
    """Of all runs."""
    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    experiment = client.get_experiment_by_name("sweep")
    assert experiment is not None
    return [run.info.status for run in client.search_runs([experiment.experiment_id])]


def start(settings: dict[str, Any], **options: Any) -> subprocess.Popen[bytes]:
    """A driver in a process of its own, with a Ray of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    text = json.dumps(settings)
    return subprocess.Popen(
        [sys.executable, sweep_driver.__file__, text], env=environment, **options
    )


def wait_for_lines(path: Path, lines: int, process: subprocess.Popen[bytes]) -> None:
    """Until so many pieces are finished."""
    deadline_s = time.monotonic() + 240
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_slots_share_gpus_or_cores() -> None:
    """A fraction of a GPU each; a core each where there is none."""
    two = ClusterShape(num_nodes=1, num_cpus=8, num_gpus=2, smallest_node_cpus=8)
    shared = make_slots(two, 4, "auto")
    assert (shared.count, shared.gpus, shared.cpus) == (8, 0.25, 1.0)
    few = ClusterShape(num_nodes=1, num_cpus=4, num_gpus=2, smallest_node_cpus=4)
    assert make_slots(few, 4, "auto").cpus == 0.5
    assert make_slots(two, 4, "cpu").gpus == 0.0
    none = ClusterShape(num_nodes=1, num_cpus=3, num_gpus=0, smallest_node_cpus=3)
    assert make_slots(none, 4, "auto").count == 3
    assert make_slots(none, 4, "auto").at_most(2).count == 2
    with pytest.raises(ConfigError, match="the cluster has no GPU"):
        make_slots(none, 1, "cuda")


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what would be done, without Ray."""
    settings = plant(tmp_path, (EASY, RISK)) | {"heads": ("abmil", "knn"), "dry_run": True}
    assert sweep.run(sweep_config(settings)) == 0
    told = capsys.readouterr().out
    assert "3 studies" in told
    assert "1 x head knn is not for survival tasks" in told
    assert not Path(settings["out"]).exists()
