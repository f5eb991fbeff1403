"""Send one spool to its MLflow run, and to the runs below it.

Sending is idempotent: the offset is stored after every batch, a repeated batch changes nothing
(equal metrics, params and tags are one to MLflow), and a run is found again by its tag
`mstar.run_id`. A job that was restarted goes on with its run from a spool of its own; what an
earlier attempt's process has to say of the end, however late, does not count then. `log_batch`
only: asynchronous logging loses metrics on SQLite without a word.
"""

import dataclasses
import functools
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
# A dead server must show within seconds; we retry ourselves, for as long as the job runs.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mstar.training.credentials import redact
from mstar.training.spool import (
    FILES,
    Position,
    RunInfo,
    read_info,
    read_position,
    read_records,
    write_position,
)
from mstar.training.tracking_children import MAX_METRICS, MAX_PARAMS, RUN_ID_TAG, ChildRuns

ATTEMPT_TAG = "mstar.attempt."  # with its start: one tag each, so that none overwrites another
MAX_TAGS = 100  # of one log_batch
REFUSED_FOR_GOOD = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST"})

log = logging.getLogger("mstar.tracking")
Record = dict[str, Any]


class RunSender:
    """Sends one spool to one MLflow run.

    folder: the spool.
    uri: MLflow to send to instead of the one in run.json.
    """

    def __init__(self, folder: Path, *, uri: str | None = None) -> None:
        self.folder = folder
        self.info = read_info(folder)
        self.uri = uri or with_password(self.info.uri)
        self.position = read_position(folder)
        if self.position.uri != redact(self.uri):  # another MLflow starts from nothing
            self.position = Position(uri=redact(self.uri))

    @functools.cached_property
    def client(self) -> MlflowClient:
        """Made on first use: making it already opens the database."""
        return MlflowClient(tracking_uri=self.uri)

    @functools.cached_property
    def children(self) -> ChildRuns:
        """The runs below this one; made when the first of them is to be logged."""
        root = self.position.mlflow_run_id
        experiment_id = self.client.get_run(root).info.experiment_id
        return ChildRuns(self.client, experiment_id, self.info.run_id, root)

    def send_new(self) -> bool:
        """Sends all records that are there; True once the finish record has been sent."""
        self._ensure_run()
        while records := read_records(self.folder, self.position.offset_bytes):
            self._send(records)
        self.store(error="")
        return self.position.done

    def abandon(self) -> None:
        """Ends the run of a job that died without a finish record."""
        self._end("KILLED")

    def _ensure_run(self) -> None:
        if self.position.mlflow_run_id:
            return
        experiment_id = find_experiment(self.client, self.info.experiment, self.uri)
        run_id = find_run(self.client, experiment_id, self.info)
        take_up(self.client, run_id, self.info.start_ms)
        self.store(mlflow_run_id=run_id)

    def _send(self, records: list[tuple[Record, int]]) -> None:
        try:
            self._log([record for record, _ in records])
            refused = 0
        except MlflowException as error:
            if error.error_code not in REFUSED_FOR_GOOD:
                raise
            refused = self._send_one_by_one(record for record, _ in records)
        self.store(
            offset_bytes=records[-1][1],
            num_rejected=self.position.num_rejected + refused,
            done=self.position.done or any(record["kind"] == "finish" for record, _ in records),
        )

    def _send_one_by_one(self, records: Iterable[Record]) -> int:
        """Sends records singly, so that one which MLflow refuses does not hold up the others."""
        num_refused = 0
        for record in records:
            try:
                self._log([record])
            except MlflowException as error:
                if error.error_code not in REFUSED_FOR_GOOD:
                    raise
                num_refused += 1
                log.warning("record refused: %s: %s", record, error)
        return num_refused

    def _log(self, records: list[Record]) -> None:
        run_id = self.position.mlflow_run_id
        metrics, params, tags = collect(records)
        for start in range(0, len(metrics), MAX_METRICS):
            self.client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS])
        for start in range(0, len(params), MAX_PARAMS):
            self.client.log_batch(run_id, params=params[start : start + MAX_PARAMS])
        for start in range(0, len(tags), MAX_TAGS):
            self.client.log_batch(run_id, tags=tags[start : start + MAX_TAGS])
        for record in records:
            self._log_file(run_id, record)
            if record["kind"] == "model":
                register_model(self.client, run_id, record)
            if record["kind"] == "run":
                self.children.send(record, self.folder / FILES)
        for record in records:
            if record["kind"] == "finish":
                self._end(record["status"], record["time_ms"])

    def _end(self, status: str, time_ms: int | None = None) -> None:
        """Ends the run, unless another attempt has gone on with it or finished it."""
        run_id = self.position.mlflow_run_id
        run = self.client.get_run(run_id)
        others = latest_attempt_ms(run) > self.info.start_ms or run.info.status == "FINISHED"
        if status == "FINISHED" or not others:
            if "children" in vars(self):
                self.children.end_running(status)
            self.client.set_terminated(run_id, status, end_time=time_ms)

    def _log_file(self, run_id: str, record: Record) -> None:
        if record["kind"] == "text":
            self.client.log_text(run_id, record["text"], record["name"])
        elif record["kind"] == "artifact":
            path = self.folder / FILES / record["file"]
            self.client.log_artifact(run_id, str(path), record["folder"] or None)

    def store(self, **changes: Any) -> None:
        """Keeps what has become of the spool, where it changed: fields of `Position`."""
        position = dataclasses.replace(self.position, **changes)
        if position != self.position:
            self.position = position
            write_position(self.folder, position)


def collect(records: list[Record]) -> tuple[list[Metric], list[Param], list[RunTag]]:
    """The metrics, params and tags of some records, as MLflow wants them."""
    metrics, params, tags = [], [], []
    for record in records:
        if record["kind"] == "metrics":
            at = (record["time_ms"], record["step"])
            metrics += [Metric(name, value, *at) for name, value in record["metrics"].items()]
        elif record["kind"] == "params":
            params += [Param(name, value) for name, value in record["params"].items()]
        elif record["kind"] == "tags":
            tags += [RunTag(name, value) for name, value in record["tags"].items()]
    return metrics, params, tags


def register_model(client: MlflowClient, run_id: str, record: Record) -> None:
    """Adds a version to the registry, once: a version of this run with these tags is there.

    A tracking server refuses a source that lies on the job's own disk; the run stands in for it
    then, and the tag `uri` says where the files are.
    """
    name, tags = record["name"], {**record["tags"], "uri": record["uri"]}
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.run_id == run_id and version.tags == tags:
            return
    more = {"run_id": run_id, "tags": tags, "description": record["description"]}
    try:
        client.create_model_version(name, record["uri"], **more)
    except MlflowException as error:
        if error.error_code not in REFUSED_FOR_GOOD:
            raise
        client.create_model_version(name, client.get_run(run_id).info.artifact_uri, **more)


def find_experiment(client: MlflowClient, name: str, uri: str) -> str:
    """The id of an experiment, created when it does not exist."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_root(uri)))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another job was faster
            if found is None:
                raise
    return str(found.experiment_id)


def artifact_root(uri: str) -> str | None:
    """`mlartifacts` beside an SQLite file, else None: a server has its own place.

    MLflow's own choice would be the working directory, which a submitted job loses.
    """
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///")).absolute().with_name("mlartifacts").as_uri()


def find_run(client: MlflowClient, experiment_id: str, info: RunInfo) -> str:
    """MLflow's id of our run, created when it does not exist."""
    found = client.search_runs([experiment_id], f"tags.`{RUN_ID_TAG}` = '{info.run_id}'")
    if found:
        return str(found[0].info.run_id)
    run = client.create_run(
        experiment_id,
        start_time=info.start_ms,
        run_name=info.run_name,
        tags={RUN_ID_TAG: info.run_id, **attempt_tag(info.start_ms)},
    )
    return str(run.info.run_id)


def take_up(client: MlflowClient, run_id: str, start_ms: int) -> None:
    """Makes an attempt the latest one of its run, unless a later one has begun already."""
    run = client.get_run(run_id)
    if latest_attempt_ms(run) > start_ms:
        return
    for name, value in attempt_tag(start_ms).items():
        client.set_tag(run_id, name, value)
    if run.info.status != "RUNNING":
        client.update_run(run_id, status="RUNNING")


def latest_attempt_ms(run: Run) -> int:
    """When the latest attempt at a run was started, 0 when it does not say."""
    return max((int(v) for k, v in run.data.tags.items() if k.startswith(ATTEMPT_TAG)), default=0)


def attempt_tag(start_ms: int) -> dict[str, str]:
    """What an attempt leaves at its run."""
    return {f"{ATTEMPT_TAG}{start_ms}": str(start_ms)}


def with_password(uri: str) -> str:
    """The address that the environment states with a password, for one recorded without."""
    stated = os.environ.get("MLFLOW_TRACKING_URI", "")
    return stated if stated and redact(stated) == uri else uri
