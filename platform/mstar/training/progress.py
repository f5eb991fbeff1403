"""Progress of a long job: a bar on a terminal, else a plain line every few seconds.

Rates come from a recent window, so that they follow the job rather than its average; the clock is
an argument, so that tests need not wait.
"""

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from mstar.training.log_lines import say_progress
from mstar.training.tracker import NullTracker, Tracker

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

WINDOW_S = 60.0
LINE_INTERVAL_S = 10.0
METRIC_INTERVAL_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a job has done so far.

    num_slides, num_patches: what there is to do in this run; patches None when not yet known.
    """

    num_slides: int
    num_patches: int | None = None
    slides_done: int = 0
    slides_failed: int = 0
    patches_done: int = 0


class RecentRate:
    """Events per second over the last `window_s` seconds."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self.window_s = window_s
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now_s: float, total: int) -> None:
        """Notes that `total` events have happened by `now_s`."""
        self._samples.append((now_s, total))
        # Keep one sample older than the window, so that the window is always spanned.
        while len(self._samples) > 2 and self._samples[1][0] <= now_s - self.window_s:
            self._samples.popleft()

    def per_s(self) -> float:
        """The rate, 0 before two samples at different times."""
        if len(self._samples) < 2:
            return 0.0
        (start_s, first), (end_s, last) = self._samples[0], self._samples[-1]
        return (last - first) / (end_s - start_s) if end_s > start_s else 0.0


def eta_s(counts: Counts, patches_per_s: float, slides_per_s: float) -> float | None:
    """Seconds to go, from patches when their number is known, else from slides; None if unknown."""
    if counts.num_patches is not None:
        left, rate = counts.num_patches - counts.patches_done, patches_per_s
    else:
        left = counts.num_slides - counts.slides_done - counts.slides_failed
        rate = slides_per_s
    if left <= 0:
        return 0.0
    return left / rate if rate > 0 else None


def format_duration(seconds: float | None) -> str:
    """`1:02:03`, `2:03`, or `?` when unknown."""
    if seconds is None:
        return "?"
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class ProgressReporter:
    """Shows slides done, failed and to do, recent patches per second and time to go.

    job: word in front of every line, for example `embed`.
    tracker: receives the rates as metrics, every `METRIC_INTERVAL_S`, at step = seconds elapsed.
    bar: None draws the bar when `stream` is a terminal.
    """

    def __init__(
        self,
        job: str,
        *,
        num_slides: int,
        num_patches: int | None = None,
        tracker: Tracker | None = None,
        stream: TextIO | None = None,
        bar: bool | None = None,
        line_interval_s: float = LINE_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.job = job
        self.counts = Counts(num_slides=num_slides, num_patches=num_patches)
        self._tracker: Tracker = tracker or NullTracker()
        self._stream = stream or sys.stderr
        self._line_interval_s = line_interval_s
        self._clock = clock
        self._start_s = clock()
        self._line_at_s = self._metric_at_s = self._start_s
        self._patches, self._slides = RecentRate(), RecentRate()
        self._patches.add(self._start_s, 0)
        self._slides.add(self._start_s, 0)
        want_bar = self._stream.isatty() if bar is None else bar
        self._closed = False
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if want_bar:
            self._start_bar()

    def update(
        self,
        *,
        slides_done: int | None = None,
        slides_failed: int | None = None,
        patches_done: int | None = None,
        num_patches: int | None = None,
    ) -> None:
        """Takes the totals so far (None: as before) and shows them when it is time to."""
        old = self.counts
        self.counts = Counts(
            num_slides=old.num_slides,
            num_patches=old.num_patches if num_patches is None else num_patches,
            slides_done=old.slides_done if slides_done is None else slides_done,
            slides_failed=old.slides_failed if slides_failed is None else slides_failed,
            patches_done=old.patches_done if patches_done is None else patches_done,
        )
        now_s = self._clock()
        self._patches.add(now_s, self.counts.patches_done)
        self._slides.add(now_s, self.counts.slides_done + self.counts.slides_failed)
        self._show(now_s)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start_s

    def line(self) -> str:
        """The state in one plain line."""
        counts, rate = self.counts, self._patches.per_s()
        slides = counts.slides_done + counts.slides_failed
        to_go_s = eta_s(counts, rate, self._slides.per_s())
        patches = f"{counts.patches_done:,}"
        if counts.num_patches is not None:
            patches += f"/{counts.num_patches:,}"
        return (
            f"{self.job}: {slides:,}/{counts.num_slides:,} slides"
            f" ({counts.slides_failed:,} failed) · {patches} patches · {rate:,.0f} patches/s"
            f" · {format_duration(self.elapsed_s)} elapsed · {format_duration(to_go_s)} to go"
        )

    def metrics(self) -> dict[str, float]:
        """The state as metrics."""
        return {
            "patches_per_s": self._patches.per_s(),
            "patches_done": float(self.counts.patches_done),
            "slides_done": float(self.counts.slides_done),
            "slides_failed": float(self.counts.slides_failed),
        }

    def close(self) -> None:
        """Takes the bar down and leaves the last state as a line; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._tracker.log_metrics(self.metrics(), step=int(self.elapsed_s))
        self._print_line()

    def __enter__(self) -> "ProgressReporter":
        """Returns itself; the end of the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the bar, also when the job fails."""
        self.close()

    def _show(self, now_s: float) -> None:
        if now_s - self._metric_at_s >= METRIC_INTERVAL_S:
            self._metric_at_s = now_s
            self._tracker.log_metrics(self.metrics(), step=int(now_s - self._start_s))
        if self._bar is not None:
            self._draw()
        elif now_s - self._line_at_s >= self._line_interval_s:
            self._line_at_s = now_s
            self._print_line()

    def _print_line(self) -> None:
        say_progress(self.line(), self._stream, self.metrics() | {"elapsed_s": self.elapsed_s})

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (BarColumn(bar_width=12), TextColumn("{task.description}"))
        console = Console(file=self._stream, force_terminal=True)
        self._bar = Progress(*columns, console=console, transient=True, refresh_per_second=4)
        self._task = self._bar.add_task(self.line(), total=self._total())
        self._bar.start()

    def _draw(self) -> None:
        assert self._bar is not None
        assert self._task is not None
        counts = self.counts
        done = counts.slides_done + counts.slides_failed
        if counts.num_patches is not None:
            done = counts.patches_done
        self._bar.update(self._task, completed=done, total=self._total(), description=self.line())

    def _total(self) -> int:
        """What the bar counts: patches when their number is known, else slides."""
        patches = self.counts.num_patches
        return self.counts.num_slides if patches is None else patches
