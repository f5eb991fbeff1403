"""Pooling against plain sorting; the retrieval of a case against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mstar.downstream.language.pooling import class_scores, text_scores, top_means, top_votes
from mstar.downstream.language.retrieval import joined, measure
from mstar.downstream.statistics.bootstrap import interval
from mstar.downstream.statistics.evaluated import Evaluated
from mstar.downstream.statistics.measured import KS, RETRIEVAL_COLUMNS, ROWS
from mstar.downstream.statistics.metrics import METRICS, value_of

TOPS = (1, 5, 10, 50, 100)


@pytest.mark.parametrize("patches", [1, 7, 230])
def test_the_best_patches_of_each_column_are_averaged(patches: int) -> None:
    """As a sort says; a slide of fewer patches takes them all."""
    scores = np.random.default_rng(patches).standard_normal((patches, 4)).astype(np.float32)
    found = top_means(torch.from_numpy(scores), TOPS).numpy()
    ranked = -np.sort(-scores, axis=0)
    for at, top in enumerate(TOPS):
        np.testing.assert_allclose(found[at], ranked[:top].mean(0), rtol=1e-5, atol=1e-6)


def test_the_surest_patches_vote() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.1], [0.3, 0.4], [0.1, 0.2]])
    found = top_votes(scores, (1, 3, 50)).numpy()
    np.testing.assert_allclose(found, [[1, 0], [2 / 3, 1 / 3], [2 / 5, 3 / 5]], rtol=1e-6)


def test_many_texts_are_scored_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mstar.downstream.language.pooling.NUMBERS_AT_ONCE", 50)
    torch.manual_seed(0)
    patches, texts = torch.randn(20, 6), torch.randn(8, 6)
    together = text_scores(patches, texts, [5])
    alone = torch.cat([text_scores(patches, text[None], [5]) for text in texts], dim=1)
    torch.testing.assert_close(together, alone)


def test_a_wording_is_scored_as_if_it_were_the_only_one() -> None:
    torch.manual_seed(1)
    patches, classes = torch.randn(30, 6), torch.randn(4, 3, 6)
    for vote, pool in ((False, top_means), (True, top_votes)):
        together = class_scores(patches, classes, TOPS, vote=vote)
        alone = torch.stack([pool(patches @ own.T, TOPS) for own in classes], dim=1)
        torch.testing.assert_close(together, alone)


def test_a_case_is_found_where_counting_finds_it() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((30, 30)).astype(np.float32)
    cancer = rng.integers(0, 3, 30)
    measures, yardsticks = measure(scores, cancer, np.arange(30))
    for name, square in (("first", scores), ("back", scores.T)):
        for case in range(30):
            own = square[case, case]
            place = 1 + int((square[case] > own).sum())
            inside = 1 + int((square[case][cancer == cancer[case]] > own).sum())
            row = dict(zip(RETRIEVAL_COLUMNS, measures[case].tolist(), strict=True))
            assert row[f"rank_{name}"] == place
            for k in KS:
                assert row[f"recall_at_{k}_{name}"] == (place <= k)
                assert row[f"within_recall_at_{k}_{name}"] == (inside <= k)
    assert yardsticks["chance_recall_at_5"] == pytest.approx(5 / 30)
    assert yardsticks["type_recall_at_5"] > yardsticks["chance_recall_at_5"]


def test_metrics_are_means_and_medians_with_intervals() -> None:
    rng = np.random.default_rng(1)
    measures = rng.random((40, len(RETRIEVAL_COLUMNS)))
    evaluated = Evaluated(patients=tuple(f"p{at}" for at in range(40)), scores=measures)
    place = RETRIEVAL_COLUMNS.index("recall_at_10_first")
    back = RETRIEVAL_COLUMNS.index("recall_at_10_back")
    both = measures[:, [place, back]].mean()
    assert value_of("recall_at_10_first", evaluated) == pytest.approx(measures[:, place].mean())
    assert value_of("recall_at_k", evaluated) == pytest.approx(both)
    ranks = [RETRIEVAL_COLUMNS.index(f"rank_{way}") for way in ("first", "back")]
    medians = [np.median(measures[:, column]) for column in ranks]
    assert value_of("median_rank", evaluated) == pytest.approx(np.mean(medians))
    one = interval("recall_at_k", evaluated)
    assert one.low < one.value < one.high
    assert {name for name, kind, *_ in ROWS if kind == "retrieval"} <= METRICS.keys()


def test_a_weighted_median_is_that_of_the_drawn_samples() -> None:
    rng = np.random.default_rng(2)
    measures = rng.random((9, len(RETRIEVAL_COLUMNS)))
    evaluated = Evaluated(patients=tuple(map(str, range(9))), scores=measures)
    weights = rng.multinomial(9, [1 / 9] * 9, size=20)
    found = METRICS["median_rank_first"].function(evaluated, weights)
    column = measures[:, RETRIEVAL_COLUMNS.index("rank_first")]
    expected = [np.median(np.repeat(column, row)) for row in weights]
    np.testing.assert_allclose(found, expected)


def test_cases_of_one_patient_match_one_another() -> None:
    groups = joined(np.array([0, 1, 2, 1, 4]), ("a", "b", "a", "c", "c"))
    assert groups[0] == groups[2]
    assert groups[1] == groups[3] == groups[4]
    assert groups[0] != groups[1]
