"""Predictions kept in MLflow give the table that the sweep's folder gives."""

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from mstar.downstream.results.mlflow_source import read_mlflow
from mstar.downstream.results.sources import read_runs
from mstar.errors import ConfigError
from support.prediction_files import classification, write_study


@pytest.mark.slow
def test_children_of_a_sweep_are_read_and_its_list_of_what_is_missing(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("sweeps", artifact_location=(tmp_path / "kept").as_uri())
    parent = client.create_run(experiment, run_name="first").info.run_id
    (tmp_path / "left_out.csv").write_text("task,reason\nu,no features\n")
    client.log_artifact(parent, str(tmp_path / "left_out.csv"))
    for encoder in ("a", "b"):
        tags = {"mlflow.parentRunId": parent}
        child = client.create_run(experiment, tags=tags, run_name=f"t/{encoder}/abmil").info.run_id
        for part in ("test", "val"):
            file = write_study(tmp_path / "run", classification("t", encoder, part=part))
            client.log_artifact(child, file, "predictions")
        grandchild = client.create_run(experiment, tags={"mlflow.parentRunId": child})
        client.log_artifact(grandchild.info.run_id, file)
    found = read_mlflow(uri, "sweeps", "first")
    folder = read_runs([str(tmp_path / "run")])
    assert [s.key for s in found.sources] == [s.key for s in folder.sources]
    assert [s.predictions.scores.tolist() for s in found.sources] == [
        s.predictions.scores.tolist() for s in folder.sources
    ]
    assert [one.task for one in found.left_out] == ["u"]
    assert read_mlflow(uri, "sweeps", parent).left_out == found.left_out
    with pytest.raises(ConfigError, match="expected an experiment 'other'"):
        read_mlflow(uri, "other")
    with pytest.raises(ConfigError, match="expected a sweep 'second'"):
        read_mlflow(uri, "sweeps", "second")
