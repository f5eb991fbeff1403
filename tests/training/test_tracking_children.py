"""Runs below a run: a tree in MLflow that is the same however often it is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from mstar.training.tracker import NullTracker, TreeTracker
from mstar.training.tracking import SpoolTracker, start_tracking


def make_tracker(out: Path, run_id: str | None = None) -> SpoolTracker:
    """A tracker with an MLflow of its own."""
    tracker = start_tracking("sweep", {}, out=str(out), run_id=run_id, uri=f"sqlite:///{out}/m.db")
    assert isinstance(tracker, SpoolTracker)
    return tracker


def say(tracker: SpoolTracker, tmp_path: Path, *, studies: int = 2, trials: int = 3) -> None:
    """A study each with trials, a file in the end."""
    file = tmp_path / "winner.txt"
    file.write_text("weights")
    for study in range(studies):
        own = f"study{study}"
        tracker.log_run(own, name=own, status="RUNNING", params={"head": "abmil"})
        for trial in range(trials):
            tracker.log_run(
                f"{own}-t{trial}",
                parent=own,
                name=f"t{trial}",
                status="FINISHED",
                params={"lr": 0.1 * trial, "options": {"width": 3}},
                metrics=[("val_score", trial + epoch / 10, epoch) for epoch in range(4)],
                duration_s=5.0,
            )
        tracker.log_run(
            own, name=own, status="FINISHED", tags={"winner": "t2"}, files=[(file, "models")]
        )


def tree(out: Path) -> dict[str, object]:
    """Run name, parent, status, params, metrics' whole history and files."""
    client = MlflowClient(f"sqlite:///{out}/m.db")
    experiment = client.get_experiment_by_name("sweep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    found = {}
    for run in runs:
        parent = names.get(run.data.tags.get("mlflow.parentRunId", ""), "")
        own = run.info.run_name if parent else "sweep"
        history = [
            (m.step, m.value)
            for name in run.data.metrics
            for m in client.get_metric_history(run.info.run_id, name)
        ]
        files = [item.path for item in client.list_artifacts(run.info.run_id, "models")]
        key = (parent if parent.startswith("study") else "", own)
        found[key] = (run.info.status, dict(run.data.params), history, files)
    assert len(found) == len(runs)
    return found


def test_a_tree_of_three_levels(tmp_path: Path) -> None:
    """Every run once, below the right one, with its params, epochs and files."""
    tracker = make_tracker(tmp_path)
    say(tracker, tmp_path)
    assert "in MLflow" in tracker.finish()
    found = tree(tmp_path)
    assert len(found) == 1 + 2 + 2 * 3
    status, params, history, _ = found["study1", "t2"]  # type: ignore[misc]
    assert status == "FINISHED"
    assert params == {"lr": "0.2", "options.width": "3"}
    assert history == [(epoch, 2 + epoch / 10) for epoch in range(4)]
    assert found["", "study0"][3] == ["models/winner.txt"]  # type: ignore[index]


@pytest.mark.slow
def test_saying_it_again_changes_nothing(tmp_path: Path) -> None:
    """As a sweep does that goes on after a kill."""
    tracker = make_tracker(tmp_path)
    say(tracker, tmp_path)
    tracker.finish()
    before = tree(tmp_path)
    again = make_tracker(tmp_path, run_id=tracker.run_id)
    say(again, tmp_path)
    again.finish()
    assert tree(tmp_path) == before


@pytest.mark.slow
def test_a_killed_jobs_children_are_killed_and_taken_up_again(tmp_path: Path) -> None:
    """None is left running, and the next attempt finishes them."""
    tracker = make_tracker(tmp_path)
    tracker.log_run("study0", name="study0", status="RUNNING")
    tracker.finish("KILLED")
    assert tree(tmp_path)["", "study0"][0] == "KILLED"  # type: ignore[index]
    again = make_tracker(tmp_path, run_id=tracker.run_id)
    say(again, tmp_path, studies=1, trials=1)
    again.finish()
    assert {row[0] for row in tree(tmp_path).values()} == {"FINISHED"}  # type: ignore[index]


@pytest.mark.slow
def test_a_thousand_trials_are_all_there(tmp_path: Path) -> None:
    """And saying them costs the job next to nothing."""
    import time

    tracker = make_tracker(tmp_path)
    tracker._finish_wait_s = 240.0
    began_s = time.perf_counter()
    say(tracker, tmp_path, studies=10, trials=100)
    assert time.perf_counter() - began_s < 5.0
    assert "in MLflow" in tracker.finish()
    client = MlflowClient(f"sqlite:///{tmp_path}/m.db")
    experiment = client.get_experiment_by_name("sweep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    assert len(runs) == 1 + 10 + 1000
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_nothing_tracked_is_a_tree_too() -> None:
    """So that callers need not ask."""
    tracker = NullTracker()
    assert isinstance(tracker, TreeTracker)
    tracker.log_run("a", name="a", status="RUNNING")
