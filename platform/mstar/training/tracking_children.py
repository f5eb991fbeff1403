"""Runs below a job's own run, sent by the tracker process: a sweep's studies and their trials.

A record of kind `run` holds all there is to say of one child at a time: it is made if need be, its
params, tags and metrics go in one call, its files follow, and it is ended. A child that is finished
in MLflow already is passed over, so that a job which goes on after a kill may say everything again.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

RUN_ID_TAG = "mstar.run_id"
ROOT_TAG = "mstar.root_run_id"  # our id of the job's run, on all its descendants
PARENT_TAG = "mlflow.parentRunId"
MAX_METRICS, MAX_PARAMS = 1000, 100  # of one log_batch
_PAGE = 1000
_RUNNING, _FINISHED = "RUNNING", "FINISHED"


class ChildRuns:
    """The descendants of one run.

    root: our id of that run; mlflow_root: MLflow's.
    """

    def __init__(
        self, client: MlflowClient, experiment_id: str, root: str, mlflow_root: str
    ) -> None:
        self._client, self._experiment_id = client, experiment_id
        self._root, self._ids = root, {root: mlflow_root}
        self._status: dict[str, str] = {}
        for run in self._existing():
            own = run.data.tags[RUN_ID_TAG]
            self._ids[own], self._status[own] = run.info.run_id, run.info.status

    def send(self, record: Mapping[str, Any], files: Path) -> None:
        """Log one record; `files` is where the spool keeps artifacts."""
        own, status = record["run_id"], record["status"]
        if self._status.get(own) == _FINISHED:
            return
        run_id = self._ids.get(own) or self._create(record)
        self._log(run_id, record)
        for file, folder in record["files"]:
            self._client.log_artifact(run_id, str(files / file), folder or None)
        if status != _RUNNING:
            self._client.set_terminated(run_id, status, end_time=record["end_ms"])
        elif self._status.get(own, _RUNNING) != _RUNNING:  # an earlier attempt had ended it
            self._client.update_run(run_id, status=_RUNNING)
        self._status[own] = status

    def end_running(self, status: str) -> None:
        """The job has ended: nobody works on those that still run."""
        for own in [own for own, state in self._status.items() if state == _RUNNING]:
            self._client.set_terminated(self._ids[own], status)
            self._status[own] = status

    def _create(self, record: Mapping[str, Any]) -> str:
        own = record["run_id"]
        parent = self._ids.get(record["parent"] or self._root, self._ids[self._root])
        tags = {RUN_ID_TAG: own, ROOT_TAG: self._root, PARENT_TAG: parent}
        run = self._client.create_run(
            self._experiment_id,
            start_time=record["start_ms"],
            run_name=record["run_name"],
            tags=tags,
        )
        self._ids[own], self._status[own] = str(run.info.run_id), _RUNNING
        return self._ids[own]

    def _log(self, run_id: str, record: Mapping[str, Any]) -> None:
        at_ms = record["time_ms"]
        metrics = [Metric(name, value, at_ms, step) for name, value, step in record["metrics"]]
        params = [Param(name, value) for name, value in record["params"].items()]
        tags = [RunTag(name, value) for name, value in record["tags"].items()]
        while metrics or params or tags:
            self._client.log_batch(
                run_id,
                metrics=metrics[: MAX_METRICS - 2 * MAX_PARAMS],
                params=params[:MAX_PARAMS],
                tags=tags[:MAX_PARAMS],
            )
            metrics = metrics[MAX_METRICS - 2 * MAX_PARAMS :]
            params, tags = params[MAX_PARAMS:], tags[MAX_PARAMS:]

    def _existing(self) -> Iterable[Any]:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                f"tags.`{ROOT_TAG}` = '{self._root}'",
                max_results=_PAGE,
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return
