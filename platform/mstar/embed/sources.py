"""Where a worker's pixels come from: its own reader threads, or a pool of reader actors.

A source stages a slide, opens it, finds or makes its grid, and reads rows of that grid as uint8 at
the encoder's input size. Pixels are never normalised here: that happens on the encoder's device.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from mstar.embed.grids import GridSource
from mstar.errors import PatchError, SlideError
from mstar.schema import Grid, SlideRef
from mstar.slides.patches import read_patch
from mstar.slides.reader import Slide, open_slide
from mstar.storage.cache import SlideCache

Prepare = Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "input input 3"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelRows:
    """Some rows of a grid: pixels of those that could be read, reasons for the others."""

    rows: list[int]
    pixels: UInt8[np.ndarray, "rows input input 3"]
    unreadable: dict[int, str]


class ReaderDied(Exception):
    """The process that read a slide died; nobody knows yet which slide did it."""


@runtime_checkable
class PatchSource(Protocol):
    """Opens slides and reads their patches, several rows at a time, in the background."""

    def open(self, slide: SlideRef) -> Grid:
        """Stage and open a slide; returns its grid. Raises SlideError or StorageError."""

    def read(self, slide: SlideRef, rows: Sequence[int]) -> "Future[PixelRows]":
        """Read rows of an open slide's grid."""

    def close(self, slide_id: str) -> None:
        """Release a slide and its staged file."""

    def counters(self) -> dict[str, float]:
        """Bytes fetched from object storage so far, and the like."""


@dataclass(slots=True, kw_only=True)
class _OpenSlide:
    slide: Slide
    grid: Grid
    resources: ExitStack
    reads: set["Future[PixelRows]"] = field(default_factory=set)


class LocalSource:
    """Reads in threads of this process."""

    def __init__(
        self,
        *,
        grids: GridSource,
        cache: SlideCache,
        threads: int,
        prepare: Prepare,
        bad_patches: Literal["skip", "fail"] = "skip",
    ) -> None:
        """Read with `threads` threads; `prepare` resizes a patch to the encoder's input."""
        self._grids, self._cache, self._prepare = grids, cache, prepare
        self._bad_patches = bad_patches
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="patch-reader")
        self._open: dict[str, _OpenSlide] = {}
        self._lock = Lock()

    def open(self, slide: SlideRef) -> Grid:
        """Stage, open, and find or make the grid."""
        with ExitStack() as stack:
            path = stack.enter_context(self._cache.stage(slide.uri))
            opened = open_slide(path)
            stack.callback(opened.close)
            grid = self._grids.grid_of(slide, opened)
            kept = _OpenSlide(slide=opened, grid=grid, resources=stack.pop_all())
        with self._lock:
            self._open[slide.slide_id] = kept
        return grid

    def read(self, slide: SlideRef, rows: Sequence[int]) -> "Future[PixelRows]":
        """Read rows in one of the threads."""
        with self._lock:
            opened = self._open[slide.slide_id]
            future = self._pool.submit(self._read, slide, opened, rows)
            opened.reads.add(future)
        future.add_done_callback(opened.reads.discard)
        return future

    def _read(self, slide: SlideRef, opened: _OpenSlide, rows: Sequence[int]) -> PixelRows:
        pixels, kept, unreadable = [], [], {}
        for row in rows:
            try:
                pixels.append(self._prepare(read_patch(opened.slide, opened.grid, row)))
                kept.append(row)
            except PatchError as error:
                if self._bad_patches == "fail":
                    raise SlideError(
                        f"slide {slide.slide_id}: {error}. Leave such patches out with "
                        f"--bad-patches skip"
                    ) from error
                unreadable[row] = str(error)
        stacked = np.stack(pixels) if pixels else np.empty((0, 1, 1, 3), np.uint8)
        return PixelRows(rows=kept, pixels=stacked, unreadable=unreadable)

    def close(self, slide_id: str) -> None:
        """Close the slide and unpin its staged file, once no thread reads it any more."""
        with self._lock:
            opened = self._open.pop(slide_id, None)
        if opened is not None:
            wait(list(opened.reads))  # closing under a reader crashes the process
            opened.resources.close()

    def counters(self) -> dict[str, float]:
        """What the staging cache did."""
        return {"bytes_fetched": float(self._cache.bytes_fetched)}
