"""A source that kills its process when it reads one slide, as a segfault would."""

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from mstar.embed.assembly import EmbedPlan, make_worker
from mstar.embed.sources import PatchSource, PixelRows
from mstar.embed.worker import EmbedWorker
from mstar.schema import Grid, SlideRef


class PoisonedSource:
    """Reads like another source, until it meets the poisoned slide."""

    def __init__(self, source: PatchSource, poison: str) -> None:
        self._source, self._poison = source, poison

    def open(self, slide: SlideRef) -> Grid:
        return self._source.open(slide)

    def read(self, slide: SlideRef, rows: Sequence[int]) -> "Future[PixelRows]":
        if slide.slide_id == self._poison:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._source.read(slide, rows)

    def close(self, slide_id: str) -> None:
        self._source.close(slide_id)

    def counters(self) -> dict[str, float]:
        return self._source.counters()


def make_poisoned_worker(poison: str, plan: EmbedPlan, readers: Sequence[Any] = ()) -> EmbedWorker:
    worker = make_worker(plan, readers)
    worker._source = PoisonedSource(worker._source, poison)
    worker._alone_source = PoisonedSource(worker._alone_source, poison)
    return worker


def poisoned_factory(poison: str) -> Callable[..., Callable[[], EmbedWorker]]:
    """Stands in for `worker_factory`."""

    def factory(plan: EmbedPlan, readers: Sequence[Any] = ()) -> Callable[[], EmbedWorker]:
        return partial(make_poisoned_worker, poison, plan, tuple(readers))

    return factory
