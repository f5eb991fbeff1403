"""Intervals: patients are drawn, folds are averaged, and 95 % means 95 %."""

import dataclasses
import time

import numpy as np
import pytest
from scipy.stats import bootstrap, norm

from mstar.downstream.statistics.bootstrap import (
    by_fold,
    fold_estimate,
    interval,
    patient_weights,
    replicates,
)
from mstar.downstream.statistics.evaluated import Evaluated
from mstar.downstream.statistics.generation import GENERATION_COLUMNS
from mstar.downstream.statistics.measured import RETRIEVAL_COLUMNS
from mstar.downstream.statistics.metrics import METRICS, value_of
from support.predictions import classified, followed, resampled


def test_patients_are_drawn_whole() -> None:
    """Samples of one patient always come together, as many patients as there are."""
    patients = ["a", "b", "a", "c", "c", "c"]
    weights = patient_weights(patients, 500, 0)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 3] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert weights[:, 1].mean() == pytest.approx(1.0, abs=0.1)


def test_draws_depend_on_the_patients_and_the_seed_alone() -> None:
    """Not on the order of the samples: models are paired, whatever order they were stored in."""
    patients = [f"P{number}" for number in range(20)] * 2
    order = np.random.default_rng(0).permutation(40)
    weights = patient_weights(patients, 30, 5)
    shuffled = patient_weights([patients[row] for row in order], 30, 5)
    np.testing.assert_array_equal(shuffled, weights[:, order])
    assert (patient_weights(patients, 30, 6) != weights).any()


def test_replicates_are_the_metric_of_repeated_rows() -> None:
    """Weights stand for rows."""
    e = classified(0, samples=50, patients=20)
    weights = patient_weights(e.patients, 10, 3)
    expected = [value_of("macro_auc", resampled(e, row)) for row in weights]
    np.testing.assert_allclose(replicates("macro_auc", [e], resamples=10, seed=3), expected)


def test_percentile_interval_agrees_with_scipy() -> None:
    """Of a mean that both can compute: the accuracy, one sample a patient."""
    e = classified(1, samples=200)
    ours = interval("accuracy", e, resamples=4000)
    correct = (e.predicted == e.labels).astype(float)
    theirs = bootstrap((correct,), np.mean, method="percentile", n_resamples=4000, rng=0)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.006)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.006)
    assert ours.value == pytest.approx(correct.mean())


def test_folds_are_averaged_and_resampled_within() -> None:
    """The metric of each fold, their mean, and an interval of that mean."""
    parts = [classified(seed, samples=40, fold=f"fold{seed}") for seed in range(5)]
    estimate = fold_estimate("macro_auc", parts)
    assert estimate.fold_values == tuple(value_of("macro_auc", part) for part in parts)
    assert estimate.value == pytest.approx(np.mean(estimate.fold_values))
    assert (estimate.samples, estimate.patients, estimate.seeds) == (200, 200, 1)
    assert np.isnan(estimate.seed_std)
    single = [replicates("macro_auc", [part]) for part in parts]  # each fold on its own draws
    np.testing.assert_allclose(replicates("macro_auc", parts), np.mean(single, axis=0))
    assert estimate.low < estimate.value < estimate.high


def test_five_models_on_one_external_cohort_share_their_draws() -> None:
    """Five folds' models tested on the same patients are no five test sets."""
    external = classified(3, samples=60)
    parts = [dataclasses.replace(external, fold=f"fold{number}") for number in range(5)]
    once, five = interval("macro_auc", external), fold_estimate("macro_auc", parts)
    assert (five.low, five.high) == pytest.approx((once.low, once.high))
    assert five.samples == 60
    assert five.patients == 60


def test_folds_that_share_some_patients_draw_from_all_of_them() -> None:
    """A published split that leaks: one patient is drawn once, for both folds."""
    first = classified(1, samples=40)
    rest = dataclasses.replace(classified(2, samples=40), patients=(*first.patients[:39], "Q"))
    parts = [dataclasses.replace(first, fold="a"), dataclasses.replace(rest, fold="b")]
    estimate = fold_estimate("macro_auc", parts)
    assert estimate.patients == 41
    assert estimate.low < estimate.high


def test_spread_over_seeds_is_apart_from_the_interval() -> None:
    """Seeds are averaged within a fold and share its draws."""
    parts = [
        dataclasses.replace(classified(seed, samples=50), labels=classified(0, samples=50).labels)
        for seed in range(3)
    ]
    parts = [dataclasses.replace(part, seed=number) for number, part in enumerate(parts)]
    estimate = fold_estimate("macro_auc", parts)
    values = [value_of("macro_auc", part) for part in parts]
    assert estimate.value == pytest.approx(np.mean(values))
    assert estimate.seed_std == pytest.approx(np.std(values, ddof=1))
    assert estimate.seeds == 3
    with pytest.raises(AssertionError):
        by_fold([parts[0], parts[0]])


def test_paper_compat_is_the_mean_of_row_resamples_and_1_96_deviations() -> None:
    """And marked `normal`."""
    e = classified(5, samples=60, patients=12)
    drawn = replicates("macro_auc", [e], rows=True)
    estimate = interval("macro_auc", e, protocol="paper-compat")
    assert estimate.method == "normal"
    assert estimate.value == pytest.approx(drawn.mean())
    half = 1.959964 * drawn.std(ddof=1)
    assert (estimate.low, estimate.high) == pytest.approx(
        (drawn.mean() - half, drawn.mean() + half)
    )
    assert interval("macro_auc", e).method == "percentile"


def test_what_is_undefined_is_counted() -> None:
    """A positive in a few resamples only: no interval from what is left."""
    e = classified(6, samples=40)
    labels = np.zeros(40, np.int64)
    labels[0] = 1
    rare = dataclasses.replace(e, labels=labels)
    estimate = interval("macro_auc", rare)
    assert estimate.undefined == pytest.approx(368, abs=50)  # (1 − 1/40)^40 of 1,000
    assert estimate.resamples + estimate.undefined == 1000
    alone = interval("macro_auc", dataclasses.replace(e, labels=np.zeros(40, np.int64)))
    assert np.isnan([alone.value, alone.low, alone.high]).all()
    assert (alone.classes, alone.num_classes, alone.resamples) == (1, 2, 0)


def test_an_interval_without_width_says_so() -> None:
    """A perfect AUC on ten cases is no certainty."""
    labels = np.arange(10) % 2
    perfect = Evaluated(
        patients=tuple("abcdefghij"), scores=np.eye(2)[labels], labels=labels.astype(np.int64)
    )
    assert not interval("macro_auc", perfect).has_width
    assert interval("macro_auc", classified(0)).has_width


@pytest.mark.parametrize("metric", ["macro_auc", "c_index"])
def test_a_thousand_resamples_of_a_thousand_cases_take_well_below_a_second(metric: str) -> None:
    """Measured at 0.03 and 0.2 s on one core; the bound leaves room for a busy machine."""
    make = classified if metric == "macro_auc" else followed
    e = make(0, samples=1000)
    interval(metric, e, resamples=10)  # warm
    took = []
    for _ in range(3):
        start = time.perf_counter()
        interval(metric, e)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.8


def binormal(seed: int, patients: int, rows: int, shared: float) -> Evaluated:
    """AUC Φ(1/√2); the rows of a patient share label and part of their score."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(0, 2, patients), rows)
    own = np.repeat(rng.normal(size=patients), rows)
    noise = np.sqrt(shared) * own + np.sqrt(1 - shared) * rng.normal(size=patients * rows)
    probability = norm.cdf(labels + noise)
    return Evaluated(
        patients=tuple(f"P{row // rows:03d}" for row in range(patients * rows)),
        scores=np.stack([1 - probability, probability], axis=1),
        labels=labels,
    )


def covered(sets: list[Evaluated], metric: str, truth: float, *, rows: bool = False) -> float:
    """Share of sets whose interval holds the truth."""
    hits = []
    for e in sets:
        drawn = replicates(metric, [e], resamples=250, rows=rows)
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        hits.append(low <= truth <= high)
    return float(np.mean(hits))


def test_95_percent_of_the_auc_intervals_hold_the_truth() -> None:
    """And those of rows do not, when a patient has several slides."""
    sets = [binormal(seed, 70, 3, 0.8) for seed in range(200)]
    truth = float(norm.cdf(1 / np.sqrt(2)))
    assert 0.91 <= covered(sets, "macro_auc", truth) <= 0.985
    assert covered(sets, "macro_auc", truth, rows=True) < 0.88


def test_95_percent_of_the_c_index_intervals_hold_the_truth() -> None:
    """Truth from 4,000 cases, of the same exponential model."""
    truth = value_of("c_index", followed(999, samples=4000))
    assert (
        0.91 <= covered([followed(s, samples=120) for s in range(200)], "c_index", truth) <= 0.985
    )


def test_every_metric_has_an_interval() -> None:
    """Around its value, except where the resamples are biased (calibration)."""
    for name, spec in METRICS.items():
        estimate = interval(name, evaluated_for(spec.kind), resamples=100)
        assert estimate.low < estimate.high
        assert estimate.low < estimate.value < estimate.high or name == "calibration_error"


def evaluated_for(kind: str) -> Evaluated:
    """A set whose predictions are of a kind; of those that are measured, measures that vary."""
    if kind == "classification":
        return classified(0, classes=3)
    if kind == "survival":
        return followed(0)
    columns = len(RETRIEVAL_COLUMNS if kind == "retrieval" else GENERATION_COLUMNS)
    measures = np.random.default_rng(0).uniform(1, 20, (60, columns))
    return Evaluated(patients=tuple(map(str, range(60))), scores=measures)
