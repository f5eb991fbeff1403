"""Drift, rank and neighbours against plain references; every failure is named once, and by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from mstar.models.ema import Ema
from mstar.pretrain.stage2_watch import (
    Probe,
    Stage2Watch,
    drift,
    effective_rank,
    encode,
    nearest,
    neighbours_kept,
    spread,
)
from support.micro_student import micro_student
from support.stage2_rows import rows_for_student


def cloud(patches: int = 60, dim: int = 12, rank: int = 12, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(patches, rank)) @ draw.normal(size=(rank, dim))).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(rank=st.integers(1, 12), seed=st.integers(0, 5), scale=st.floats(0.1, 100))
def test_effective_rank_is_bounded_by_the_rank_and_blind_to_scale(
    rank: int, seed: int, scale: float
) -> None:
    features = cloud(rank=rank, seed=seed)
    found = effective_rank(features)
    # unit vectors of a rank-r cloud lie in r dimensions; centring may take one, never adds one
    assert 1 <= found <= rank + 1e-3
    assert effective_rank(features * scale) == pytest.approx(found, rel=1e-4)


def test_effective_rank_of_known_shapes() -> None:
    corners = np.concatenate([np.eye(8), -np.eye(8)]).astype(np.float32)
    assert effective_rank(corners) == pytest.approx(8)
    assert effective_rank(np.ones((9, 4), np.float32)) == 1
    two = corners[[0, 8, 1, 9]] * np.array([[3.0], [3.0], [1.0], [1.0]], np.float32)
    assert effective_rank(two) == pytest.approx(2), "length is no direction"


def test_spread_is_one_minus_the_squared_mean_of_unit_vectors() -> None:
    features = cloud() + 2
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert spread(features) == pytest.approx(1 - (unit.mean(0) ** 2).sum(), rel=1e-4)
    assert spread(np.ones((5, 3), np.float32)) == pytest.approx(0, abs=1e-12)


def test_drift_is_the_mean_cosine_distance() -> None:
    first = cloud()
    assert drift(first, first) == pytest.approx(0, abs=1e-7)
    assert drift(first * 3, first) == pytest.approx(0, abs=1e-7)
    assert drift(-first, first) == pytest.approx(2)
    second = cloud(seed=1)
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(first, second, strict=True)
    ]
    assert drift(second, first) == pytest.approx(1 - np.mean(cosines), rel=1e-5)


def test_neighbours_are_scikit_learns() -> None:
    features, other = cloud(), cloud(seed=3)
    model = NearestNeighbors(n_neighbors=6, metric="cosine").fit(features)
    expected = model.kneighbors(features, return_distance=False)[:, 1:]
    assert np.array_equal(nearest(features, 5), expected)
    assert neighbours_kept(features, features, 5) == 1
    shared = [set(a) & set(b) for a, b in zip(nearest(features, 5), nearest(other, 5), strict=True)]
    assert neighbours_kept(features, other, 5) == pytest.approx(
        np.mean([len(s) / 5 for s in shared])
    )
    assert nearest(features[:3], 10).shape == (3, 2)


def test_a_probe_is_at_rest_until_the_student_moves() -> None:
    student = micro_student(drop_path=0.5)
    images = rows_for_student(10).images
    probe = Probe.take(student, images, micro_batch=4, precision="fp32")
    ema = Ema(student)
    found = probe.measure(student, ema, micro_batch=3, precision="fp32")
    assert found["watch.drift"] == pytest.approx(0, abs=1e-6)
    assert found["watch.effective_rank_share"] == pytest.approx(1, rel=1e-3)
    assert found["watch.spread_share"] == pytest.approx(1, rel=1e-3)
    assert (found["watch.neighbours_kept"], found["watch.ema_distance"]) == (1, 0)
    assert student.training, "its mode is left as it was"
    with torch.no_grad():
        for p in student.encoder.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    moved = probe.measure(student, ema, micro_batch=4, precision="fp32")
    assert moved["watch.drift"] > 1e-3
    assert moved["watch.ema_distance"] > 1e-3
    assert all(np.isfinite(value) for value in moved.values())
    now = encode(student, images, micro_batch=10, precision="fp32")
    assert moved["watch.drift"] == pytest.approx(drift(now, probe.initial), rel=1e-3)


HEALTHY: dict[str, float] = {
    "loss": 0.8,
    "loss.a": 0.5,
    "grad_norm": 1.0,
    "watch.effective_rank_share": 0.9,
    "watch.spread_share": 0.95,
    "watch.drift": 0.1,
}


def falling(step: int, **changes: float) -> Mapping[str, float]:
    return {**HEALTHY, "loss.a": 1 / (1 + step / 100), **changes}


def said(watch: Stage2Watch, steps: range, **changes: float) -> list[str]:
    return [text for step in steps for text in watch.look(step, falling(step, **changes))]


def test_a_healthy_run_says_nothing() -> None:
    assert said(Stage2Watch(), range(1, 1500)) == []


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("collapse", {"watch.effective_rank_share": 0.3}),
        ("collapse", {"watch.spread_share": 0.01}),
        ("forgetting", {"watch.drift": 0.7}),
        ("explosion", {"grad_norm": 50.0}),
    ],
)
def test_a_failure_is_named_once_until_it_has_passed(name: str, changes: Any) -> None:
    watch = Stage2Watch()
    assert said(watch, range(1, 300)) == []
    first = said(watch, range(300, 320), **changes)
    assert len(first) == 1
    assert first[0].startswith(f"step 300: {name}")
    assert said(watch, range(320, 340)) == []
    again = said(watch, range(340, 345), **changes)
    assert len(again) == 1
    assert again[0].startswith(f"step 340: {name}")


def test_a_loss_that_does_not_fall_is_named_after_a_while() -> None:
    watch = Stage2Watch()
    flat = [text for step in range(1, 700) for text in watch.look(step, HEALTHY)]
    assert len(flat) == 1
    assert "step 500: no learning: loss A is 0.5000, at first 0.5000" in flat[0]


def test_what_was_seen_on_the_probe_holds_until_the_next_look() -> None:
    watch = Stage2Watch()
    step_only = {"loss.a": 0.1, "grad_norm": 1.0}
    assert len(watch.look(10, {**HEALTHY, "watch.drift": 0.9})) == 1
    assert watch.look(11, step_only) == []
    assert watch.look(20, {**HEALTHY, "watch.drift": 0.9}) == []
