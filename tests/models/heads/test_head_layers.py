"""The feature layer against its three parts, and its dropout."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from mstar.errors import ConfigError
from mstar.models.heads.layers import BLOCK_ROWS, FeatureLayer, random_bytes

ROWS = 2 * BLOCK_ROWS + 77


def layer_and_rows(dropout: float, rows: int = ROWS) -> tuple[FeatureLayer, Tensor]:
    torch.manual_seed(0)
    return FeatureLayer(6, 40, dropout), torch.randn(rows, 6)


def test_it_is_linear_and_relu_with_their_gradients() -> None:
    layer, x = layer_and_rows(0.0)
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    plain = nn.Linear(6, 40)
    plain.load_state_dict(layer.linear.state_dict())
    found, expected = layer(own), relu(plain(other))
    torch.testing.assert_close(found, expected)
    pull = torch.randn(ROWS, 40)
    (found * pull).sum().backward()
    (expected * pull).sum().backward()
    torch.testing.assert_close(own.grad, other.grad)
    for name in ("weight", "bias"):
        mine, theirs = getattr(layer.linear, name).grad, getattr(plain, name).grad
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)


def test_dropped_numbers_are_zero_the_others_scaled_and_nothing_is_dropped_in_evaluation() -> None:
    layer, x = layer_and_rows(0.25)
    out, whole = layer(x), relu(layer.linear(x))
    kept, positive = out > 0, whole > 0
    assert bool((positive | ~kept).all())
    torch.testing.assert_close(out[kept], whole[kept] / 0.75)
    assert float(kept.sum() / positive.sum()) == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(layer.eval()(x), whole)


def test_the_gradient_passes_where_the_result_is_positive() -> None:
    layer, x = layer_and_rows(0.5)
    x.requires_grad_()
    out, pull = layer(x), torch.randn(ROWS, 40)
    (out * pull).sum().backward()
    passed = pull * (out > 0) * 2
    assert x.grad is not None
    torch.testing.assert_close(x.grad, passed @ layer.linear.weight)
    assert layer.linear.weight.grad is not None
    torch.testing.assert_close(
        layer.linear.weight.grad, passed.T @ x.detach(), rtol=1e-4, atol=1e-3
    )


def test_gelu_has_ordinary_dropout() -> None:
    torch.manual_seed(0)
    layer = FeatureLayer(6, 40, 0.25, "gelu")
    x = torch.randn(500, 6)
    whole = nn.functional.gelu(layer.linear(x))
    out = layer(x)
    kept = out != 0
    torch.testing.assert_close(out[kept], whole[kept] / 0.75)
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.02)


def test_the_rate_is_refused_when_it_cannot_be() -> None:
    for rate in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="dropout"):
            FeatureLayer(4, 4, rate)


def test_random_bytes_take_every_value_and_follow_the_seed() -> None:
    torch.manual_seed(1)
    drawn = random_bytes(torch.Size([101, 997]))
    counts = drawn.flatten().bincount(minlength=256).double()
    expected = drawn.numel() / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 150 < chi_square < 380  # 255 ± 22.6 for even ones
    torch.manual_seed(1)
    assert torch.equal(random_bytes(torch.Size([101, 997])), drawn)
