"""C-index and time-dependent AUC equal scikit-survival's, with ties, weights and no events."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.downstream.statistics.bootstrap import patient_weights
from mstar.downstream.statistics.concordance import c_index
from mstar.downstream.statistics.evaluated import Evaluated, once
from mstar.downstream.statistics.metrics import METRICS, value_of
from mstar.downstream.statistics.time_auc import default_months, step_curve, time_dependent_auc
from support.predictions import followed, resampled

TIES = st.sampled_from([None, 0, 1])


@given(seed=st.integers(0, 10_000), samples=st.integers(2, 40), digits=TIES)
@settings(max_examples=40, deadline=None)
def test_c_index_equals_scikit_survival(seed: int, samples: int, digits: int | None) -> None:
    """Of the set and of its resamples; where that package refuses, this one says NaN."""
    metrics = pytest.importorskip("sksurv.metrics")
    exceptions = pytest.importorskip("sksurv.exceptions")
    e = followed(seed, samples=samples, digits=digits)
    weights = np.concatenate([once(samples), patient_weights(e.patients, 5, seed)])
    for value, row in zip(METRICS["c_index"].function(e, weights), weights, strict=True):
        drawn = resampled(e, row)
        times, events = drawn.outcome
        try:
            with np.errstate(all="ignore"):  # 0 / 0 where it finds no pair
                expected = metrics.concordance_index_censored(events, times, drawn.risks)[0]
        except (exceptions.NoComparablePairException, ValueError):  # ValueError: no events at all
            expected = np.nan
        np.testing.assert_allclose(value, expected, rtol=1e-12)


@given(seed=st.integers(0, 10_000), samples=st.integers(2, 25), digits=TIES)
@settings(max_examples=40, deadline=None)
def test_c_index_equals_its_definition(seed: int, samples: int, digits: int | None) -> None:
    """Pair by pair, without any package."""
    e = followed(seed, samples=samples, digits=digits)
    times, events = e.outcome
    good = pairs = 0.0
    for i in range(samples):
        for j in range(samples):
            later = times[i] < times[j] or (times[i] == times[j] and not events[j])
            if events[i] and i != j and later:
                pairs += 1
                tied = abs(e.risks[i] - e.risks[j]) <= 1e-8
                good += 0.5 if tied else float(e.risks[i] > e.risks[j])
    expected = good / pairs if pairs else np.nan
    np.testing.assert_allclose(value_of("c_index", e), expected, rtol=1e-12)


@pytest.mark.parametrize("metric", ["c_index", "time_dependent_auc"])
def test_nothing_to_compare_is_undefined_without_a_warning(metric: str) -> None:
    """All censored; one sample; all dead at once."""
    assert np.isnan(value_of(metric, followed(0, censored=0.9999)))
    assert np.isnan(value_of(metric, followed(0, samples=1, censored=0.0)))
    together = Evaluated(
        patients=("a", "b"),
        scores=np.array([[1.0], [2.0]]),
        times=np.ones(2),
        events=np.ones(2, bool),
    )
    assert np.isnan(value_of(metric, together))


def test_c_index_of_a_constant_risk_is_a_half() -> None:
    """Ties count one half."""
    e = followed(1)
    times, events = e.outcome
    assert c_index(times, events, np.zeros(len(times)), once(len(times)))[0] == 0.5


def test_blocks_of_pairs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs are counted some events at a time."""
    e = followed(2, samples=90, digits=1)
    weights = patient_weights(e.patients, 20, 0)
    whole = {name: METRICS[name].function(e, weights) for name in ("c_index", "time_dependent_auc")}
    monkeypatch.setattr("mstar.downstream.statistics.evaluated.BLOCK_NUMBERS", 300)
    for name, values in whole.items():
        np.testing.assert_array_equal(METRICS[name].function(e, weights), values)


@given(
    seed=st.integers(0, 10_000),
    samples=st.integers(8, 60),
    digits=TIES,
    own_censoring=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_time_dependent_auc_equals_scikit_survival(
    seed: int, samples: int, digits: int | None, own_censoring: bool
) -> None:
    """At every time and in the mean, censoring from a training part or from the set itself."""
    metrics = pytest.importorskip("sksurv.metrics")
    util = pytest.importorskip("sksurv.util")
    e = followed(seed, samples=samples, digits=digits)
    times, events = e.outcome
    months = default_months(times, events)
    train = (times, events) if own_censoring else followed(seed + 1, samples=300).outcome
    if not len(months) or train[0].max() <= times[events].max():
        return
    ours = time_dependent_auc(
        times, events, e.risks, once(samples), training=None if own_censoring else train
    )
    surv = util.Surv.from_arrays(events, times)
    with np.errstate(all="ignore"):
        at_time, mean = metrics.cumulative_dynamic_auc(
            util.Surv.from_arrays(train[1], train[0]), surv, e.risks, months
        )
    np.testing.assert_allclose(ours.at_time[0], at_time, rtol=1e-9)
    np.testing.assert_allclose(ours.mean[0], mean, rtol=1e-9)


@given(seed=st.integers(0, 10_000), digits=TIES)
@settings(max_examples=20, deadline=None)
def test_time_dependent_auc_of_a_resample_is_that_of_its_rows(
    seed: int, digits: int | None
) -> None:
    """Also the censoring weights and the survival curve are the resample's."""
    e = followed(seed, samples=40, digits=digits)
    times, events = e.outcome
    months = default_months(times, events)
    weights = patient_weights(e.patients, 6, seed)
    values = time_dependent_auc(times, events, e.risks, weights, months=months)
    for row in range(6):
        drawn = resampled(e, weights[row])
        held = months[months < drawn.outcome[0].max()]
        alone = time_dependent_auc(
            *drawn.outcome, drawn.risks, once(len(drawn.patients)), months=held
        )
        np.testing.assert_allclose(values.at_time[row][: len(held)], alone.at_time[0], rtol=1e-9)
        assert np.isnan(values.at_time[row][len(held) :]).all()
        np.testing.assert_allclose(values.mean[row], alone.mean[0], rtol=1e-9)


def test_nothing_after_the_training_follow_up_is_judged() -> None:
    """Deaths after it count as censored: how their risks are ordered cannot matter."""
    e = followed(3, samples=120, follow_up=15.0)
    times, events = e.outcome
    late = times > 15.0
    assert (late & events).sum() > 5
    risks = np.where(late, e.risks[late].mean(), e.risks)
    changed_times = np.where(late, times + 100.0, times)
    values = [
        time_dependent_auc(t, d, risks, once(120), follow_up=15.0).mean[0]
        for t, d in ((times, events), (changed_times, events & ~late))
    ]
    assert values[0] == values[1]
    assert default_months(np.minimum(times, 15.0), events & ~late).max() < 15.0
    assert value_of("time_dependent_auc", e) != value_of(
        "time_dependent_auc", followed(3, samples=120)
    )


@given(seed=st.integers(0, 10_000), digits=TIES, reverse=st.booleans())
@settings(max_examples=20, deadline=None)
def test_weighted_curves_equal_scikit_survival(
    seed: int, digits: int | None, reverse: bool
) -> None:
    """Kaplan-Meier of deaths and of censoring, of repeated rows."""
    nonparametric = pytest.importorskip("sksurv.nonparametric")
    e = followed(seed, samples=30, digits=digits)
    times, events = e.outcome
    weights = patient_weights(e.patients, 3, seed)
    for row in weights:
        drawn_times, drawn_events = resampled(e, row).outcome
        if not drawn_events.any() or drawn_events.all():
            continue
        at, expected = nonparametric.kaplan_meier_estimator(
            drawn_events, drawn_times, reverse=reverse
        )
        ours = step_curve(times, events, row[None].astype(float), at=at, reverse=reverse)
        np.testing.assert_allclose(ours[0], expected, atol=1e-12)
