"""Differences of two models: DeLong, the paired bootstrap, Holm, and the paper's p."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from mstar.downstream.statistics.bootstrap import fold_estimate
from mstar.downstream.statistics.compare import (
    auc_difference,
    compare,
    holm,
    p_paper_compat,
    paired_difference,
    resamples_needed,
)
from mstar.downstream.statistics.delong import cluster_variance, delong, placements
from mstar.downstream.statistics.evaluated import Evaluated
from mstar.downstream.statistics.metrics import value_of
from mstar.downstream.statistics.verdict import stars, too_few, verdict
from mstar.errors import CohortError
from support.predictions import classified, followed


def two_models(seed: int, *, samples: int = 80, patients: int = 0, digits: int | None = None):
    """The same cases scored by two models that are equally good, their errors correlated."""
    rng = np.random.default_rng(seed)
    who = rng.integers(0, patients, samples) if patients else np.arange(samples)
    labels = rng.integers(0, 2, samples)[who]  # those of a patient are alike
    shared = rng.normal(size=samples) + rng.normal(size=samples)[who] * bool(patients)
    models = []
    for _ in range(2):
        score = norm.cdf(labels + shared + rng.normal(size=samples))
        score = score if digits is None else score.round(digits)
        models.append(
            Evaluated(
                patients=tuple(f"P{number:03d}" for number in who),
                scores=np.stack([1 - score, score], axis=1),
                labels=labels.astype(np.int64),
            )
        )
    return models


def naive_delong(positive: np.ndarray, first: np.ndarray, second: np.ndarray):
    """DeLong 1988 from the full matrix of pairs, one sample a patient."""
    parts = []
    for scores in (first, second):
        ours, others = scores[positive][:, None], scores[~positive][None, :]
        parts.append((ours > others) + 0.5 * (ours == others))
    v10 = np.stack([kernel.mean(axis=1) for kernel in parts])
    v01 = np.stack([kernel.mean(axis=0) for kernel in parts])
    covariance = np.cov(v10) / v10.shape[1] + np.cov(v01) / v01.shape[1]
    contrast = np.array([1.0, -1.0])
    value = parts[0].mean() - parts[1].mean()
    error = np.sqrt(contrast @ covariance @ contrast)
    return value, error, 2 * norm.sf(abs(value) / error)


@given(seed=st.integers(0, 10_000), digits=st.sampled_from([None, 1]))
@settings(max_examples=25, deadline=None)
def test_delong_equals_its_definition(seed: int, digits: int | None) -> None:
    """Value, standard error and p, with and without ties."""
    first, second = two_models(seed, samples=40, digits=digits)
    positive = first.class_labels == 1
    ours = delong(positive, [first.scores[:, 1]], [second.scores[:, 1]], first.patients)
    value, error, p = naive_delong(positive, first.scores[:, 1], second.scores[:, 1])
    assert ours.value == pytest.approx(value, abs=1e-12)
    assert ours.value == pytest.approx(value_of("macro_auc", first) - value_of("macro_auc", second))
    assert ours.std_error == pytest.approx(error)
    assert ours.p == pytest.approx(p)


def test_placements_average_to_the_auc() -> None:
    """From both sides."""
    e = classified(0, digits=1)
    positive = e.class_labels == 1
    placed = placements(positive, [e.scores[:, 1]])
    assert placed[positive].mean() == pytest.approx(value_of("macro_auc", e))
    assert placed[~positive].mean() == pytest.approx(value_of("macro_auc", e))


def test_clustered_variance_is_that_of_the_patient_bootstrap() -> None:
    """And larger than that of rows, where the slides of a patient agree."""
    first, _ = two_models(3, samples=600, patients=100)
    positive = first.class_labels == 1
    placed = placements(positive, [first.scores[:, 1]])
    clustered = cluster_variance(positive, placed, first.patients) ** 0.5
    by_rows = cluster_variance(positive, placed, [str(row) for row in range(600)]) ** 0.5
    estimate = fold_estimate("macro_auc", [first], resamples=2000)
    assert clustered == pytest.approx((estimate.high - estimate.low) / 3.92, rel=0.1)
    assert clustered > 1.1 * by_rows


def test_compare_takes_delong_for_two_classes_and_the_bootstrap_else() -> None:
    """Both agree where both apply."""
    first, second = two_models(1, samples=300)
    analytic = compare("macro_auc", [first], [second])
    resampled = paired_difference("macro_auc", [first], [second], resamples=2000)
    assert (analytic.method, resampled.method) == ("delong", "bootstrap")
    assert analytic.value == pytest.approx(resampled.value)
    assert (analytic.low, analytic.high) == pytest.approx(
        (resampled.low, resampled.high), abs=0.006
    )
    assert analytic.p == pytest.approx(resampled.p, abs=0.05)
    assert compare("balanced_accuracy", [first], [second], resamples=50).method == "bootstrap"


def test_folds_and_seeds_are_compared_too() -> None:
    """Values are those of the table; DeLong's variances of disjoint folds add up."""
    pairs = [two_models(seed, samples=60) for seed in range(4)]
    models: list[list[Evaluated]] = [[], []]
    for number, pair in enumerate(pairs):
        names = tuple(f"{number // 2}-{row}" for row in range(60))
        for model, part in zip(models, pair, strict=True):
            part = dataclasses.replace(
                part, fold=str(number // 2), seed=number % 2, patients=names,
                labels=pairs[number - number % 2][0].labels,
            )  # fmt: skip
            model.append(part)
    analytic = compare("macro_auc", *models)
    resampled = paired_difference("macro_auc", *models, resamples=2000)
    expected = [fold_estimate("macro_auc", model, resamples=10).value for model in models]
    assert analytic.method == "delong"
    assert analytic.value == pytest.approx(expected[0] - expected[1])
    assert analytic.high - analytic.low == pytest.approx(resampled.high - resampled.low, rel=0.15)
    external = [[dataclasses.replace(p, patients=models[0][0].patients) for p in models[0]]] * 2
    assert auc_difference(*external) is None  # folds share patients: not independent


def test_order_of_the_cases_does_not_matter() -> None:
    """Two models' files may be sorted differently."""
    first, second = two_models(2, samples=60, patients=30)
    rows = np.random.default_rng(0).permutation(60)
    shuffled = Evaluated(
        patients=tuple(second.patients[row] for row in rows),
        scores=second.scores[rows],
        labels=second.class_labels[rows],
    )
    for function in (compare, paired_difference):
        ordered = function("macro_auc", [first], [second], resamples=200)
        other = function("macro_auc", [first], [shuffled], resamples=200)
        assert (other.value, other.low, other.p) == pytest.approx(
            (ordered.value, ordered.low, ordered.p)
        )


def test_equal_models_do_not_differ() -> None:
    """The p is 1 by every method, the paper's too."""
    first, _ = two_models(0)
    assert compare("macro_auc", [first], [first]).p == 1.0
    assert compare("c_index", [followed(0)], [followed(0)], resamples=100).p == 1.0
    assert p_paper_compat("macro_auc", [first], [first]) == 1.0


def test_a_difference_without_variance_falls_back_to_the_bootstrap() -> None:
    """Perfect against constant: DeLong's variance is zero, its p would be 0."""
    labels = np.arange(20) % 2
    first = classified(0, samples=20)
    perfect = dataclasses.replace(first, labels=labels, scores=np.eye(2)[labels])
    constant = dataclasses.replace(perfect, scores=np.full((20, 2), 0.5))
    difference = compare("macro_auc", [perfect], [constant], resamples=999)
    assert difference.method == "bootstrap"
    assert difference.p == difference.smallest_p > 0


def test_other_cases_are_refused() -> None:
    """With how many, and the way out."""
    first, second = two_models(0)
    fewer = Evaluated(
        patients=second.patients[1:], scores=second.scores[1:], labels=second.class_labels[1:]
    )
    with pytest.raises(CohortError, match=r"1 cases or outcomes of the first.*same cases"):
        compare("macro_auc", [first], [fewer])
    with pytest.raises(CohortError, match=r"folds .* of the first model, b of the second"):
        compare("macro_auc", [first], [dataclasses.replace(second, fold="b")])


def test_a_true_null_is_rejected_one_time_in_twenty_by_us_and_half_the_time_by_the_paper() -> None:
    """Two equally good models, 200 times."""
    pairs = [two_models(seed, samples=60) for seed in range(200)]
    analytic = np.array([compare("macro_auc", [a], [b]).p for a, b in pairs])
    drawn = np.array([paired_difference("macro_auc", [a], [b], resamples=200).p for a, b in pairs])
    paper = np.array([p_paper_compat("macro_auc", [a], [b], resamples=200) for a, b in pairs])
    assert 0.01 <= (analytic < 0.05).mean() <= 0.1
    assert 0.01 <= (drawn < 0.05).mean() <= 0.1
    assert 0.35 <= (paper < 0.05).mean() <= 0.6


def test_more_replicates_make_the_papers_p_as_small_as_one_likes() -> None:
    """On the same predictions; the honest p stays what it is."""
    first, second = two_models(11, samples=60)
    if value_of("macro_auc", first) < value_of("macro_auc", second):
        first, second = second, first
    paper = [p_paper_compat("macro_auc", [first], [second], resamples=n) for n in (50, 400, 3200)]
    assert paper[0] > paper[1] > paper[2]
    assert paper[2] < 1e-6
    assert compare("macro_auc", [first], [second]).p > 0.05


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_holm_equals_statsmodels(p: list[float]) -> None:
    """Ties and ones included."""
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    np.testing.assert_allclose(holm(p), multitest.multipletests(p, method="holm")[1])


def test_holm_by_hand_and_without_the_undefined() -> None:
    """An undefined test is no test."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    adjusted = holm([0.01, float("nan"), 0.03])
    assert (adjusted[0], adjusted[2]) == pytest.approx((0.02, 0.03))
    assert np.isnan(adjusted[1])
    assert holm([]) == ()


def test_resamples_needed_leave_room_for_a_star() -> None:
    """With them, the smallest p that the bootstrap can give survives Holm."""
    for tests in (1, 16, 77):
        smallest = 2 / (resamples_needed(tests) + 1)
        assert holm([smallest] + [1.0] * (tests - 1))[0] < 0.05


def test_few_cases_have_no_stars_and_no_winner() -> None:
    """However small the p."""
    difference = compare("macro_auc", *[[model] for model in two_models(0, samples=200)])
    better = dataclasses.replace(difference, value=0.1, patients=30)
    assert (verdict(better, p_adjusted=0.0004).stars, stars(0.004, 30)) == ("***", "**")
    assert verdict(better, p_adjusted=0.02).winner == "first"
    assert verdict(dataclasses.replace(better, value=-0.1), p_adjusted=0.02).winner == "second"
    brier = dataclasses.replace(better, metric="brier")
    assert verdict(brier, p_adjusted=0.02).winner == "second"  # lower is better
    few = verdict(dataclasses.replace(better, patients=29), p_adjusted=1e-9)
    assert (few.stars, few.winner) == ("", "none")
    assert few.reason == "29 test cases, fewer than 30: no stars, no winner"
    assert stars(1e-9, 29) == ""
    assert too_few(30) == ""


def test_nothing_significant_has_no_winner() -> None:
    """Nor has what is undefined."""
    difference = compare("macro_auc", *[[model] for model in two_models(0)])
    assert verdict(difference, p_adjusted=0.2).winner == "none"
    assert "after Holm" in verdict(difference, p_adjusted=0.2).reason
    assert "undefined" in verdict(difference, p_adjusted=float("nan")).reason
