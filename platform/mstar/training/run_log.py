"""What a training run writes down as it goes, on rank 0.

    steps.jsonl     one line a step, one a validation; only ever appended to. A resumed run repeats
                    the steps after its checkpoint: the last line of a step counts.
    log.txt         progress, warnings, what was resumed
    *.png           curves and other pictures

They lie in the output folder. For an output in an object store they are written on this machine,
and copied there with every checkpoint.
"""

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mstar.config import fingerprint
from mstar.storage import objects, troubles
from mstar.training.tracking_places import state_folder

STEPS_FILE, LOG_FILE = "steps.jsonl", "log.txt"
_POLL_S = 0.3


class RunLog:
    """The log of one attempt at a run."""

    def __init__(self, out: str) -> None:
        """Goes on with the files of earlier attempts at the same `out`."""
        self._out = out
        self.folder = log_folder(out)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not objects.is_local(out):
            self._fetch()
        for name in (STEPS_FILE, LOG_FILE):
            _end_line(self.folder / name)

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line of numbers."""
        line = json.dumps({"step": step, "pid": os.getpid(), **metrics})
        self._append(STEPS_FILE, line)

    def say(self, text: str) -> None:
        """A line for people, on the terminal and in the log."""
        print(text, file=sys.stderr, flush=True)
        self.note(text)

    def note(self, text: str) -> None:
        """A line for people, in the log alone."""
        self._append(LOG_FILE, text)

    def history(self, before_step: int) -> list[dict[str, float]]:
        """The numbers of former attempts up to a step, each step once, in order."""
        rows: dict[tuple[int, bool], dict[str, Any]] = {}
        for row in read_steps(self.folder / STEPS_FILE):
            if row["step"] <= before_step:
                rows[row["step"], "loss" in row] = row
        return [rows[key] for key in sorted(rows, key=lambda key: (key[0], not key[1]))]

    def publish(self) -> None:
        """Copy the files to an output in an object store."""
        if objects.is_local(self._out):
            return
        files = [self.folder / STEPS_FILE, self.folder / LOG_FILE, *self.folder.glob("*.png")]
        for path in files:
            if path.exists():
                objects.put_file(path, objects.join(self._out, path.name))

    @contextmanager
    def with_warnings(self) -> Iterator[None]:
        """Warnings of the platform go to this log too."""
        handler = _Handler(self)
        logger = logging.getLogger("mstar")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    def _append(self, name: str, line: str) -> None:
        path = self.folder / name
        with troubles.named_errors("writing", path), path.open("a") as file:
            file.write(line + "\n")

    def _fetch(self) -> None:
        """What an attempt on another machine had written."""
        uri = objects.join(self._out, STEPS_FILE)
        if not (self.folder / STEPS_FILE).exists() and objects.exists(uri):
            (self.folder / STEPS_FILE).write_bytes(objects.read_bytes(uri))


class _Handler(logging.Handler):
    """Warnings into the log, and on the terminal where nothing else would show them."""

    def __init__(self, run_log: RunLog) -> None:
        super().__init__(logging.WARNING)
        self._log = run_log

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        if logging.getLogger().handlers:
            self._log.note(text)
        else:  # our own handler keeps logging from printing warnings by itself
            self._log.say(text)


def log_folder(out: str) -> Path:
    """Where the log of an output lies: in it, or on this machine for an object store."""
    if objects.is_local(out):
        return objects.local_path(out)
    return state_folder(out) / f"run-{fingerprint(out)}"


def read_steps(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of `steps.jsonl`; one that a killed run left unfinished is passed over."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _end_line(path: Path) -> None:
    """End a line that a killed attempt left unfinished, so that the next one is read."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


@contextmanager
def followed(path: Path) -> Iterator[None]:
    """Show the lines that other processes write to a log while the block runs.

    Workers under Ray print where nobody looks; their log does lie where all can read it, unless the
    output is in an object store and they run on another machine.
    """
    ended = threading.Event()
    start = path.stat().st_size if path.exists() else 0
    thread = threading.Thread(target=_follow, args=(path, start, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _follow(path: Path, position: int, ended: threading.Event) -> None:
    last = False
    while not last:
        last = ended.wait(_POLL_S)
        if path.exists():
            with path.open() as file:
                file.seek(position)
                for line in file:
                    print(line, end="", file=sys.stderr, flush=True)
                position = file.tell()
