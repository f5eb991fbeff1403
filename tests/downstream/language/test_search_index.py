"""The index finds what comparing everything finds; the approximate one nearly all of it."""

from __future__ import annotations

import numpy as np
import pytest

from mstar.downstream.language import search_index
from mstar.downstream.language.search_index import (
    VectorIndex,
    build_index,
    cells_from_bytes,
    cells_to_bytes,
    exact_search,
    recall_of,
)
from mstar.errors import ConfigError


def unit(rng: np.random.Generator, rows: int, dim: int = 16) -> np.ndarray:
    vectors = rng.standard_normal((rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("block", [7, 1000])
def test_exact_search_is_a_sort_of_all_cosines(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """However many blocks the vectors are compared in; of equal ones the first comes first."""
    monkeypatch.setattr(search_index, "BLOCK_ROWS", block)
    rng = np.random.default_rng(0)
    vectors, questions = unit(rng, 60), unit(rng, 5)
    vectors[30] = vectors[10]
    found = exact_search(vectors, questions, 9)
    cosines = questions @ vectors.T
    expected = np.argsort(-cosines, axis=1, kind="stable")[:, :9]
    np.testing.assert_array_equal(found.places, expected)
    np.testing.assert_allclose(
        found.scores, np.take_along_axis(cosines, expected, axis=1), rtol=1e-5
    )


def test_more_is_asked_for_than_there_is() -> None:
    rng = np.random.default_rng(1)
    found = VectorIndex(unit(rng, 3)).search(unit(rng, 2), 10)
    assert found.places.shape == (2, 3)


def test_cells_find_nearly_all_and_come_back_from_bytes() -> None:
    rng = np.random.default_rng(2)
    vectors = unit(rng, 3000)
    questions = vectors[:50] + 0.05 * unit(rng, 50)
    index = build_index(vectors, "approximate")
    assert not index.is_exact
    exact, near = exact_search(vectors, questions, 10), index.search(questions, 10)
    assert recall_of(near, exact) > 0.8
    again = VectorIndex(vectors, cells_from_bytes(cells_to_bytes(index.cells)))
    np.testing.assert_array_equal(again.search(questions, 10).places, near.places)


def test_without_faiss_auto_is_exact_and_approximate_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> None:
        raise ConfigError("pip install 'mstar-platform[faiss]'")

    monkeypatch.setattr(search_index, "_import_faiss", missing)
    monkeypatch.setattr(search_index, "EXACT_UP_TO", 10)
    vectors = unit(np.random.default_rng(3), 20)
    assert build_index(vectors).is_exact
    with pytest.raises(ConfigError, match="faiss"):
        build_index(vectors, "approximate")
