"""Reader actors: reading and decoding on CPU nodes, for GPU nodes that are short of cores.

Off by default: pixels then travel through Ray's object store, which costs more than reading where
they are encoded
(platform/docs/performance.md). A slide sticks to one reader, so that one node fetches it.
"""

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from mstar.embed.sources import LocalSource, PixelRows, ReaderDied
from mstar.schema import Grid, SlideRef
from mstar.training.code_version import refuse_other_code


class ReaderActor:
    """A LocalSource in a process of its own."""

    def __init__(self, make_source: Callable[[], LocalSource]) -> None:
        """Build the source where it will run."""
        refuse_other_code()
        self._source = make_source()

    def open(self, slide: SlideRef) -> Grid:
        """Open a slide, again if a worker that died had it open."""
        self._source.close(slide.slide_id)
        return self._source.open(slide)

    def read(self, slide: SlideRef, rows: Sequence[int]) -> PixelRows:
        """Read rows; the actor's calls run in threads."""
        return self._source.read(slide, rows).result()

    def close(self, slide_id: str) -> None:
        """Release a slide."""
        self._source.close(slide_id)

    def counters(self) -> dict[str, float]:
        """What the staging cache of this process did."""
        return self._source.counters()


def start_readers(
    make_source: Callable[[], LocalSource], *, count: int, num_cpus: float, threads: int
) -> list[Any]:
    """Start reader actors.

    One that dies comes back, but what it was doing is not repeated blindly: the slides it had in
    hand are remembered as suspects (see `custody`).
    """
    actor = ray.remote(ReaderActor).options(
        num_cpus=num_cpus,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=threads + 2,
        scheduling_strategy="SPREAD",
    )
    return [actor.remote(make_source) for _ in range(count)]


class RemoteSource:
    """A PatchSource over reader actors."""

    def __init__(self, readers: Sequence[Any]) -> None:
        """Use these actors."""
        self._readers = list(readers)

    def _reader(self, slide_id: str) -> Any:
        return self._readers[zlib.crc32(slide_id.encode()) % len(self._readers)]

    def open(self, slide: SlideRef) -> Grid:
        """Open on the slide's reader."""
        try:
            grid: Grid = ray.get(self._reader(slide.slide_id).open.remote(slide))
        except Exception as error:
            raise _own_error(error) from error
        return grid

    def read(self, slide: SlideRef, rows: Sequence[int]) -> "Future[PixelRows]":
        """Read on the slide's reader."""
        answer: Future[PixelRows] = Future()

        def settle(read: "Future[PixelRows]") -> None:
            error = read.exception()
            if error is None:
                answer.set_result(read.result())
            else:
                answer.set_exception(_own_error(error))

        self._reader(slide.slide_id).read.remote(slide, rows).future().add_done_callback(settle)
        return answer

    def close(self, slide_id: str) -> None:
        """Release on the slide's reader; not waited for."""
        self._reader(slide_id).close.remote(slide_id)

    def counters(self) -> dict[str, float]:
        """Readers report their own; see `fetched_by`."""
        return {"bytes_fetched": 0.0}


def fetched_by(readers: Sequence[Any]) -> float:
    """Bytes that reader actors fetched from object storage."""
    counts = ray.get([reader.counters.remote() for reader in readers])
    return float(sum(count["bytes_fetched"] for count in counts))


def _own_error(error: BaseException) -> BaseException:
    """The error as a local reader would have raised it."""
    if isinstance(error, RayActorError):
        return ReaderDied(str(error))
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        return error.cause
    return error
