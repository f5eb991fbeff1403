"""What a sweep has finished, as lines that are whole or absent: what a rerun need not do again.

    <out>/journal.jsonl         local: one write a line, on disk before the sweep goes on
    <out>/journal/<n>.jsonl     s3://: an object a line, since nothing can be appended there

A line that a dying driver left half-written ends the file without a newline and is dropped. One
sweep writes at a time: a second one into the same local folder is refused.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mstar.errors import ConfigError
from mstar.storage import objects, troubles

FILE, FOLDER = "journal.jsonl", "journal"


class Journal:
    """The journal of one sweep folder, open for writing."""

    def __init__(self, out: str) -> None:
        """Read what is there.

        Raises:
            ConfigError: another sweep is writing into the folder.
        """
        self._out = out
        self._fd = -1
        if objects.is_local(out):
            self._fd = self._open_locked(objects.local_path(objects.join(out, FILE)))
        self._segments = list(self._found()) if self._fd < 0 else []
        self.lines: list[dict[str, Any]] = list(self._read())
        self._count = len(self._segments)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line; when this returns it is on disk.

        Raises:
            StorageError: it cannot be written.
        """
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        if self._fd < 0:
            uri = objects.join(self._out, FOLDER, f"{self._count:08d}.jsonl")
            objects.write_whole(uri, data)
        else:
            self._append_local(data)
        self._count += 1
        self.lines.append(json.loads(data))

    def close(self) -> None:
        """Let another sweep have the folder."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append_local(self, data: bytes) -> None:
        with troubles.named_errors("writing", objects.join(self._out, FILE)):
            while data:  # a full disk takes a part, and says so the next time
                data = data[os.write(self._fd, data) :]
            os.fsync(self._fd)

    def _open_locked(self, path: Path) -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ConfigError(
                f"{self._out}: another sweep is writing here. Wait for it, or choose another --out."
            ) from error
        _drop_torn_line(descriptor)
        return descriptor

    def _found(self) -> Iterator[str]:
        folder = objects.join(self._out, FOLDER)
        yield from sorted(info.uri for info in objects.list_files(folder, suffix=".jsonl"))

    def _read(self) -> Iterator[dict[str, Any]]:
        if self._fd >= 0:
            yield from _parse(objects.read_bytes(objects.join(self._out, FILE)))
        for uri in self._segments:
            yield from _parse(objects.read_bytes(uri))


def _drop_torn_line(descriptor: int) -> None:
    """Cut what follows the last newline, so that the next line starts on its own."""
    size = os.fstat(descriptor).st_size
    data = os.pread(descriptor, size, 0)
    whole = data.rfind(b"\n") + 1
    if whole < size:
        os.ftruncate(descriptor, whole)


def _parse(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue  # of a full disk; what it said is done again
        if isinstance(found, dict):
            yield found
