"""Configurations that take one step, as on a GPU: each gives what it gives when they are looped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mstar.downstream import population
from mstar.downstream.config import HONEST, TrialConfig
from mstar.downstream.fold_views import view_fold
from mstar.downstream.fused import FusedFits, fuse
from mstar.downstream.population import train_population
from mstar.downstream.stream import BagSource
from mstar.downstream.trainer import Fit, FitResult
from mstar.models.heads.contract import plain_operations
from support.planted_tasks import planted_task

SMALL = {"hidden": 16, "attention_dim": 8}
RATES = ({"lr": 1e-3}, {"lr": 1e-2, "optimizer": "adamw"}, {"weight_decay": 0.1, "accumulate": 2})


@pytest.fixture(scope="module", params=["classification", "survival"])
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Small tasks of both kinds."""
    return planted_task(tmp_path_factory.mktemp("fused"), request.param, cases=40)[:2]


def configs(head: str, **fields: Any) -> list[TrialConfig]:
    """Three that differ in what may differ."""
    made = []
    for place, own in enumerate(RATES):
        options = {"dropout": 0.1 * place} | ({} if "linear" in head else SMALL)
        given: dict[str, Any] = {"epochs": 3, "batch_bags": 3} | own | fields
        made.append(TrialConfig(head=head, head_options=options, **given))
    return made


def assert_near(ours: FitResult, theirs: FitResult) -> None:
    """Equal but for rounding."""
    assert len(ours.history) == len(theirs.history)
    for one, other in zip(ours.history, theirs.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-5)
        assert one.val_loss == pytest.approx(other.val_loss, abs=1e-5)
    np.testing.assert_allclose(ours.select_scores, theirs.select_scores, atol=1e-4)
    for name, weight in theirs.best_state.items():
        if name == "attention.score.bias":
            continue  # it cancels in the softmax: its gradient is rounding alone
        torch.testing.assert_close(ours.best_state[name], weight, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("head", ["abmil", "abmil_gated", "linear"])
def test_fused_is_looped(task: Any, head: str) -> None:
    """Losses, scores and weights, with rates of dropout and optimisers of their own."""
    data, bags = task
    some = configs(head, class_weights="balanced")
    together = train_population(data, bags, some, fused=True)
    with plain_operations():
        looped = train_population(data, bags, some, fused=False)
    assert len({fit.history[-1].train_loss for fit in looped}) == len(some)
    for ours, theirs in zip(together, looped, strict=True):
        assert_near(ours, theirs)


def test_cox(tmp_path: Path) -> None:
    """The whole training part in a step."""
    data, bags, _ = planted_task(tmp_path, "survival", cases=40)
    some = configs("cox_linear", survival_loss="cox", batch_bags=0)
    together = train_population(data, bags, some, fused=True)
    with plain_operations():
        looped = train_population(data, bags, some, fused=False)
    for ours, theirs in zip(together, looped, strict=True):
        assert_near(ours, theirs)


def test_who_ends_early_leaves_the_others_as_they_are(task: Any) -> None:
    """One diverges, one stops; the third goes on."""
    data, bags = task
    some = configs("abmil", epochs=4, optimizer="sgd")
    some[0] = TrialConfig(**(vars_of(some[0]) | {"lr": 1e30}))
    alone = train_population(data, bags, some[1:], fused=True)
    found = train_population(data, bags, some, fused=True)
    assert "not finite" in found[0].failed
    for ours, theirs in zip(found[1:], alone, strict=True):
        assert_near(ours, theirs)


def vars_of(config: TrialConfig) -> dict[str, Any]:
    """Its fields."""
    return {name: getattr(config, name) for name in TrialConfig.__slots__}


def test_only_equal_shapes_are_joined(task: Any) -> None:
    """Another width, precision or head steps by itself; so does a head that cannot be joined."""
    data, bags = task
    view, source = view_fold(data, 0, HONEST), BagSource(bags)
    wide = {**SMALL, "hidden": 32}
    given = [
        *configs("abmil"),
        TrialConfig(head_options=wide),
        TrialConfig(head_options=SMALL, precision="bfloat16"),
        TrialConfig(head="linear"),
        TrialConfig(head="dsmil", head_options={"hidden": 16}),
        TrialConfig(head="dsmil", head_options={"hidden": 16}, lr=1.0),
    ]
    steps = fuse([Fit(view, source, config, 1) for config in given])
    assert [type(step) for step in steps] == [FusedFits, Fit, Fit, Fit, Fit, Fit]


def test_a_gpu_fuses_and_a_cpu_loops(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the device, unless told."""
    data, bags = task
    asked: list[int] = []
    monkeypatch.setattr(population, "fuse", lambda fits: asked.append(len(fits)) or fuse(fits))
    few = configs("abmil", epochs=1)
    train_population(data, bags, few)
    assert not asked
    train_population(data, bags, few, fused=True)
    assert asked == [3]
