"""Paints the slides of a generated cohort in local processes, each slide whole or not at all.

What a slide looks like depends on the settings and its own seed; so any number of processes gives
the same bytes, and a rerun keeps the slides that are there. A worker ends when its parent does.
"""

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path

from mstar.cohorts.generated import truth
from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.factors import SlideFactors
from mstar.errors import WorkerError
from mstar.storage import objects

_AHEAD_PER_WORKER = 4  # jobs handed out and not yet done: so few that memory stays flat


def missing_slides(folder: str, slides: Sequence[SlideFactors]) -> list[SlideFactors]:
    """Those that are still to be painted."""
    files = objects.list_files(objects.join(folder, "slides"), suffix=".svs")
    done = {Path(info.rel).stem for info in files} & truth.slides_with_cells(folder)
    return [slide for slide in slides if slide.slide_id not in done]


def paint_slides(config: GenerateConfig, slides: Sequence[SlideFactors]) -> Iterator[int]:
    """Paint and write slides; yields the number of truth cells of each as it is done.

    Raises:
        WorkerError: a worker process died.
    """
    workers = min(num_workers(config), len(slides))
    if workers <= 1:
        yield from (paint_one(config, slide) for slide in slides)
        return
    executor = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        yield from _as_done(executor, config, slides, _AHEAD_PER_WORKER * workers)
    except BrokenProcessPool as error:
        raise WorkerError(
            "a process that paints slides died, perhaps for want of memory. "
            "Run it again with fewer --workers: painted slides are kept."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def paint_one(config: GenerateConfig, slide: SlideFactors) -> int:
    """Paint one slide and write it after its truth; returns the number of its cells."""
    from mstar.cohorts.generated.paint import write_slide  # imports OpenCV and libvips

    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "slide.svs")
        cells = write_slide(path, slide, config)
        truth.write_cells(config.out, slide, cells)
        objects.put_file(path, slide_uri(config.out, slide))
    return len(cells)


def slide_uri(folder: str, slide: SlideFactors) -> str:
    """Where a slide is."""
    return objects.join(folder, "slides", f"{slide.slide_id}.svs")


def num_workers(config: GenerateConfig) -> int:
    """As asked, else one a core that this process may use."""
    return config.workers or len(os.sched_getaffinity(0))


def _as_done(
    executor: ProcessPoolExecutor,
    config: GenerateConfig,
    slides: Iterable[SlideFactors],
    num_ahead: int,
) -> Iterator[int]:
    """Hands out `num_ahead` jobs at most; results in the order in which they come."""
    jobs = iter(slides)
    pending: set[Future[int]] = set()
    while True:
        for slide in islice(jobs, num_ahead - len(pending)):
            pending.add(executor.submit(paint_one, config, slide))
        if not pending:
            return
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)


def _start_worker() -> None:
    """One thread a worker; Ctrl-C is the parent's to handle, and its end is the worker's."""
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
