"""What a job logs, without MLflow in its process.

The job appends records to a local spool (`spool.py`); one tracker process (`tracking_process.py`)
sends them to MLflow. When that process or the server dies, the job goes on at full speed: the spool
stays, one warning is given, and `replay` sends the rest later.
"""

import logging
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mstar
from mstar.config import fingerprint, to_json
from mstar.errors import StorageError
from mstar.training.credentials import redact
from mstar.training.metrics import publish
from mstar.training.run_facts import clean_name, flatten, run_tags, shorten
from mstar.training.spool import TRACKER_LOG, RunInfo, Spool, read_position
from mstar.training.tracker import NullTracker
from mstar.training.tracking_places import state_folder, tracking_notes, tracking_uri

log = logging.getLogger("mstar.tracking")

FINISH_WAIT_S = 60.0
MAX_PARAM_LENGTH, MAX_TAG_LENGTH = 6000, 8000  # MLflow's limits


class SpoolTracker:
    """Logs to a spool that a tracker process of its own sends to MLflow.

    finish_wait_s: how long `finish` waits for the process to send the rest.
    """

    def __init__(
        self, folder: Path, info: RunInfo, *, finish_wait_s: float = FINISH_WAIT_S
    ) -> None:
        self.folder = folder
        self.run_id = info.run_id
        self.uri = info.uri
        self._finish_wait_s = finish_wait_s
        self._warned = False
        self._job = info.experiment
        self._spool = Spool.create(folder, info)
        self.process = start_process(folder, "--follow", str(os.getpid()))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Logs settings, flattened to `a.b`; values beyond MLflow's limit are cut, and say so."""
        flat = flatten(params).items()
        self._append("params", params={k: shorten(v, MAX_PARAM_LENGTH) for k, v in flat})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs numbers at a step."""
        named = {clean_name(name): float(value) for name, value in metrics.items()}
        self._append("metrics", metrics=named, step=step)
        publish(self._job, metrics)

    def log_artifact(self, local_path: Path, folder: str = "") -> None:
        """Copies the file into the spool, so that a later replay still has it."""
        try:
            kept = self._spool.keep_file(Path(local_path))
        except OSError as error:
            self._warn(f"could not keep {local_path}: {error}")
        else:
            self._append("artifact", file=kept, folder=folder)

    def log_text(self, text: str, name: str) -> None:
        """Logs a text as the artifact `name`."""
        self._append("text", text=text, name=name)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Sets tags of the run."""
        flat = {clean_name(k): shorten(str(v), MAX_TAG_LENGTH) for k, v in tags.items()}
        self._append("tags", tags=flat)

    def log_model(
        self, name: str, uri: str, *, tags: Mapping[str, Any], description: str = ""
    ) -> None:
        """Registers the files at `uri` as a version of the model `name`; nothing is copied."""
        flat = {clean_name(k): shorten(str(v), MAX_TAG_LENGTH) for k, v in tags.items()}
        self._append("model", name=name, uri=redact(uri), tags=flat, description=description)

    def log_run(
        self,
        run_id: str,
        *,
        name: str,
        status: str,
        parent: str = "",
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        metrics: Sequence[tuple[str, float, int]] = (),
        files: Sequence[tuple[Path, str]] = (),
        duration_s: float = 0.0,
    ) -> None:
        """Logs a run below this one; a file that cannot be kept is warned about."""
        now_ms = round(time.time() * 1000)
        self._append(
            "run",
            run_id=run_id,
            parent=parent,
            run_name=name,
            status=status,
            start_ms=now_ms - round(duration_s * 1000),
            end_ms=now_ms,
            params={k: shorten(v, MAX_PARAM_LENGTH) for k, v in flatten(params or {}).items()},
            tags={clean_name(k): shorten(str(v), MAX_TAG_LENGTH) for k, v in (tags or {}).items()},
            metrics=[(clean_name(name), float(value), step) for name, value, step in metrics],
            files=[(kept, folder) for path, folder in files if (kept := self._kept(path))],
        )

    def finish(self, status: str = "FINISHED") -> str:
        """Ends the run, waits a bounded time for the tracker process, and says where the run is."""
        self._append("finish", status=status)
        self._spool.close()
        deadline_s = time.monotonic() + self._finish_wait_s
        if self.process.poll() not in (None, 0):  # it died: one more try within the same bound
            self.process = start_process(self.folder)
        wait_until(self.process, deadline_s)
        if read_position(self.folder).done:
            shutil.rmtree(self.folder, ignore_errors=True)  # all of it is in MLflow
            return f"run {self.run_id} in MLflow at {redact(self.uri)}"
        kept = f"run {self.run_id} is not yet whole in MLflow; {self._way_out()}"
        self._warn(kept)
        return kept

    def _kept(self, path: Path) -> str:
        try:
            return self._spool.keep_file(Path(path))
        except OSError as error:
            self._warn(f"could not keep {path}: {error}")
            return ""

    def _append(self, kind: str, **fields: Any) -> None:
        try:
            self._spool.append(kind, **fields)
        except OSError as error:
            self._warn(f"could not write to the spool: {error}")
        if kind != "finish" and self.process.poll() is not None:
            self._warn(f"the tracker process has died; the job goes on; {self._way_out()}")

    def _way_out(self) -> str:
        return (
            f"its spool is {self.folder} (why: {TRACKER_LOG} there); send it later with: "
            f"python -m mstar.training.tracking_process {shlex.quote(str(self.folder))}"
        )

    def _warn(self, message: str) -> None:
        """Warns once: a job of days must not fill its log with this."""
        if not self._warned:
            self._warned = True
            log.warning("tracking: %s", message)


def start_tracking(
    job: str,
    config: Any,
    *,
    out: str,
    tags: Mapping[str, Any] | None = None,
    num_nodes: int = 1,
    finish_wait_s: float = FINISH_WAIT_S,
    run_id: str | None = None,
    uri: str = "",
) -> SpoolTracker | NullTracker:
    """Starts the MLflow run of a job: its config as params, its circumstances as tags.

    job: names the MLflow experiment, for example `embed`.
    run_id: our id of a run to go on with, as after a restart from a checkpoint; None for a new one.
    out: the job's output, local or s3://, which decides where the default MLflow is.
    uri: of MLflow; empty: `tracking_uri(out)`.
    num_nodes: of the cluster; an SQLite file and several nodes are warned about.
    A spool that cannot be written is warned about, and the job goes untracked.
    """
    run_id = run_id or uuid.uuid4().hex
    info = RunInfo(
        run_id=run_id,
        experiment=job,
        run_name=f"{job}-{time.strftime('%Y%m%d-%H%M%S')}-{run_id[:4]}",
        uri=redact(uri or tracking_uri(out)),
        start_ms=round(time.time() * 1000),
        host=socket.gethostname(),
        pid=os.getpid(),
    )
    try:
        # a restart has a spool of its own: the first one's process may still be sending
        folder = state_folder(out) / "tracking" / f"{run_id}-{uuid.uuid4().hex[:8]}"
        tracker = SpoolTracker(folder, info, finish_wait_s=finish_wait_s)
    except OSError as error:
        log.warning("tracking: off, its spool cannot be written: %s", error)
        return NullTracker()
    for note in tracking_notes(info.uri, out, num_nodes=num_nodes):
        log.warning("tracking: %s", note)
    tracker.log_params(flatten(config))
    tracker.set_tags(
        {**run_tags(), "mstar.config_fingerprint": fingerprint(config), **(tags or {})}
    )
    tracker.log_text(redact(to_json(config)), "config.json")
    return tracker


def replay(folder: Path, *, uri: str | None = None, timeout_s: float | None = None) -> None:
    """Sends what is left of a spool; any number of times gives the same run.

    uri: MLflow to send to instead of the one the run was started with.
    """
    extra = ["--uri", uri] if uri else []
    process = start_process(folder, *extra)
    if process.wait(timeout_s) != 0:
        raise StorageError(
            f"{folder}: could not be sent to MLflow; {folder / TRACKER_LOG} says why"
        )


def start_process(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A tracker process on a spool; in its own session, so that Ctrl-C does not end it first."""
    package_root = str(Path(mstar.__file__).parents[1])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    with (folder / TRACKER_LOG).open("ab") as output:
        return subprocess.Popen(
            # -P: nothing in the working directory can take a module's place
            [
                sys.executable,
                "-P",
                "-m",
                "mstar.training.tracking_process",
                str(folder),
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )


def wait_until(process: subprocess.Popen[bytes], deadline_s: float) -> None:
    """Waits for a process to end until a time of `time.monotonic`, then ends it."""
    try:
        process.wait(max(0.0, deadline_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def leftover_spools(out: str) -> Iterable[Path]:
    """Spools of earlier runs that MLflow has not got whole."""
    folder = state_folder(out) / "tracking"
    return sorted(path.parent for path in folder.glob("*/run.json"))
