"""What went wrong with which slide, and which slides killed the process that read them.

Both are one small JSON file per slide, written whole, so that any number of workers may write and
a listing shows everything. An id that cannot name a file (`../x`) is percent-quoted.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mstar.storage import objects
from mstar.storage.ids import record_name

_log = logging.getLogger(__name__)

MAX_TRACEBACK_CHARS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a slide has no output.

    stage: manifest, stage, open, grid, read, encode, write …
    kind: class of the error. attempts: how often it was tried so far.
    permanent: the slide is at fault, and trying again cannot help; else storage, memory or a node.
    """

    slide_id: str
    uri: str
    stage: str
    kind: str
    message: str
    traceback: str
    attempts: int
    permanent: bool
    run_id: str


class FailureLedger:
    """The failures recorded below `root`."""

    def __init__(self, root: str) -> None:
        """Keep records below `root`, which need not exist."""
        self._root = root

    def record(self, failure: Failure) -> None:
        """Write a slide's failure, in place of an earlier one."""
        kept = dataclasses.replace(failure, traceback=failure.traceback[-MAX_TRACEBACK_CHARS:])
        _write(_uri(self._root, failure.slide_id), dataclasses.asdict(kept))

    def get(self, slide_id: str) -> Failure | None:
        """The failure of a slide, None when there is none."""
        fields = _read(_uri(self._root, slide_id))
        return None if fields is None else _to_failure(fields, slide_id)

    def all(self) -> Iterator[Failure]:
        """All failures, read one after the other."""
        for info in objects.list_files(self._root, suffix=".json"):
            fields = _read(info.uri)
            failure = None if fields is None else _to_failure(fields, info.uri)
            if failure is not None:
                yield failure

    def clear(self, slide_id: str) -> None:
        """Forget a slide's failure; there may be none."""
        objects.delete(_uri(self._root, slide_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How often reading a slide was begun and never finished.

    A beginning counts as a death until `finish`, so of a slide that nobody reads just now `count`
    processes died while they had it in hand, `alone_deaths` of them with no other slide.
    """

    count: int
    alone_deaths: int


class Attempts:
    """Attempts recorded below `root`, each before its slide is read."""

    def __init__(self, root: str) -> None:
        """Keep records below `root`, which need not exist."""
        self._root = root

    def begin(self, slide_id: str, alone: bool) -> Attempt:
        """Record, durably, that reading starts now; returns the state with this one counted.

        Counting is read then write: only the holder of the slide's lease may begin it.
        """
        before = self.get(slide_id) or Attempt(count=0, alone_deaths=0)
        now = Attempt(count=before.count + 1, alone_deaths=before.alone_deaths + alone)
        _write(_uri(self._root, slide_id), {"slide_id": slide_id, **dataclasses.asdict(now)})
        return now

    def finish(self, slide_id: str) -> None:
        """The process outlived the slide, whatever became of it: forget its attempts."""
        objects.delete(_uri(self._root, slide_id))

    def get(self, slide_id: str) -> Attempt | None:
        """The attempts of a slide, None when all were finished."""
        fields = _read(_uri(self._root, slide_id))
        if fields is None:
            return None
        try:
            count, alone_deaths = int(fields["count"]), int(fields["alone_deaths"])
            return Attempt(count=count, alone_deaths=alone_deaths)
        except (KeyError, TypeError, ValueError):
            _log.warning("attempts of slide %s: not a record, ignored", slide_id)
            return None


def _uri(root: str, slide_id: str) -> str:
    return objects.join(root, record_name(slide_id))


def _write(uri: str, fields: dict[str, Any]) -> None:
    objects.write_whole(uri, json.dumps(fields, indent=1).encode())


def _read(uri: str) -> Any:
    """The JSON of a file, None when there is none; a damaged one is warned about and ignored."""
    try:
        return json.loads(objects.read_bytes(uri))
    except FileNotFoundError:
        return None
    except ValueError as error:
        _log.warning("%s is not JSON, ignored: %s", uri, error)
        return None


def _to_failure(fields: Any, name: str) -> Failure | None:
    try:
        return Failure(**fields)
    except TypeError as error:
        _log.warning("%s is not a failure record, ignored: %s", name, error)
        return None
