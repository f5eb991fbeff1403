"""The stage-2 loss against NumPy; its limits; rows without weight; sums over passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mstar.errors import ConfigError
from mstar.losses.self_taught import (
    FORMS,
    MIXINGS,
    SelfTaughtLossConfig,
    SelfTaughtParts,
    TargetStatistics,
    self_taught_loss,
)

ROWS, DIM, TARGET = 6, 12, 5
NAMES = ("projected", "targets", "features", "anchor", "weights")


def inputs(seed: int = 0, rows: int = ROWS) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)

    def some(width: int) -> Tensor:
        return torch.randn(rows, width, generator=draw)

    return {
        "projected": some(TARGET).requires_grad_(),
        "targets": some(TARGET),
        "features": some(DIM).requires_grad_(),
        "anchor": some(DIM).requires_grad_(),
        "weights": torch.rand(rows, generator=draw) + 0.5,
    }


def loss_of(given_: dict[str, Tensor], **settings_: Any) -> SelfTaughtParts:
    statistics = settings_.pop("statistics", None)
    total = settings_.pop("total_weight", given_["weights"].sum())
    return self_taught_loss(
        *(given_[name] for name in NAMES),
        total_weight=total,
        config=SelfTaughtLossConfig(**settings_),
        statistics=statistics,
    )


def number(value: Tensor) -> float:
    return float(value.detach())


def reference(form: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if form == "cosine":
        return 1 - (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    d = np.abs(x - y)
    by_form = {"l1": d, "l2": d**2, "smooth_l1": np.where(d < 1, d**2 / 2, d - 0.5)}
    return by_form[form].mean(1)


@settings(max_examples=40, deadline=None)
@given(
    a=st.sampled_from(FORMS),
    b=st.sampled_from(FORMS),
    mixing=st.sampled_from(MIXINGS),
    balance=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_it_is_the_formula(a: str, b: str, mixing: str, balance: float, seed: int) -> None:
    given_ = inputs(seed)
    found = loss_of(given_, a=a, b=b, mixing=mixing, balance=balance)
    x = {name: value.detach().double().numpy() for name, value in given_.items()}
    share = x["weights"] / x["weights"].sum()
    loss_a = (share * reference(a, x["projected"], x["targets"])).sum()
    loss_b = (share * reference(b, x["features"], x["anchor"])).sum()
    total = {
        "a_plus_lambda_b": loss_a + balance * loss_b,
        "one_minus_lambda": (1 - balance) * loss_a + balance * loss_b,
        "lambda_a": balance * loss_a + (1 - balance) * loss_b,
    }[mixing]
    assert number(found.total) == pytest.approx(total, rel=1e-5, abs=1e-6)
    assert number(found.a) == pytest.approx(loss_a, rel=1e-5, abs=1e-6)
    assert float(found.b) == pytest.approx(loss_b, rel=1e-5, abs=1e-6)
    cosine = 1 - reference("cosine", x["projected"], x["targets"])
    assert float(found.cosine_a) == pytest.approx((share * cosine).sum(), rel=1e-4, abs=1e-5)


def test_the_defaults_are_the_papers_lambda_and_cosines() -> None:
    config = SelfTaughtLossConfig()
    assert (config.a, config.b, config.balance, config.mixing) == (
        *("cosine", "cosine"),
        *(0.6, "a_plus_lambda_b"),
    )


def gradients(part: str, **settings_: Any) -> dict[str, Tensor]:
    given_ = inputs()
    parts = loss_of(given_, **settings_)
    parts.total.backward()
    return {
        name: torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in given_.items()
    }


@pytest.mark.parametrize(
    ("mixing", "balance", "left"),
    [
        ("a_plus_lambda_b", 0.0, "a"),
        ("one_minus_lambda", 0.0, "a"),
        ("lambda_a", 1.0, "a"),
        ("one_minus_lambda", 1.0, "b"),
        ("lambda_a", 0.0, "b"),
    ],
)
def test_at_the_ends_of_lambda_only_one_loss_is_left(
    mixing: str, balance: float, left: str
) -> None:
    found = loss_of(inputs(), mixing=mixing, balance=balance)
    assert number(found.total) == pytest.approx(number(getattr(found, left)))
    slopes = gradients("total", mixing=mixing, balance=balance)
    gone = "features" if left == "a" else "projected"
    assert not slopes[gone].any()
    assert slopes["projected" if left == "a" else "features"].any()


@settings(max_examples=15, deadline=None)
@given(small=st.floats(1e-6, 1e-3), mixing=st.sampled_from(["a_plus_lambda_b", "one_minus_lambda"]))
def test_towards_lambda_zero_it_tends_to_a(small: float, mixing: str) -> None:
    found = loss_of(inputs(), mixing=mixing, balance=small)
    assert abs(number(found.total) - number(found.a)) <= small * 4 + 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_the_anchor_and_the_targets_get_no_gradient(form: str) -> None:
    given_ = inputs()
    loss_of(given_, a=form, b=form).total.backward()
    assert given_["anchor"].grad is None
    assert given_["features"].grad is not None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("standardise", [False, True])
def test_rows_without_weight_contribute_nothing_whatever_their_target(
    form: str, standardise: bool
) -> None:
    whole = inputs(rows=4)
    more = inputs(seed=5, rows=3)
    statistics = TargetStatistics(mean=torch.full((TARGET,), 0.5), std=torch.full((TARGET,), 2.0))
    both = {}
    for name in NAMES:
        joined = torch.cat([whole[name].detach(), more[name].detach()])
        both[name] = joined.requires_grad_(whole[name].requires_grad)
    both["weights"][4:] = 0
    both["targets"][4:] = torch.nan
    options: dict[str, Any] = {"a": form, "b": form, "standardise": standardise}
    alone = loss_of(whole, **options, statistics=statistics)
    padded = loss_of(both, **options, statistics=statistics)
    for name in ("total", "a", "b", "cosine_a", "cosine_b"):
        torch.testing.assert_close(getattr(padded, name), getattr(alone, name))
    alone.total.backward()
    padded.total.backward()
    for name in ("projected", "features"):
        grad = both[name].grad
        assert grad is not None
        torch.testing.assert_close(grad[:4], whole[name].grad)
        assert not grad[4:].any()


def test_nothing_but_padding_gives_zero_and_no_gradient() -> None:
    given_ = inputs()
    given_["weights"] = torch.zeros(ROWS)
    found = loss_of(given_)
    found.total.backward()
    assert number(found.total) == 0
    assert given_["projected"].grad is not None
    assert not given_["projected"].grad.any()


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(0, ROWS))
def test_passes_add_up_to_the_whole_batch(cut: int) -> None:
    given_ = inputs()
    total = given_["weights"].sum()
    whole = loss_of(given_)
    parts = [
        loss_of({name: value[rows] for name, value in given_.items()}, total_weight=total)
        for rows in (slice(0, cut), slice(cut, ROWS))
    ]
    for name in ("total", "a", "b", "cosine_a", "cosine_b"):
        summed = sum(number(getattr(part, name)) for part in parts)
        assert summed == pytest.approx(number(getattr(whole, name)), rel=1e-5, abs=1e-6)


def test_standardised_targets_have_mean_0_and_deviation_1_in_each_dimension() -> None:
    targets = torch.randn(500, TARGET) * torch.arange(1.0, TARGET + 1) + 7
    targets[:, 2] = 3.0  # a dimension that never changes
    statistics = TargetStatistics(mean=targets.mean(0), std=targets.std(0))
    found = statistics.standardise(targets.half())
    others = [0, 1, 3, 4]
    torch.testing.assert_close(found.mean(0)[others], torch.zeros(4), atol=2e-3, rtol=0)
    torch.testing.assert_close(found.std(0)[others], torch.ones(4), atol=2e-3, rtol=0)
    assert torch.isfinite(found).all()


def test_it_is_float32_under_autocast_and_for_half_precision_inputs() -> None:
    given_ = {name: value.detach() for name, value in inputs().items()}
    coarse = {**given_, "features": given_["features"].bfloat16()}
    coarse["targets"] = given_["targets"].half()
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_of(coarse, a="l2", b="l2")
    expected = loss_of({name: value.float() for name, value in coarse.items()}, a="l2", b="l2")
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.total, expected.total, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "fields",
    [
        {"a": "dot"},
        {"b": "kl"},
        {"mixing": "sum"},
        {"balance": -0.1},
        {"balance": 1.5, "mixing": "one_minus_lambda"},
        {"balance": 1.5, "mixing": "lambda_a"},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        SelfTaughtLossConfig(**fields)
    SelfTaughtLossConfig(balance=1.5)
