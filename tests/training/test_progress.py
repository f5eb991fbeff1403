"""Rates and time to go against a fake clock; what is shown, and what the tracker gets."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstar.training.progress import Counts, ProgressReporter, RecentRate, eta_s, format_duration
from support.memory_tracker import MemoryTracker


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@given(rate=st.integers(1, 5000), step_s=st.floats(0.1, 20), num_steps=st.integers(2, 50))
def test_a_steady_job_has_its_rate(rate: int, step_s: float, num_steps: int) -> None:
    recent = RecentRate(window_s=60)
    for step in range(num_steps):
        recent.add(step * step_s, round(step * step_s * rate))
    span_s = min((num_steps - 1) * step_s, 60)
    assert recent.per_s() == pytest.approx(rate, abs=1.01 / span_s)


def test_the_rate_forgets_what_is_older_than_the_window() -> None:
    recent = RecentRate(window_s=60)
    for second in range(0, 600, 10):
        recent.add(second, second * 1000)  # 1000/s
    for second in range(600, 700, 10):
        recent.add(second, 590_000 + (second - 590))  # 1/s
    assert recent.per_s() == pytest.approx(1.0)


def test_no_rate_before_two_times() -> None:
    recent = RecentRate()
    assert recent.per_s() == 0
    recent.add(1.0, 5)
    recent.add(1.0, 9)
    assert recent.per_s() == 0


@pytest.mark.parametrize(
    ("counts", "patches_per_s", "slides_per_s", "expected"),
    [
        (Counts(num_slides=4, num_patches=1000, patches_done=400), 10.0, 99.0, 60.0),
        (Counts(num_slides=10, slides_done=3, slides_failed=1), 99.0, 0.5, 12.0),
        (Counts(num_slides=10), 0.0, 0.0, None),
        (Counts(num_slides=2, slides_done=2), 0.0, 0.0, 0.0),
        (Counts(num_slides=2, num_patches=10, patches_done=10), 0.0, 0.0, 0.0),
    ],
)
def test_eta(
    counts: Counts, patches_per_s: float, slides_per_s: float, expected: float | None
) -> None:
    assert eta_s(counts, patches_per_s, slides_per_s) == expected


def test_durations() -> None:
    shown = [format_duration(s) for s in (None, 0, 59.6, 125, 3723)]
    assert shown == ["?", "0:00", "1:00", "2:05", "1:02:03"]


def test_plain_lines_come_at_intervals_and_metrics_reach_the_tracker() -> None:
    clock, stream, tracker = Clock(), io.StringIO(), MemoryTracker()
    reporter = ProgressReporter(
        "embed",
        num_slides=10,
        num_patches=60_000,
        tracker=tracker,
        stream=stream,
        line_interval_s=30,
        clock=clock,
    )
    for second in range(1, 61):
        clock.now_s += 1
        reporter.update(patches_done=second * 100, slides_done=second // 10)
    reporter.update(slides_failed=2)
    assert len(stream.getvalue().splitlines()) == 2
    assert len(tracker.metrics) == 6
    step, metrics = tracker.metrics[-1]
    assert step == 60
    assert metrics == {
        "patches_per_s": 100.0,
        "patches_done": 6000.0,
        "slides_done": 6.0,
        "slides_failed": 0.0,
    }
    reporter.close()
    assert stream.getvalue().splitlines()[-1] == (
        "embed: 8/10 slides (2 failed) · 6,000/60,000 patches · 100 patches/s"
        " · 1:00 elapsed · 9:00 to go"
    )


def test_the_bar_shows_the_same_line_and_is_taken_down_when_the_job_fails() -> None:
    stream = io.StringIO()

    def fail() -> None:
        with ProgressReporter("grid", num_slides=3, stream=stream, bar=True) as reporter:
            reporter.update(slides_done=1, slides_failed=1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    shown = stream.getvalue()
    assert "\x1b[2K" in shown  # a bar, redrawn in place
    last = shown.splitlines()[-1]
    assert "grid: 2/3 slides (1 failed)" in last


def test_closing_twice_shows_one_last_line() -> None:
    stream = io.StringIO()
    reporter = ProgressReporter("grid", num_slides=3, stream=stream)
    reporter.close()
    reporter.close()
    assert len(stream.getvalue().splitlines()) == 1
