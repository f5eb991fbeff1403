"""Recall and its yardsticks against counting, simulation and brute force."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.losses.recall import (
    Standing,
    alignment,
    any_order,
    normalised,
    retrieval,
    similarity,
    standing,
    uniformity,
)


def by_sorting(scores: np.ndarray, match: np.ndarray, gallery: np.ndarray, k: int) -> list[float]:
    """Share of many random orders of equal scores in which a match is among the first k."""
    rng = np.random.default_rng(0)
    found = []
    for row, matches, inside in zip(scores, match, gallery, strict=True):
        entries = np.flatnonzero(inside)
        hits = []
        for _ in range(400):
            drawn = rng.permutation(entries)
            drawn = drawn[np.argsort(-row[drawn], kind="stable")]
            # a match never stands in another match's way
            firsts = [place for place, entry in enumerate(drawn) if matches[entry]][:1]
            hits.append(bool(firsts) and firsts[0] < k)
        found.append(float(np.mean(hits)))
    return found


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.integers(1, 30), k=st.integers(1, 9))
def test_what_is_found_equals_sorting_with_ties_in_random_order(
    seed: int, levels: int, k: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (9, 9)).astype(float)
    match = np.eye(9, dtype=bool) | (rng.random((9, 9)) < 0.1)
    gallery = match | (rng.random((9, 9)) < 0.7)
    found = standing(scores, match, gallery).found(k)
    np.testing.assert_allclose(found, by_sorting(scores, match, gallery, k), atol=0.12)


def test_without_ties_it_is_the_plain_recall() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((40, 40))
    found = retrieval(scores, cancer=np.arange(40) % 3, group=np.arange(40), ks=(1, 5, 10))
    ranks = 1 + (scores > np.diag(scores)[:, None]).sum(1)
    for recall in found.overall:
        assert recall.value == pytest.approx((ranks <= recall.k).mean())
        assert recall.chance == pytest.approx(recall.k / 40)
    assert found.median_rank == np.median(ranks)
    types = np.arange(40) % 3
    inside = [
        1 + sum(scores[i, j] > scores[i, i] for j in range(40) if types[j] == types[i])
        for i in range(40)
    ]
    for recall in found.within:
        assert recall.value == pytest.approx(np.mean(np.array(inside) <= recall.k))
        sizes = np.bincount(types)[types]
        assert recall.chance == pytest.approx((recall.k / sizes).mean())
        assert recall.ceiling == recall.chance


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_equal_vectors_have_the_recall_of_chance(seed: int) -> None:
    """A collapsed model must never seem to know anything, however small a type is."""
    rng = np.random.default_rng(seed)
    cancer, group = rng.integers(0, 6, 30), rng.integers(0, 25, 30)
    vectors = np.tile(rng.standard_normal(8), (30, 1))
    found = retrieval(similarity(vectors, vectors), cancer=cancer, group=group)
    for recall in (*found.overall, *found.within):
        assert recall.value == pytest.approx(recall.chance)
        assert recall.value <= 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_model_that_knows_only_the_type_reaches_exactly_the_ceiling(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cancer = rng.integers(0, 5, 40)
    by_type = np.eye(5)[cancer]
    found = retrieval(similarity(by_type, by_type), cancer=cancer, group=np.arange(40))
    for recall in found.overall:
        assert recall.value == pytest.approx(recall.ceiling)
        assert recall.ceiling >= recall.chance - 1e-12
    for recall in found.within:
        assert recall.value == pytest.approx(recall.chance)


def test_chance_agrees_with_drawing() -> None:
    rng = np.random.default_rng(0)
    for size, matches, k in ((12, 1, 5), (12, 3, 5), (7, 2, 10), (50, 4, 10), (3, 3, 1)):
        drawn = np.argsort(rng.random((20_000, size)), axis=1)[:, :k]
        seen = (drawn < matches).any(1).mean()
        found = any_order(np.array([size]), np.array([matches])).found(k)[0]
        assert found == pytest.approx(seen, abs=0.015)
        first = min(k, size)
        missed = math.comb(size - matches, first) / math.comb(size, first)
        assert found == pytest.approx(1 - missed)


def test_the_rank_is_the_expected_place_of_the_first_match() -> None:
    rng = np.random.default_rng(0)
    tied = Standing(above=np.array([4]), equal=np.array([6]), matches=np.array([2]))
    firsts = [4 + min(np.flatnonzero(rng.permutation(8) < 2)) + 1 for _ in range(5000)]
    assert tied.rank[0] == pytest.approx(np.mean(firsts), abs=0.1)


def test_near_duplicates_count_as_the_match_and_are_in_nobodys_way() -> None:
    """Entry 1 says the same as entry 0 and wins by a hair: query 0 has still found its report."""
    scores = np.array([[0.8, 0.9, 0.1], [0.9, 0.8, 0.1], [0.1, 0.2, 0.3]])
    apart = retrieval(scores, cancer=np.zeros(3, int), group=np.arange(3), ks=(1,))
    together = retrieval(scores, cancer=np.zeros(3, int), group=np.array([5, 5, 7]), ks=(1,))
    assert apart.overall[0].value == pytest.approx(1 / 3)
    assert together.overall[0].value == 1
    assert together.overall[0].chance == pytest.approx((2 / 3 + 2 / 3 + 1 / 3) / 3)


def test_a_duplicate_of_another_type_is_no_match_within_the_type() -> None:
    scores = np.array([[0.1, 0.9, 0.5], [0.9, 0.1, 0.2], [0.0, 0.0, 1.0]])
    found = retrieval(scores, cancer=np.array([0, 1, 0]), group=np.array([3, 3, 4]), ks=(1,))
    assert found.overall[0].value == 1
    assert found.within[0].value == pytest.approx(2 / 3), "query 0 prefers entry 2 of its type"


def test_the_interval_covers_the_true_recall() -> None:
    """Of 200 runs with a known recall, about 95 % of the intervals should hold it."""
    rng = np.random.default_rng(0)
    truth, held = 0.4, 0
    for run in range(200):
        scores = np.zeros((80, 80))
        np.fill_diagonal(scores, np.where(rng.random(80) < truth, 1, -1))
        (recall,) = retrieval(
            scores, cancer=np.zeros(80, int), group=np.arange(80), ks=(1,), seed=run
        ).overall
        held += recall.low <= truth <= recall.high
        assert recall.low <= recall.value <= recall.high
    assert 0.90 <= held / 200 <= 0.99


def test_order_and_labels_of_cases_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    a, b, cancer = (
        rng.standard_normal((30, 4)),
        rng.standard_normal((30, 4)),
        rng.integers(0, 3, 30),
    )
    group = rng.integers(0, 27, 30)
    found = retrieval(similarity(a, b), cancer=cancer, group=group)
    order = rng.permutation(30)
    again = retrieval(
        similarity(a[order], b[order]), cancer=7 - cancer[order], group=group[order] + 40
    )
    for one, other in zip(
        (*found.overall, *found.within), (*again.overall, *again.within), strict=True
    ):
        assert one.value == pytest.approx(other.value)
        assert (one.chance, one.ceiling) == pytest.approx((other.chance, other.ceiling))
    assert found.median_rank == again.median_rank


def test_scores_that_float32_cannot_tell_apart_are_ties() -> None:
    rng = np.random.default_rng(0)
    base = np.tile(rng.standard_normal(64).astype(np.float32), (50, 1))
    noisy = base + 1e-8 * rng.standard_normal((50, 64)).astype(np.float32)
    assert len(np.unique(similarity(noisy, base))) == 1
    assert not similarity(np.zeros((2, 3)), base[:2, :3]).any()


def test_alignment_and_uniformity_equal_their_definitions() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((20, 5)), rng.standard_normal((20, 5))
    unit_a, unit_b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    assert alignment(a, b) == pytest.approx(np.mean(np.linalg.norm(unit_a - unit_b, axis=1) ** 2))
    squared = [((x - y) ** 2).sum() for x, y in combinations(unit_a, 2)]
    expected = np.log(np.exp(-2 * np.array(squared)).mean())
    assert uniformity(a) == pytest.approx(expected)
    assert uniformity(a.astype(np.float32)) == pytest.approx(expected, abs=1e-5)
    assert alignment(a, 3 * a) == pytest.approx(0)
    assert uniformity(np.ones((9, 5))) == pytest.approx(0)
    assert uniformity(a[:1]) == 0
    np.testing.assert_allclose(np.linalg.norm(normalised(a), axis=1), 1)
