"""InfoNCE against NumPy, missing members, and precision."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.losses.cases import CaseEmbeddings
from mstar.losses.contrastive import PAIRS, info_nce, pair_losses

SCALE = torch.tensor(10.0)


def numpy_info_nce(a: np.ndarray, b: np.ndarray, scale: float) -> float:
    a = a / np.linalg.norm(a, axis=1, keepdims=True)
    b = b / np.linalg.norm(b, axis=1, keepdims=True)
    total = 0.0
    for i in range(len(a)):
        to_b = [np.exp(scale * a[i] @ b[j]) for j in range(len(b))]
        to_a = [np.exp(scale * b[i] @ a[j]) for j in range(len(a))]
        total += np.log(to_b[i] / sum(to_b)) + np.log(to_a[i] / sum(to_a))
    return -total / (2 * len(a))


def random_cases(seed: int, has: list[tuple[bool, bool, bool]]) -> CaseEmbeddings:
    """NaN wherever a modality is absent: what stands there must not be looked at."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.tensor(has, dtype=torch.bool).reshape(-1, 3)
    vectors = torch.randn(3, len(has), 6, generator=generator)
    vectors = vectors.masked_fill(~masks.T[:, :, None], torch.nan)
    wsi, text, gene = (v.clone().requires_grad_() for v in vectors)
    return CaseEmbeddings(
        wsi=wsi,
        text=text,
        gene=gene,
        has_wsi=masks[:, 0],
        has_text=masks[:, 1],
        has_gene=masks[:, 2],
        cancer=torch.randint(0, 3, (len(has),), generator=generator),
    )


HAS = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=0, max_size=9)


@settings(max_examples=40, deadline=None)
@given(has=HAS, seed=st.integers(0, 99), scale=st.floats(0.5, 50))
def test_pairs_equal_the_reference_over_the_cases_that_have_both(
    has: list[tuple[bool, bool, bool]], seed: int, scale: float
) -> None:
    cases = random_cases(seed, has)
    losses, counts = pair_losses(cases, torch.tensor(scale))
    for name, (first, second) in PAIRS.items():
        both = (cases.has(first) & cases.has(second)).numpy()
        assert counts[name] == both.sum()
        assert (name in losses) == (both.sum() >= 2)
        if name in losses:
            a, b = (cases.vectors(m).detach().double().numpy()[both] for m in (first, second))
            assert float(losses[name].detach()) == pytest.approx(
                numpy_info_nce(a, b, scale), rel=1e-4, abs=1e-5
            )


def test_gradients_reach_present_rows_only() -> None:
    cases = random_cases(0, [(True, True, True), (True, True, False), (True, False, True)] * 2)
    losses, _ = pair_losses(cases, SCALE)
    torch.stack(list(losses.values())).sum().backward()
    for modality in ("wsi", "text", "gene"):
        gradient = cases.vectors(modality).grad
        assert gradient is not None
        moved = gradient.abs().sum(1) > 0
        assert torch.equal(moved, cases.has(modality))


def test_gradients_equal_finite_differences() -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    info_nce(a, b, SCALE).backward()
    step = 1e-4
    for tensor, own in ((a, lambda t: (t, b)), (b, lambda t: (a, t))):
        nudged = tensor.detach().clone()
        nudged[2, 3] += step
        up = numpy_info_nce(*(t.detach().numpy() for t in own(nudged)), 10)
        nudged[2, 3] -= 2 * step
        down = numpy_info_nce(*(t.detach().numpy() for t in own(nudged)), 10)
        assert tensor.grad is not None
        assert float(tensor.grad[2, 3]) == pytest.approx((up - down) / (2 * step), abs=1e-4)


def test_unrelated_vectors_lose_log_n_and_equal_ones_nothing() -> None:
    same = torch.ones(8, 5)
    assert float(info_nce(same, same, SCALE)) == pytest.approx(math.log(8), rel=1e-6)
    apart = torch.eye(8)
    assert float(info_nce(apart, apart, torch.tensor(100.0))) == pytest.approx(0, abs=1e-6)


def test_both_directions_count_and_length_does_not() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 6, 5)
    torch.testing.assert_close(info_nce(a, b, SCALE), info_nce(b, a, SCALE))
    torch.testing.assert_close(info_nce(a, b, SCALE), info_nce(a * 3, b / 7, SCALE))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(info_nce(a, b, SCALE), info_nce(a[order], b[order], SCALE))


def test_temperature_gets_a_gradient() -> None:
    torch.manual_seed(0)
    scale = torch.tensor(10.0, requires_grad=True)
    info_nce(*torch.randn(2, 6, 5), scale).backward()
    assert scale.grad is not None
    assert float(scale.grad.abs()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_under_autocast(dtype: torch.dtype) -> None:
    """At a scale of 100 a bfloat16 cosine would be off by half a logit."""
    torch.manual_seed(0)
    a = torch.randn(16, 64)
    b = (a + 0.3 * torch.randn(16, 64)).to(dtype)
    a = a.to(dtype)
    expected = info_nce(a.float(), b.float(), torch.tensor(100.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = info_nce(a, b, torch.tensor(100.0))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
