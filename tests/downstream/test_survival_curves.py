"""Kaplan-Meier and log-rank equal lifelines', statsmodels' and scikit-survival's."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.downstream.statistics.survival_curves import (
    at_risk_table,
    kaplan_meier,
    log_rank,
    split_by_risk,
)
from support.predictions import followed

TIES = st.sampled_from([None, 0, 1])
CENSORED = st.sampled_from([0.01, 0.4, 0.9, 0.9999])


@given(seed=st.integers(0, 10_000), samples=st.integers(1, 40), digits=TIES, censored=CENSORED)
@settings(max_examples=25, deadline=None)
def test_kaplan_meier_equals_lifelines(
    seed: int, samples: int, digits: int | None, censored: float
) -> None:
    """The curve, its median, those at risk, and the band between 0 and 1."""
    lifelines = pytest.importorskip("lifelines")
    times, events = followed(seed, samples=samples, digits=digits, censored=censored).outcome
    ours = kaplan_meier(times, events)
    fitter = lifelines.KaplanMeierFitter().fit(times, events)
    table = fitter.event_table.iloc[1:]  # the first row is the entrance at 0
    np.testing.assert_allclose(ours.times, table.index)
    np.testing.assert_allclose(ours.survival, fitter.survival_function_.iloc[1:, 0], atol=1e-12)
    np.testing.assert_array_equal(ours.at_risk, table["at_risk"])
    np.testing.assert_array_equal(ours.died, table["observed"])
    np.testing.assert_array_equal(ours.censored, table["censored"])
    if not np.isclose(ours.survival, 0.5).any():  # there lifelines' rounding error decides
        assert ours.median == pytest.approx(fitter.median_survival_time_)
    inside = (ours.survival > 0) & (ours.survival < 1)
    band = fitter.confidence_interval_.iloc[1:].to_numpy()[inside]
    np.testing.assert_allclose(ours.low[inside], band[:, 0], atol=1e-7)
    np.testing.assert_allclose(ours.high[inside], band[:, 1], atol=1e-7)


@given(seed=st.integers(0, 10_000), samples=st.integers(2, 40), digits=TIES)
@settings(max_examples=25, deadline=None)
def test_kaplan_meier_equals_statsmodels(seed: int, samples: int, digits: int | None) -> None:
    """Which keeps times of death only."""
    duration = pytest.importorskip("statsmodels.duration.survfunc")
    times, events = followed(seed, samples=samples, digits=digits).outcome
    if not events.any():
        return
    ours = kaplan_meier(times, events)
    theirs = duration.SurvfuncRight(times, events.astype(int))
    died = np.isin(ours.times, theirs.surv_times)
    np.testing.assert_allclose(ours.survival[died], theirs.surv_prob, atol=1e-12)


@given(
    seed=st.integers(0, 10_000),
    samples=st.integers(2, 40),
    digits=TIES,
    groups=st.integers(2, 4),
    censored=CENSORED,
)
@settings(max_examples=40, deadline=None)
def test_log_rank_equals_lifelines_statsmodels_and_scikit_survival(
    seed: int, samples: int, digits: int | None, groups: int, censored: float
) -> None:
    """Two groups and more, ties, groups in which nobody dies."""
    statistics = pytest.importorskip("lifelines.statistics")
    duration = pytest.importorskip("statsmodels.duration.survfunc")
    compare = pytest.importorskip("sksurv.compare")
    util = pytest.importorskip("sksurv.util")
    times, events = followed(seed, samples=samples, digits=digits, censored=censored).outcome
    group = np.random.default_rng(seed).integers(0, groups, samples)
    ours = log_rank(times, events, group)
    if len(set(group.tolist())) < 2 or not events.any():
        assert np.isnan(ours.p)
        return
    if np.isnan(ours.p):  # every death was of the last one at risk: nothing to tell apart
        at_risk = (times[None, :] >= times[events][:, None]).sum(axis=1)
        alone = [
            len(set(group[times >= moment].tolist())) == 1 or number == 0
            for moment, number in zip(times[events], at_risk, strict=True)
        ]
        together = [events[times >= m].all() and len(set(times[times >= m])) == 1
                    for m in times[events]]  # fmt: skip
        assert (np.array(alone) | np.array(together)).all()
        return
    theirs = statistics.multivariate_logrank_test(times, group, events)
    assert ours.statistic == pytest.approx(theirs.test_statistic, rel=1e-6, abs=1e-9)
    assert ours.p == pytest.approx(theirs.p_value, rel=1e-6, abs=1e-9)
    well_posed = all(events[group == code].any() for code in set(group.tolist()))
    if well_posed and samples > 20:
        statistic, p = duration.survdiff(times, events.astype(int), group)
        assert ours.statistic == pytest.approx(statistic, rel=1e-6, abs=1e-9)
        statistic, p = compare.compare_survival(util.Surv.from_arrays(events, times), group)
        assert (ours.statistic, ours.p) == pytest.approx((statistic, p), rel=1e-6, abs=1e-9)


def test_observed_and_expected_deaths_add_up() -> None:
    """To the number of deaths."""
    e = followed(0, samples=150, digits=1)
    times, events = e.outcome
    test = log_rank(times, events, (e.risks > 0).astype(np.int64))
    assert sum(test.observed) == pytest.approx(events.sum())
    assert sum(test.expected) == pytest.approx(events.sum())
    assert test.observed[1] > test.expected[1]  # high risk
    assert test.p < 1e-3


def test_the_median_is_where_exactly_half_survive() -> None:
    """Not one death later, because a product of fractions came out as 0.5000000000000001."""
    for samples in range(2, 60, 2):
        times = np.arange(1.0, samples + 1)
        assert kaplan_meier(times, np.ones(samples, bool)).median == samples / 2


def test_all_censored_has_a_curve_and_no_test() -> None:
    """Flat at 1, and NaN without a warning."""
    times, events = np.array([1.0, 2.0, 2.0]), np.zeros(3, bool)
    curve = kaplan_meier(times, events)
    assert curve.survival.tolist() == curve.low.tolist() == curve.high.tolist() == [1.0, 1.0]
    assert curve.median == float("inf")
    assert np.isnan(log_rank(times, events, np.array([0, 1, 1])).p)


def test_the_cut_is_the_training_median_and_the_cohorts_for_compat() -> None:
    """The evaluated risks do not move the honest cut."""
    e = followed(1, samples=100)
    times, events = e.outcome
    split = split_by_risk(times, events, e.risks, 0.7)
    assert split.cut == "training"
    np.testing.assert_array_equal(split.high, e.risks > 0.7)
    compat = split_by_risk(times, events, e.risks, 0.7, protocol="paper-compat")
    assert (compat.cut, compat.high.sum()) == ("cohort", 50)
    test = log_rank(times, events, split.high.astype(np.int64))
    assert split.log_rank == dataclasses.replace(test)
    high = kaplan_meier(times[split.high], events[split.high])
    np.testing.assert_array_equal(split.high_curve.survival, high.survival)
    folds = split_by_risk(times, events, e.risks, np.repeat([0.0, 2.0], 50))
    np.testing.assert_array_equal(folds.high, e.risks > np.repeat([0.0, 2.0], 50))


def test_all_of_low_risk_is_one_curve_and_no_test() -> None:
    """A model whose test risks all lie below its training median."""
    e = followed(2)
    split = split_by_risk(*e.outcome, e.risks, 1e9)
    assert split.high_curve is None
    assert split.low_curve is not None
    assert np.isnan(split.log_rank.p)


def test_numbers_at_risk_below_the_figure() -> None:
    """Those followed just before a month; nobody after the end."""
    curve = kaplan_meier(np.array([1.0, 2.0, 2.0, 5.0]), np.array([True, False, True, True]))
    assert at_risk_table([curve], [0.0, 1.0, 1.5, 2.0, 5.0, 6.0]).tolist() == [[4, 4, 3, 3, 1, 0]]
