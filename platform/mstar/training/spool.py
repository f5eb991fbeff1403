"""The local spool between a job and its tracker process: what to log, as lines of JSON.

A spool is one folder per run:

    run.json        RunInfo: which run, and which MLflow it goes to
    records.jsonl   one record per line, appended whole and in order by the job
    files/          copies of the logged artifacts, so that a later replay still has them
    position.json   Position: how far the tracker process got, and what stops it if anything does
    tracker.log     what the tracker process and MLflow had to say
    lock            held by the one tracker process at work

A record is `{"kind": …, "time_ms": …, …}`; `KINDS` lists what each kind carries.
"""

import json
import os
import shutil
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mstar.training.credentials import redact

KINDS = {
    "params": "params: name → text",
    "metrics": "metrics: name → number; step",
    "tags": "tags: name → text",
    "text": "text; name: file name of the artifact",
    "artifact": "file: path below files/; folder: of the artifact, may be empty",
    "model": "name, uri: of a version for the model registry; tags: name → text; description",
    "run": "a run below this one: run_id, parent (empty: this run), run_name, status, start_ms, "
    "end_ms; params, tags: name → text; metrics: (name, number, step); files: (file, folder)",
    "finish": "status: FINISHED | FAILED | KILLED",
}
RECORDS, POSITION, RUN, FILES = "records.jsonl", "position.json", "run.json", "files"
TRACKER_LOG, LOCK = "tracker.log", "lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """Which run a spool belongs to.

    run_id: ours, in the run's tag `mstar.run_id`; MLflow gives its own besides.
    uri: MLflow tracking URI, without a password: the tracker process has it from its environment.
    host, pid: where the job runs, to tell a job at work from a dead one.
    """

    run_id: str
    experiment: str
    run_name: str
    uri: str
    start_ms: int
    host: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a spool has been sent.

    uri: MLflow that the rest is about.
    offset_bytes: of records.jsonl, all before it is in MLflow.
    mlflow_run_id: the run in MLflow, empty before it exists.
    num_rejected: records that MLflow refused for good; tracker.log says why.
    done: the finish record has been sent.
    error: what stopped the last try, empty when nothing did.
    """

    uri: str = ""
    offset_bytes: int = 0
    mlflow_run_id: str = ""
    num_rejected: int = 0
    done: bool = False
    error: str = ""


class Spool:
    """Appends records to one spool folder; safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._num_files = 0
        self._fd = os.open(folder / RECORDS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    @classmethod
    def create(cls, folder: Path, info: RunInfo) -> "Spool":
        """A new spool in `folder`."""
        (folder / FILES).mkdir(parents=True)
        write_json(folder / RUN, asdict(info))
        return cls(folder)

    def append(self, kind: str, **fields: Any) -> None:
        """Writes one record in a single write, so that a reader never sees half of it."""
        assert kind in KINDS, kind
        record = {"kind": kind, "time_ms": round(time.time() * 1000), **fields}
        line = redact(json.dumps(record, default=str)).encode() + b"\n"
        with self._lock:
            written = os.write(self._fd, line)
        if written != len(line):
            raise OSError(f"{self.folder}: wrote {written} of {len(line)} bytes; is the disk full?")

    def keep_file(self, path: Path) -> str:
        """Copies an artifact into the spool and returns its path below `files/`."""
        with self._lock:
            self._num_files += 1
            number = self._num_files
        # A folder per artifact: equal names from different places must not meet.
        target = self.folder / FILES / f"{number:05d}" / path.name
        target.parent.mkdir()
        shutil.copyfile(path, target)
        return f"{target.parent.name}/{target.name}"

    def close(self) -> None:
        """Closes the record file; the folder stays."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1


def read_info(folder: Path) -> RunInfo:
    """Which run the spool in `folder` belongs to."""
    return RunInfo(**json.loads((folder / RUN).read_text(encoding="utf-8")))


def read_position(folder: Path) -> Position:
    """How far the spool has been sent; the start when nothing was."""
    path = folder / POSITION
    return Position(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else Position()


def write_position(folder: Path, position: Position) -> None:
    """Replaces position.json whole."""
    write_json(folder / POSITION, asdict(position))


def read_records(
    folder: Path, offset_bytes: int, *, max_bytes: int = 1 << 20
) -> list[tuple[dict[str, Any], int]]:
    """Whole records from an offset on, each with the offset behind it.

    A record longer than `max_bytes` is read alone. A line that is not JSON, left by a full disk,
    comes as a record of kind `broken`.
    """
    with (folder / RECORDS).open("rb") as file:
        file.seek(offset_bytes)
        data = file.read(max_bytes)
        if b"\n" not in data:
            data += file.readline()
    records = []
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        offset_bytes += len(line)
        records.append((parse_record(line), offset_bytes))
    return records


def parse_record(line: bytes) -> dict[str, Any]:
    """One line as a record."""
    try:
        record = json.loads(line)
    except ValueError:
        return {"kind": "broken"}
    known = isinstance(record, dict) and record.get("kind") in KINDS
    return record if known else {"kind": "broken"}


def write_json(path: Path, value: Any) -> None:
    """Writes a small JSON file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
    temporary.replace(path)
