"""Survival losses against formulas written out case by case, on random and degenerate input."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mstar.errors import ConfigError, TrainingError
from mstar.losses.survival import (
    bin_edges,
    cox_nll,
    discrete_nll,
    discrete_risk,
    discrete_survival,
    time_bins,
)

Cohort = tuple[Tensor, Tensor, Tensor]


def cohort(seed: int, cases: int, distinct_times: int, event_rate: float = 0.6) -> Cohort:
    """Risks, times (few distinct ones: ties) and events."""
    generator = torch.Generator().manual_seed(seed)
    risk = torch.randn(cases, generator=generator, dtype=torch.float64) * 2
    time = torch.randint(1, distinct_times + 1, (cases,), generator=generator).double()
    event = torch.rand(cases, generator=generator) < event_rate
    return risk, time, event


def efron(risk: Tensor, time: Tensor, event: Tensor) -> float:
    """Minus Efron's log partial likelihood per event, one time after another."""
    r, t, e = risk.tolist(), time.tolist(), event.tolist()
    loss = 0.0
    for at in sorted({ti for ti, ei in zip(t, e, strict=True) if ei}):
        followed = math.fsum(math.exp(ri) for ri, ti in zip(r, t, strict=True) if ti >= at)
        tied = [ri for ri, ti, ei in zip(r, t, e, strict=True) if ti == at and ei]
        together = math.fsum(math.exp(ri) for ri in tied)
        for place in range(len(tied)):
            loss += math.log(followed - place / len(tied) * together)
        loss -= math.fsum(tied)
    return loss / sum(e)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.sampled_from([1, 2, 5, 10**6]))
def test_cox_equals_efrons_formula(seed: int, cases: int, distinct_times: int) -> None:
    risk, time, event = cohort(seed, cases, distinct_times)
    event[0] = True
    found = cox_nll(risk, time, event).item()
    assert found == pytest.approx(efron(risk, time, event), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("distinct_times", [3, 10**6])
def test_the_gradient_of_cox_is_that_of_its_values(distinct_times: int) -> None:
    risk, time, event = cohort(3, 12, distinct_times)
    risk.requires_grad_()
    assert torch.autograd.gradcheck(lambda r: cox_nll(r, time, event), (risk,))


def test_cox_knows_no_order_of_cases_no_shift_and_no_unit_of_time() -> None:
    risk, time, event = cohort(4, 30, 8)
    loss = cox_nll(risk, time, event)
    turn = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(cox_nll(risk[turn], time[turn], event[turn]), loss)
    torch.testing.assert_close(cox_nll(risk + 1000, time, event), loss)
    torch.testing.assert_close(cox_nll(risk, time.log() * 30 - 5, event), loss)


def test_cox_without_events_is_zero_and_moves_nothing() -> None:
    risk, time, _ = cohort(5, 6, 4)
    risk.requires_grad_()
    loss = cox_nll(risk, time, torch.zeros(6, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert risk.grad is not None
    assert bool((risk.grad == 0).all())


def test_one_event_among_all_tied() -> None:
    event = torch.tensor([False, True, False, False])
    loss = cox_nll(torch.zeros(4), torch.ones(4), event)
    assert loss.item() == pytest.approx(math.log(4))
    everyone = cox_nll(torch.zeros(4), torch.ones(4), torch.ones(4, dtype=torch.bool))
    assert everyone.item() == pytest.approx(math.log(24) / 4)


def test_who_was_censored_before_the_first_event_does_not_count() -> None:
    risk, time, event = cohort(6, 20, 9)
    early = cox_nll(
        torch.cat([risk, torch.tensor([50.0, -3.0]).double()]),
        torch.cat([time, torch.tensor([0.5, 0.1]).double()]),
        torch.cat([event, torch.tensor([False, False])]),
    )
    torch.testing.assert_close(early, cox_nll(risk, time, event))


def test_extreme_risks_stay_finite() -> None:
    risk = torch.tensor([800.0, -800.0, 0.0, 800.0], requires_grad=True)
    loss = cox_nll(risk, torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([True] * 4))
    loss.backward()
    assert bool(loss.isfinite())
    assert risk.grad is not None
    assert bool(risk.grad.isfinite().all())


def hazards_nll(logits: Tensor, bins: Tensor, event: Tensor, alpha: float) -> float:
    """The paper's formula, hazard by hazard."""
    losses = []
    for row, y, e in zip(logits.tolist(), bins.tolist(), event.tolist(), strict=True):
        hazard = [1 / (1 + math.exp(-x)) for x in row]
        survival = [1.0, *np.cumprod([1 - h for h in hazard])]  # survival[k] is S_{k-1}
        uncensored = -e * (math.log(survival[y]) + math.log(hazard[y]))
        censored = -(1 - e) * math.log(survival[y + 1])
        losses.append((1 - alpha) * (censored + uncensored) + alpha * uncensored)
    return float(np.mean(losses))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 20),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.15, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_discrete_time_equals_the_formula(
    seed: int, cases: int, bins: int, alpha: float, event_rate: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(cases, bins, generator=generator, dtype=torch.float64) * 3
    bin_of = torch.randint(bins, (cases,), generator=generator)
    event = torch.rand(cases, generator=generator) < event_rate
    expected = hazards_nll(logits, bin_of, event, alpha)
    assert discrete_nll(logits, bin_of, event, alpha).item() == pytest.approx(expected, rel=1e-9)
    survival = np.cumprod(1 - logits.sigmoid().numpy(), axis=1)
    np.testing.assert_allclose(discrete_survival(logits), survival, rtol=1e-9)
    np.testing.assert_allclose(discrete_risk(logits), -survival.sum(1), rtol=1e-9)


def test_certain_hazards_stay_finite() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = discrete_nll(logits, torch.tensor([1, 0]), torch.tensor([True, False]))
    loss.backward()
    assert bool(loss.isfinite())
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    with pytest.raises(ConfigError, match="alpha"):
        discrete_nll(logits, torch.tensor([1, 0]), torch.tensor([True, False]), 2.0)


def test_a_mean_over_bags_is_that_of_lone_bags() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    bins, event = torch.tensor([0, 1, 2, 3, 3]), torch.tensor([True, False, True, True, False])
    alone = [discrete_nll(logits[[i]], bins[[i]], event[[i]]) for i in range(5)]
    torch.testing.assert_close(torch.stack(alone).mean(), discrete_nll(logits, bins, event))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(8, 80), st.integers(1, 6))
def test_bins_equal_those_of_pandas(seed: int, cases: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    times, events = rng.gamma(2, 20, cases) + 0.1, rng.random(cases) < 0.6
    events[:2] = True
    edges = bin_edges(times, events, bins)
    _, expected = pd.qcut(times[events], bins, retbins=True, labels=False)
    expected[0], expected[-1] = times.min() - 1e-6, times.max() + 1e-6
    np.testing.assert_allclose(edges, expected, rtol=1e-12)
    codes = pd.cut(times, edges, right=False, labels=False, include_lowest=True)
    np.testing.assert_array_equal(time_bins(times, edges), codes)


def test_times_beyond_the_training_split_fall_into_the_outer_bins() -> None:
    edges = bin_edges(np.arange(1.0, 9.0), np.ones(8, bool), 4)
    assert time_bins(np.array([0.01, 1e6]), edges).tolist() == [0, 3]
    assert time_bins(edges[1:4], edges).tolist() == [1, 2, 3]  # closed on the left


def test_tied_times_leave_bins_empty() -> None:
    times = np.array([5.0] * 9 + [7.0])
    edges = bin_edges(times, np.ones(10, bool), 4)
    assert len(edges) == 5
    assert bool((np.diff(edges) >= 0).all())
    assert time_bins(times, edges).tolist() == [3] * 10


@pytest.mark.parametrize(
    ("times", "events", "told"),
    [
        ([1.0, 2.0], [False, False], "no event among 2 training cases"),
        ([1.0, 0.0], [True, True], "above 0"),
        ([1.0, math.nan], [True, True], "above 0"),
    ],
)
def test_bins_of_nothing_are_refused(times: list[float], events: list[bool], told: str) -> None:
    with pytest.raises(TrainingError, match=told):
        bin_edges(np.array(times), np.array(events))
    with pytest.raises(ConfigError, match="at least 1"):
        bin_edges(np.array([1.0]), np.array([True]), 0)
