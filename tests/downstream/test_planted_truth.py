"""Heads find what was planted, and nothing where labels were shuffled."""

from __future__ import annotations

from pathlib import Path

import pytest

from mstar.downstream.config import Study, TrialConfig
from mstar.downstream.predictions import read_predictions
from mstar.downstream.statistics.bootstrap import Estimate, fold_estimate
from mstar.downstream.study import run_study
from support.planted_tasks import planted_task

FOUND, CHANCE = 0.85, (0.25, 0.75)


def estimate(folder: Path, kind: str, head: str, *, shuffled: bool = False) -> Estimate:
    """The test metric of a study, with its interval over patients."""
    data, bags, _ = planted_task(
        folder,
        kind,
        cases=160,
        folds=2 if kind == "survival" else 1,
        shuffled=shuffled,
        patches=(8, 20),
        strength=2.5,
        most_slides=1,
    )
    options = {} if head == "linear" else {"hidden": 16, "attention_dim": 8}
    rate = 5e-2 if head == "linear" else 1e-2
    config = TrialConfig(head=head, head_options=options, lr=rate, epochs=10, batch_bags=8)
    study = Study(task_id="planted", encoder="toy", head=head)
    result = run_study(study, data, bags, [config], out=str(folder / "R"))
    found = read_predictions(result.predictions["test"])
    metric = "c_index" if kind == "survival" else "macro_auc"
    return fold_estimate(metric, found.evaluated(), resamples=200)


@pytest.mark.parametrize("head", ["abmil", "linear"])
def test_the_planted_class_is_found(tmp_path: Path, head: str) -> None:
    found = estimate(tmp_path, "classification", head)
    assert found.low > FOUND
    assert found.patients == 32


def test_shuffled_labels_give_chance(tmp_path: Path) -> None:
    found = estimate(tmp_path, "classification", "abmil", shuffled=True)
    assert CHANCE[0] < found.value < CHANCE[1]
    assert found.low < 0.5 < found.high


def test_the_planted_hazard_is_found_and_a_shuffled_one_is_not(tmp_path: Path) -> None:
    found = estimate(tmp_path / "true", "survival", "abmil")
    assert found.low > 0.55
    chance = estimate(tmp_path / "shuffled", "survival", "abmil", shuffled=True)
    assert chance.low < 0.5 < chance.high
