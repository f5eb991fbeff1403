"""Progress of a training run: a plain line every few seconds with steps, loss, cases and time.

The clock is an argument, so that tests need not wait.
"""

import sys
import time
from collections.abc import Callable

from mstar.training.progress import LINE_INTERVAL_S, RecentRate, format_duration


def to_stderr(line: str) -> None:
    """A line for the person who watches."""
    print(line, file=sys.stderr, flush=True)


class StepProgress:
    """Says how far a run is, how fast, and how long it will take at the recent rate.

    job: word in front of every line, for example `stage1`.
    num_steps: of the whole run. steps_done: where this attempt begins.
    say: takes a line. unit: what a step is counted in, besides.
    """

    def __init__(
        self,
        job: str,
        *,
        num_steps: int,
        steps_done: int = 0,
        say: Callable[[str], None] = to_stderr,
        unit: str = "cases",
        line_interval_s: float = LINE_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.job, self.num_steps, self.unit = job, num_steps, unit
        self._say, self._line_interval_s, self._clock = say, line_interval_s, clock
        self._steps_done, self._cases_done, self._loss = steps_done, 0, float("nan")
        self._start_s = self._line_at_s = clock()
        self._steps, self._cases = RecentRate(), RecentRate()
        self._steps.add(self._start_s, steps_done)
        self._cases.add(self._start_s, 0)

    def update(self, steps_done: int, *, num_cases: int, loss: float) -> None:
        """Takes a step: how many are done now, the cases it saw and its loss.

        Steps that were not told of, because only every so many are logged, saw as many.
        """
        now_s = self._clock()
        self._cases_done += num_cases * (steps_done - self._steps_done)
        self._steps_done, self._loss = steps_done, loss
        self._steps.add(now_s, steps_done)
        self._cases.add(now_s, self._cases_done)
        if now_s - self._line_at_s >= self._line_interval_s:
            self._line_at_s = now_s
            self._say(self.line())

    def line(self) -> str:
        """The state in one plain line."""
        left, per_s = self.num_steps - self._steps_done, self._steps.per_s()
        to_go_s = 0.0 if left <= 0 else left / per_s if per_s > 0 else None
        return (
            f"{self.job}: step {self._steps_done:,}/{self.num_steps:,} · loss {self._loss:.4f}"
            f" · {self._cases.per_s():,.1f} {self.unit}/s"
            f" · {format_duration(self._clock() - self._start_s)} elapsed"
            f" · {format_duration(to_go_s)} to go"
        )
