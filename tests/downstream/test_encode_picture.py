"""`mstar encode` draws its vectors: principal components, and UMAP where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA

from mstar.downstream import encode_job, encode_picture
from mstar.downstream.encode_job import run
from mstar.downstream.encode_picture import principal_components
from mstar.errors import ConfigError
from mstar.training.exit_codes import ExitCode
from mstar.training.tracker import NullTracker
from support.encode_runs import config_of, rows
from support.h5ad import read_h5ad
from support.language_world import World


@pytest.fixture
def world(small_world: World, tmp_path: Path) -> World:
    return small_world.copied(tmp_path / "w")


def test_the_picture_and_the_counts_reach_the_tracker(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: dict[str, Any] = {}

    class Recorder(NullTracker):
        def log_artifact(self, local_path: Path, folder: str = "") -> None:
            logged[local_path.name] = local_path.read_bytes()[:4]

        def log_metrics(self, metrics: Any, step: int) -> None:
            logged.update(metrics)

    monkeypatch.setattr("mstar.downstream.encode_job.start_tracking", lambda *_, **__: Recorder())
    run(config_of(world, tracking=True, picture=True))
    assert logged["slide_vectors.png"] == b"\x89PNG"
    assert logged["slide_vectors.vectors"] == len(rows(world, "slide_vectors"))


def test_umap_is_drawn_where_it_is_installed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package itself is replaced: what it is given, and what becomes of its answer."""
    given: dict[str, Any] = {}

    class Reducer:
        def __init__(self, **fields: Any) -> None:
            given.update(fields)

        def fit_transform(self, vectors: np.ndarray) -> np.ndarray:
            return vectors[:, 1:3].astype(np.float64)

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Reducer))
    for module in (encode_picture, encode_job):
        monkeypatch.setattr(module, "umap_version", lambda: "0.0")
    logged: list[str] = []

    class Recorder(NullTracker):
        def log_artifact(self, local_path: Path, folder: str = "") -> None:
            logged.append(local_path.name)

    monkeypatch.setattr("mstar.downstream.encode_job.start_tracking", lambda *_, **__: Recorder())
    run(config_of(world, picture=True, seed=5, umap="on", tracking=True))
    assert logged == ["slide_vectors.png", "slide_vectors_umap.png"]
    assert (given["metric"], given["random_state"], given["n_jobs"]) == ("cosine", 5, 1)
    expected = rows(world, "slide_vectors")
    found = read_h5ad(world.root / "V" / "slide_vectors.h5ad")
    drawn = np.stack([expected[name] for name in found.obs.index])[:, 1:3]
    np.testing.assert_array_equal(found.obsm["X_umap"], drawn)
    assert (world.root / "V" / "slide_vectors_umap.png").stat().st_size > 1000
    run(config_of(world, picture=True, seed=5, umap="off"))
    assert "X_umap" not in read_h5ad(world.root / "V" / "slide_vectors.h5ad").obsm


def test_umap_that_is_not_installed_is_said(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (encode_picture, encode_job):
        monkeypatch.setattr(module, "umap_version", lambda: "")
    with pytest.raises(ConfigError, match=r"\[pictures\]"):
        run(config_of(world, picture=True, umap="on"))
    assert run(config_of(world, picture=True, umap="auto")) == ExitCode.COMPLETE
    assert "extra `pictures`" in capsys.readouterr().out
    assert not (world.root / "V" / "slide_vectors_umap.png").exists()


@pytest.mark.slow
def test_umap_keeps_groups_together() -> None:
    pytest.importorskip("umap", reason="umap-learn, of the extra `pictures`, is not installed")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 16)) * 4
    of = np.repeat(np.arange(3), 30)
    vectors = (centres[of] + rng.normal(size=(90, 16)) * 0.5).astype(np.float32)
    found = encode_picture.umap_coordinates(vectors, 0)
    np.testing.assert_array_equal(found, encode_picture.umap_coordinates(vectors, 0))
    apart = np.linalg.norm(found[:, None] - found[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (of[apart.argmin(axis=1)] == of).mean() > 0.95


def test_principal_components_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(80, 6)) * [5, 3, 1, 1, 1, 1]).astype(np.float32)
    found, shares = principal_components(vectors)
    reference = PCA(n_components=2).fit(vectors)
    expected = reference.transform(vectors)
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(shares, reference.explained_variance_ratio_, rtol=1e-4)
