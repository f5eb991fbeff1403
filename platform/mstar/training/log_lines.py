"""Log lines for machines: `MSTAR_LOG_FORMAT=json` makes every printed line one JSON object.

    {"time": "2026-01-31T12:00:00.123Z", "job": "embed", "stream": "stderr", "message": "…"}

Progress lines carry their numbers besides (`event`: progress, slides_done, patches_per_s, …). The
plain format is the text as it is. Every line of the process is taken, also those of libraries, so
that a collector never meets half of one format and half of another.
"""

import io
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

from mstar.errors import ConfigError

LOG_FORMAT = "MSTAR_LOG_FORMAT"
FORMATS = ("plain", "json")


class JsonLines(io.TextIOBase):
    """A text stream that writes whole lines as JSON to another one.

    job: put into every object. name: stdout or stderr.
    """

    def __init__(self, job: str, name: str, stream: TextIO) -> None:
        self.job, self.name, self._stream = job, name, stream
        self._rest = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        """Takes text; each line goes out once it is whole, an empty one not at all."""
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                self._object(line)
        return len(text)

    def event(self, message: str, event: str, fields: Mapping[str, Any]) -> None:
        """One line with numbers besides its text."""
        with self._lock:
            self._object(message, event=event, **fields)

    def flush(self) -> None:
        """Passes on what is written; half a line waits for its end."""
        self._stream.flush()

    def end(self) -> None:
        """Writes a last line that has no end."""
        with self._lock:
            rest, self._rest = self._rest, ""
            self._object(rest)
            self._stream.flush()

    def isatty(self) -> bool:
        """False: a bar would be redrawn a hundred times."""
        return False

    def fileno(self) -> int:
        """Of the stream below."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream below."""
        return self._stream.encoding

    def _object(self, message: str, **fields: Any) -> None:
        if not message.strip():
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": now, "job": self.job, "stream": self.name, "message": message.rstrip()}
        self._stream.write(json.dumps(line | fields, ensure_ascii=False) + "\n")


@contextmanager
def structured_output(job: str) -> Iterator[None]:
    """Both output streams as JSON lines while the block runs, if MSTAR_LOG_FORMAT asks for it.

    Raises:
        ConfigError: MSTAR_LOG_FORMAT names a format that does not exist.
    """
    if log_format() == "plain":
        yield
        return
    before = sys.stdout, sys.stderr
    out, err = JsonLines(job, "stdout", sys.stdout), JsonLines(job, "stderr", sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        out.end()
        err.end()
        sys.stdout, sys.stderr = before


def log_format() -> str:
    """What MSTAR_LOG_FORMAT says; plain when it says nothing."""
    found = os.environ.get(LOG_FORMAT) or "plain"
    if found not in FORMATS:
        raise ConfigError(f"{LOG_FORMAT}={found!r}: expected one of {', '.join(FORMATS)}")
    return found


def say_progress(line: str, stream: TextIO, fields: Mapping[str, Any]) -> None:
    """A progress line: as text, or with its numbers where the stream takes them."""
    if isinstance(stream, JsonLines):
        stream.event(line, "progress", fields)
        stream.flush()
    else:
        print(line, file=stream, flush=True)
