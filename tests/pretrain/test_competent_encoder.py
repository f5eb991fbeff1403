"""The encoder that every arm of the ablation starts from."""

from pathlib import Path

import numpy as np
import pytest

from mstar.models.patch_encoders import find_encoder, load_model, prepare_weights
from mstar.pretrain.competent_encoder import (
    NuisanceTraining,
    components_of,
    texture_of,
    train_encoder,
    turned,
)


def test_the_initial_encoder_learns_nuisances_and_loads_strictly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = {"site": rng.integers(0, 2, 80), "grade": rng.integers(0, 3, 80)}
    patches = rng.integers(90, 140, (80, 64, 64, 3)).astype(np.uint8)
    patches[labels["site"] == 1, :, :, 0] += 60
    path = tmp_path / "encoder.safetensors"
    config = NuisanceTraining(steps=30, batch=16, lr=1e-3, class_weight=1.0)
    found = train_encoder(path, patches, labels, config, say=lambda text: None)
    assert found["site"] > 0.8
    load_model(find_encoder("vit_micro"), prepare_weights("vit_micro", str(path)))


def test_the_initial_encoder_is_never_told_what_is_planted(tmp_path: Path) -> None:
    labels = {"mutation": np.zeros(4, np.int64)}
    with pytest.raises(AssertionError, match="planted"):
        train_encoder(
            tmp_path / "x.safetensors",
            np.zeros((4, 64, 64, 3), np.uint8),
            labels,
            NuisanceTraining(steps=1),
        )


def test_components_are_uncorrelated_and_of_unit_variance() -> None:
    mixed = np.random.default_rng(0).normal(size=(3000, 8)) @ np.diag([9, 5, 3, 2, 1, 1, 0.5, 0.1])
    found = components_of((mixed @ np.ones((8, 8)) + mixed).astype(np.float32), 4)
    assert found.shape == (3000, 4)
    np.testing.assert_allclose(np.cov(found.T), np.eye(4), atol=0.06)


def test_measures_that_do_not_vary_give_no_component() -> None:
    one = np.random.default_rng(1).normal(size=(50, 1))
    measures = np.concatenate([one, 2 * one, np.ones((50, 3))], 1).astype(np.float32)
    assert components_of(measures, 4).shape == (50, 1)


def test_texture_is_the_same_however_a_patch_is_turned() -> None:
    patches = np.random.default_rng(2).integers(0, 255, (3, 64, 64, 3)).astype(np.uint8)
    turns = np.ascontiguousarray(np.rot90(patches, axes=(1, 2)))
    np.testing.assert_allclose(texture_of(turns), texture_of(patches), rtol=0, atol=0.02)


def test_turning_keeps_the_pixels() -> None:
    rng = np.random.default_rng(1)
    patches = rng.integers(0, 255, (12, 8, 8, 3)).astype(np.uint8)
    after = turned(rng, patches)
    assert (after != patches).any()
    for one, other in zip(patches, after, strict=True):
        assert sorted(map(bytes, one.reshape(-1, 3))) == sorted(map(bytes, other.reshape(-1, 3)))
