"""Progress lines of a training run, on a clock of the test's own."""

from __future__ import annotations

import pytest

from mstar.training.step_progress import StepProgress


class Clock:
    """A clock that is moved by hand."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def progress(clock: Clock, said: list[str], **fields: int) -> StepProgress:
    return StepProgress("stage1", say=said.append, line_interval_s=10.0, clock=clock, **fields)


def test_a_line_says_steps_loss_rate_and_time(clock: Clock) -> None:
    shown = progress(clock, [], num_steps=1000)
    for step in range(1, 11):
        clock.now_s += 2
        shown.update(step, num_cases=128, loss=5.0 / step)
    assert shown.line() == (
        "stage1: step 10/1,000 · loss 0.5000 · 64.0 cases/s · 0:20 elapsed · 33:00 to go"
    )


def test_lines_come_no_more_often_than_asked(clock: Clock) -> None:
    said: list[str] = []
    shown = progress(clock, said, num_steps=100)
    for step in range(1, 101):
        clock.now_s += 0.5
        shown.update(step, num_cases=1, loss=1.0)
    assert [line.split(" ·")[0] for line in said] == [
        f"stage1: step {step}/100" for step in (20, 40, 60, 80, 100)
    ]


def test_the_rate_follows_the_last_minute(clock: Clock) -> None:
    """Validations and slow starts must not spoil the time to go for the rest of the run."""
    shown = progress(clock, [], num_steps=10_000)
    clock.now_s += 1000
    shown.update(1, num_cases=8, loss=1.0)
    for step in range(2, 200):
        clock.now_s += 1
        shown.update(step, num_cases=8, loss=1.0)
    assert "8.0 cases/s" in shown.line()


def test_a_resumed_run_counts_from_where_it_was(clock: Clock) -> None:
    shown = progress(clock, [], num_steps=100, steps_done=90)
    assert shown.line().endswith("0.0 cases/s · 0:00 elapsed · ? to go")
    clock.now_s += 5
    shown.update(95, num_cases=10, loss=1.0)
    assert shown.line().endswith("· 10.0 cases/s · 0:05 elapsed · 0:05 to go")
    shown.update(100, num_cases=10, loss=1.0)
    assert shown.line().endswith("· 0:00 to go")


def test_steps_between_two_lines_are_counted(clock: Clock) -> None:
    """A run that logs every twenty steps is twenty times as fast as a step's rows say."""
    shown = progress(clock, [], num_steps=100)
    for step in (20, 40):
        clock.now_s += 10
        shown.update(step, num_cases=64, loss=1.0)
    assert "128.0 cases/s" in shown.line()
