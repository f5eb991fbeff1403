"""Cross-entropy with class weights against scikit-learn and numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from mstar.errors import ConfigError
from mstar.losses.classification import class_weights, cross_entropy


def drawn(seed: int, bags: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(bags, classes, generator=generator, dtype=torch.float64) * 3
    return logits, torch.randint(classes, (bags,), generator=generator)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(2, 6))
def test_cross_entropy_equals_scikit_learns(seed: int, bags: int, classes: int) -> None:
    logits, labels = drawn(seed, bags, classes)
    expected = log_loss(labels, logits.softmax(1), labels=range(classes))
    assert cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-9)
    rates = torch.rand(classes, dtype=torch.float64)
    of_bags = -logits.log_softmax(1).numpy()[np.arange(bags), labels]
    weighted = (rates.numpy()[labels] * of_bags).mean()
    assert cross_entropy(logits, labels, rates).item() == pytest.approx(weighted, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_balanced_weights_equal_scikit_learns(labels: list[int]) -> None:
    weights = class_weights(torch.tensor(labels), 6, "balanced")
    assert weights is not None
    present = np.unique(labels)
    expected = np.zeros(6)
    expected[present] = compute_class_weight("balanced", classes=present, y=labels)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert weights[labels].mean().item() == pytest.approx(1, rel=1e-5)


def test_weights_count_when_a_batch_is_one_bag() -> None:
    logits, labels = drawn(0, 12, 3)
    weights = class_weights(labels, 3, "balanced")
    alone = [cross_entropy(logits[[i]], labels[[i]], weights) for i in range(12)]
    torch.testing.assert_close(torch.stack(alone).mean(), cross_entropy(logits, labels, weights))


def test_no_weights_unless_asked_for() -> None:
    labels = torch.tensor([0, 1])
    assert class_weights(labels, 2, "none") is None
    with pytest.raises(ConfigError, match="none or balanced, got 'even'"):
        class_weights(labels, 2, "even")


def test_precision_is_single_under_autocast() -> None:
    logits, labels = (part[:5] for part in drawn(1, 5, 3))
    half = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy(half, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cross_entropy(half.float(), labels))
