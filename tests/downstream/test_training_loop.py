"""The one loop: equal to a plain one, the same in a population as alone, blind to the test part."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mstar.downstream.bags import PackedBags, load_bags
from mstar.downstream.config import (
    HONEST,
    PAPER_COMPAT,
    TrialConfig,
    find_protocol,
    paper_trial,
    training_kind,
)
from mstar.downstream.fold_views import view_fold
from mstar.downstream.population import HALVED, EpochScores, train_population
from mstar.downstream.trainer import FitResult
from mstar.errors import ConfigError, TrainingError
from mstar.losses.survival import bin_edges
from support.plain_loop import plain_loop
from support.planted_tasks import planted_task

SMALL = {"hidden": 8, "attention_dim": 4}


def small(**fields: Any) -> TrialConfig:
    """A quick ABMIL."""
    return TrialConfig(**({"head_options": SMALL, "epochs": 2, "lr": 1e-2} | fields))


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, PackedBags, Any]:
    return planted_task(tmp_path_factory.mktemp("classes"), cases=30, folds=2)


@pytest.fixture(scope="module")
def survival(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, PackedBags, Any]:
    return planted_task(tmp_path_factory.mktemp("survival"), "survival", cases=40)


def train(task: tuple[Any, PackedBags, Any], *configs: TrialConfig, **more: Any) -> list[FitResult]:
    return train_population(task[0], task[1], configs, **more)


def assert_same(left: FitResult, right: FitResult) -> None:
    assert left.history == right.history
    assert left.best_epoch == right.best_epoch
    assert left.best_state.keys() == right.best_state.keys()
    for name, tensor in left.best_state.items():
        assert torch.equal(tensor, right.best_state[name]), name
    np.testing.assert_array_equal(left.select_scores, right.select_scores)


def test_the_loop_equals_a_plain_one(classes) -> None:
    config = small(head_options=SMALL | {"dropout": 0.0}, epochs=4)
    (fit,) = train(classes, config)
    reference = plain_loop(classes, config)
    for row, expected in zip(fit.history, reference, strict=True):
        assert row.train_loss == pytest.approx(expected[0], rel=1e-4)
    best = reference[fit.best_epoch][1:]
    np.testing.assert_allclose(fit.select_scores[:, 1], best, atol=1e-4)
    assert fit.best_score == max(row.val_score for row in fit.history)


def test_a_population_gives_what_each_gives_alone(classes) -> None:
    configs = [
        small(),
        small(lr=3e-3, optimizer="adamw", epochs=3),
        small(batch_bags=4),
        small(head="linear", head_options={}),
        small(head="prototype", head_options={}),
        small(max_patches=5),
        small(head="clam_sb", accumulate=2),
    ]
    together = train(classes, *configs)
    for config, fit in zip(configs, together, strict=True):
        assert_same(fit, train(classes, config)[0])


def test_equal_seeds_give_equal_numbers_and_others_do_not(classes) -> None:
    torch.manual_seed(5)
    (first,) = train(classes, small())
    torch.manual_seed(6)  # the caller's generators are neither used nor moved
    before = torch.get_rng_state()
    (second,) = train(classes, small())
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(first, second)
    (other,) = train(classes, small(), seed=2)
    assert other.history != first.history
    (fold,) = train(classes, small(), fold=1)
    assert fold.fold == "1"
    assert fold.history != first.history


def test_the_test_part_is_not_looked_at(classes, tmp_path: Path) -> None:
    data, bags, store = classes
    (honest,) = train(classes, small())
    test = set(data.folds[0].test.tolist())
    flipped = tuple(
        dataclasses.replace(sample, label=1 - sample.label) if at in test else sample
        for at, sample in enumerate(data.samples)
    )
    garbage = np.array(bags.x)
    for at in test:
        garbage[bags.offsets[at] : bags.offsets[at + 1]] = 7.0
    changed = dataclasses.replace(data, samples=flipped)
    other = load_bags(data.samples, store, cache_root=str(tmp_path))
    other.x[:] = garbage  # this process's copy of the pages alone
    assert_same(honest, train((changed, other, store), small())[0])
    (compat,) = train(classes, small(), protocol=PAPER_COMPAT)
    assert len(compat.select_scores) == len(honest.select_scores) + len(test)


def test_survival_bins_are_cut_from_training_times_alone(survival) -> None:
    data = survival[0]
    view = view_fold(data, 0, HONEST)
    cut = data.folds[0]
    own = np.asarray([data.samples[at].time_months for at in cut.train])
    np.testing.assert_array_equal(view.bin_times, own)
    every = view_fold(data, 0, PAPER_COMPAT)
    assert len(every.bin_times) == len(data.samples)
    edges = [bin_edges(v.bin_times, v.bin_events).tolist() for v in (view, every)]
    assert edges[0] != edges[1]


@pytest.mark.parametrize("head", ["abmil", "clam_mb"])
def test_accumulated_single_bags_equal_a_packed_batch(classes, head: str) -> None:
    options = {"head": head, "head_options": SMALL | {"dropout": 0.0}}
    single, packed = train(classes, small(accumulate=3, **options), small(batch_bags=3, **options))
    for left, right in zip(single.history, packed.history, strict=True):
        assert left.train_loss == pytest.approx(right.train_loss, rel=1e-3)
        assert left.val_loss == pytest.approx(right.val_loss, rel=1e-3)


def test_the_cosine_follows_the_epochs(classes) -> None:
    for epochs in (2, 5):
        (fit,) = train(classes, small(epochs=epochs, lr=1.0e-3))
        expected = [0.5e-3 * (1 + np.cos(np.pi * at / epochs)) for at in range(epochs)]
        np.testing.assert_allclose([row.lr for row in fit.history], expected)
    (fit,) = train(classes, small(schedule="constant"))
    assert {row.lr for row in fit.history} == {1e-2}


def test_ties_go_to_the_earliest_epoch_and_patience_ends(classes) -> None:
    (fit,) = train(classes, small(lr=1e-12, epochs=30, patience=3))  # nothing moves
    assert fit.best_epoch == 0
    assert len(fit.history) == 4
    assert "for 3 epochs" in fit.stopped


def test_a_search_ends_what_it_does_not_want(classes) -> None:
    seen: list[EpochScores] = []

    def keep_the_second(scores: EpochScores) -> Sequence[bool]:
        seen.append(scores)
        return [False, True] if scores.epoch == 1 else [True, True]

    ended, full = train(classes, small(epochs=4), small(epochs=4), on_epoch=keep_the_second)
    assert (len(ended.history), ended.stopped) == (2, HALVED)
    assert (len(full.history), full.stopped) == (4, "")
    assert [scores.epoch for scores in seen] == [0, 1, 2, 3]
    assert seen[0].val_scores == tuple(fit.history[0].val_score for fit in (ended, full))
    assert np.isnan(seen[2].val_scores[0])
    assert seen[2].alive == (False, True)


def test_one_that_diverges_fails_alone(classes) -> None:
    wild, good = train(classes, small(lr=1e30, optimizer="sgd"), small())
    assert "not finite" in wild.failed
    assert not wild.best_state
    assert not good.failed
    assert_same(good, train(classes, small())[0])


def test_class_weights_change_the_loss_of_uneven_classes(tmp_path: Path) -> None:
    task = planted_task(tmp_path, cases=30)
    labels = [0 if at % 6 else 1 for at in range(30)]
    samples = tuple(
        dataclasses.replace(sample, label=label)
        for sample, label in zip(task[0].samples, labels, strict=True)
    )
    uneven = (dataclasses.replace(task[0], samples=samples), *task[1:])
    plain, balanced = train(uneven, small(), small(class_weights="balanced"))
    assert balanced.history[-1].train_loss > plain.history[-1].train_loss


def test_bfloat16_is_near_float32(classes) -> None:
    wide, narrow = train(classes, small(), small(precision="bfloat16"))
    assert narrow.history != wide.history
    assert narrow.history[-1].train_loss == pytest.approx(wide.history[-1].train_loss, abs=0.1)
    assert all(tensor.dtype == torch.float32 for tensor in narrow.best_state.values())


@pytest.mark.parametrize(
    ("config", "outputs"),
    [
        (small(), 4),
        (small(bins=3, alpha=0.5), 3),
        (small(survival_loss="cox", batch_bags=8), 1),
        (dataclasses.replace(paper_trial("cox_linear"), epochs=5), 1),
    ],
)
def test_survival_losses_learn(survival, config: TrialConfig, outputs: int) -> None:
    (fit,) = train(survival, dataclasses.replace(config, epochs=6))
    assert fit.num_outputs == outputs
    assert fit.select_scores.shape == (8, 1)
    assert fit.history[-1].train_loss < fit.history[0].train_loss


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("classification", TrialConfig(head="cox_linear"), "classification task"),
        ("survival", TrialConfig(head="knn"), "survival task"),
        ("survival", TrialConfig(head="cox_linear"), "survival_loss=cox"),
        ("survival", TrialConfig(survival_loss="cox"), "got 1"),
    ],
)
def test_what_does_not_go_together_is_refused(classes, survival, kind, config, words) -> None:
    with pytest.raises(ConfigError, match=words):
        train(classes if kind == "classification" else survival, config)


def test_validation_of_one_class_is_refused(classes) -> None:
    data, bags, store = classes
    val = set(data.folds[0].val.tolist())
    samples = tuple(
        dataclasses.replace(sample, label=0) if at in val else sample
        for at, sample in enumerate(data.samples)
    )
    with pytest.raises(TrainingError, match="macro_auc of val is undefined"):
        train((dataclasses.replace(data, samples=samples), bags, store), small())


def test_configurations_protocols_and_kinds_are_checked() -> None:
    for fields in ({"epochs": 0}, {"lr": 0.0}, {"alpha": 2.0}, {"batch_bags": -1}, {"bins": 1}):
        with pytest.raises(ConfigError):
            TrialConfig(**fields)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="honest, paper-compat"):
        find_protocol("dishonest")
    with pytest.raises(ConfigError, match="retrieval"):
        training_kind("retrieval")
    settled = PAPER_COMPAT.settled(TrialConfig(), "classification")
    assert (settled.epochs, settled.patience) == (50, 10)
    assert PAPER_COMPAT.settled(TrialConfig(), "survival") == TrialConfig()
    assert HONEST.settled(TrialConfig(), "classification") == TrialConfig()
