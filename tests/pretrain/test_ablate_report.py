"""What the ablation says of its scores: intervals, verdict, table, figure."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mstar.pretrain.ablate_arms import ARMS
from mstar.pretrain.ablate_report import (
    Score,
    draw,
    initial_auc_fits,
    interval,
    is_judged,
    paired,
    summary,
    table,
    verdict,
)


def scores_with(gain: float, seeds: int) -> list[Score]:
    """The method is `gain` above every control, give or take."""
    rng = np.random.default_rng(2)
    return [
        Score(
            seed=seed,
            arm=arm,
            probe=probe,
            auc=0.7 + gain * (arm == "a") + float(rng.normal(0, 0.01)),
        )
        for seed in range(seeds)
        for arm in ARMS
        for probe in ("linear", "abmil")
    ]


def test_the_interval_is_students() -> None:
    values = np.random.default_rng(0).normal(0.1, 0.05, 7)
    found = interval(values)
    low, high = stats.t.interval(0.95, 6, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert math.isinf(interval(values[:1]).low)


def test_the_verdict_needs_a_gain_and_five_cohorts() -> None:
    assert all(verdict(scores_with(0.1, 5)).values())
    assert not any(verdict(scores_with(0.1, 4)).values())
    assert not any(verdict(scores_with(-0.05, 5)).values())
    assert len(verdict(scores_with(0.1, 5))) == 6


@pytest.mark.parametrize(
    ("gain", "seeds", "said"),
    [(0.1, 5, "beats"), (-0.05, 5, "does NOT beat"), (0.1, 4, "not judged")],
)
def test_the_summary_says_what_holds(gain: float, seeds: int, said: str) -> None:
    scores = scores_with(gain, seeds)
    assert is_judged(scores) == (seeds >= 5)
    assert any(said in line for line in summary(scores, bounds=(0.6, 0.8)))


def test_differences_are_paired_by_cohort() -> None:
    scores = [
        Score(seed=seed, arm=arm, probe="linear", auc=value)
        for seed, arm, value in ((1, "a", 0.8), (2, "a", 0.9), (3, "a", 0.7), (2, "c", 0.6))
    ]
    assert paired(scores, "c", "linear").tolist() == pytest.approx([0.3])


def test_table_summary_and_figure_name_every_arm(tmp_path: Path) -> None:
    scores = scores_with(0.1, 5)
    text = table(scores)
    assert len(text.splitlines()) == 2 + len(ARMS)
    assert all(f"({letter})" in text for letter in ARMS)
    lines = summary(scores, bounds=(0.6, 0.8))
    assert sum("(a) beats" in line for line in lines) == 6
    assert "within" in lines[0]
    assert not initial_auc_fits(scores, (0.75, 0.8))
    draw(scores, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_one_cohort_alone_can_be_shown(tmp_path: Path) -> None:
    scores = [score for score in scores_with(0.1, 1) if score.arm in "ace"]
    assert "inf" in table(scores)
    draw(scores, tmp_path / "figure.png")
