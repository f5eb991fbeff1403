"""What a sweep prints: its plan, how far it is, and one screen in the end."""

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import TextIO

from mstar.downstream.schedule import Schedule
from mstar.downstream.studies import SweepPlan
from mstar.downstream.study_run import StudyRun
from mstar.downstream.sweep_config import SweepConfig
from mstar.training.log_lines import say_progress
from mstar.training.progress import format_duration

LINE_INTERVAL_S = 10.0
MAX_LINES = 12  # of one kind on the last screen


def plan_lines(config: SweepConfig, plan: SweepPlan) -> list[str]:
    """What will be done."""
    studies = plan.studies
    tasks = {study.study.task_id for study in studies}
    trained = [study for study in studies if not study.whole]
    trials = sum((s.samples or s.space.samples) if s.space.search else 1 for s in trained)
    lines = [
        f"sweep: {len(studies):,} studies ({len(tasks):,} tasks x {len(plan.encoders)} encoders x "
        f"{len(config.head_names)} heads), {trials:,} trials, space {config.space}, "
        f"{config.seeds} seeds, protocol {config.protocol}",
    ]
    reasons = Counter(_short(one.reason) for one in plan.left_out)
    if plan.left_out:
        left = {one.task for one in plan.left_out} - tasks
        lines.append(f"left out: {len(left):,} tasks; why:")
        lines += [f"  {count:4d} x {reason}" for reason, count in reasons.most_common(MAX_LINES)]
    return lines


def summary_lines(
    config: SweepConfig, plan: SweepPlan, schedule: Schedule, elapsed_s: float
) -> list[str]:
    """One screen at the end."""
    runs = list(schedule.studies.values())
    failed = [run for run in runs if run.failed]
    trials = sum(len(run.search.ended) for run in runs)
    lost = sum(run.num_failed_trials for run in runs)
    lines = [
        f"sweep: {len(runs) - len(failed):,} of {len(runs):,} studies done, {len(failed):,} failed,"
        f" {len(plan.left_out):,} left out; {trials:,} trials, {lost:,} without a model;"
        f" {format_duration(elapsed_s)}",
    ]
    lines += [
        f"  failed   {run.plan.study.key}: {_short(run.failed)}" for run in failed[:MAX_LINES]
    ]
    if len(failed) > MAX_LINES:
        lines.append(f"  … and {len(failed) - MAX_LINES:,} more: {config.out}/failures/")
    done = [run for run in runs if run.concluded is not None]
    lines += [_study_line(run) for run in done[:MAX_LINES]]
    if len(done) > MAX_LINES:
        lines.append(f"  … and {len(done) - MAX_LINES:,} more")
    lines += [f"  results  {config.out}", f"  next     mstar results --runs {config.out} --out …"]
    return lines


class SweepProgress:
    """A line every few seconds."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Count from what is done already."""
        self._schedule, self._stream, self._clock = schedule, stream or sys.stderr, clock
        self._began_s = self._shown_s = clock()
        self._left = self._cost_left()
        self._trials = self._num_trials()

    def show(self) -> None:
        """Print a line when it is time to."""
        if self._clock() - self._shown_s >= LINE_INTERVAL_S:
            self._shown_s = self._clock()
            elapsed_s = self._clock() - self._began_s
            say_progress(self.line(), self._stream, self.metrics(elapsed_s))

    def line(self) -> str:
        """How far the sweep is."""
        runs, elapsed_s = list(self._schedule.studies.values()), self._clock() - self._began_s
        done = sum(run.concluded is not None for run in runs)
        failed = sum(bool(run.failed) for run in runs)
        spent = self._left - self._cost_left()
        to_go_s = elapsed_s * self._cost_left() / spent if spent > 0 else None
        return (
            f"sweep: {done:,}/{len(runs):,} studies ({failed:,} failed) · "
            f"{self._num_trials():,} trials · {self.metrics(elapsed_s)['trials_per_min']:.0f} a "
            f"minute · {format_duration(elapsed_s)} elapsed · {format_duration(to_go_s)} to go"
        )

    def metrics(self, elapsed_s: float) -> dict[str, float]:
        """The same as numbers."""
        runs = list(self._schedule.studies.values())
        new = self._num_trials() - self._trials
        return {
            "studies": float(len(runs)),
            "studies_done": float(sum(run.concluded is not None for run in runs)),
            "studies_failed": float(sum(bool(run.failed) for run in runs)),
            "trials": float(self._num_trials()),
            "trials_per_min": 60.0 * new / elapsed_s if elapsed_s > 0 else 0.0,
        }

    def _num_trials(self) -> int:
        return sum(len(run.search.ended) for run in self._schedule.studies.values())

    def _cost_left(self) -> float:
        return sum(run.cost_left for run in self._schedule.studies.values() if not run.done)


def _study_line(run: StudyRun) -> str:
    done = run.concluded
    assert done is not None
    scores = [f"{name} {value:.3f}" for name, value in done.scores.items()]
    told = f"t{done.trial:03d} of {run.search.samples}" if done.trial >= 0 else "not trained"
    return f"  {run.plan.study.key}: {', '.join(scores) or 'no score'} ({told})"


def _short(text: str) -> str:
    first = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return first if len(first) <= 160 else first[:159] + "…"
