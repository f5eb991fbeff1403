"""What every head keeps to: packed equals one bag at a time, and bags do not see one another."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mstar.errors import FeatureError
from mstar.models.heads import HEADS, HeadOutput
from support.head_bags import (
    CLASSES,
    DIM,
    SIZES,
    call,
    labels_of,
    one_at_a_time,
    packed,
    small_head,
)

NAMES = tuple(HEADS)
TRAINED = tuple(name for name in NAMES if HEADS[name].trained)
WITH_ATTENTION = tuple(name for name in NAMES if HEADS[name].attention)
ORDERED = ("transmil", "transmil_plus", "cmta")
GENES_ALONE = "snn"
ORDER_FREE = tuple(name for name in NAMES if name not in ORDERED)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


def gradients(head: nn.Module, outputs: list[HeadOutput], pull: Tensor) -> dict[str, Tensor]:
    """Gradients of a weighted sum of all logits, and of the mean extra loss."""
    head.zero_grad()
    loss = (torch.cat([o.logits for o in outputs]) * pull).sum()
    extra = [o.extra_loss for o in outputs if o.extra_loss is not None]
    if extra:
        loss = loss + torch.stack(extra).mean()
    loss.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in head.named_parameters()
    }


@pytest.mark.parametrize("name", NAMES)
def test_packed_equals_one_bag_at_a_time(name: str, tmp_path: Path) -> None:
    head = small_head(name, tmp_path)
    x, offsets = packed()
    together, alone = call(head, x, offsets), one_at_a_time(head, x, offsets)
    close(together.logits, torch.cat([o.logits for o in alone]))
    assert together.logits.shape == (len(SIZES), 1 if name == "cox_linear" else CLASSES)
    assert (together.attention is not None) == HEADS[name].attention
    if together.attention is not None:
        close(
            together.attention, torch.cat([o.attention for o in alone if o.attention is not None])
        )


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_packed_equal_those_of_one_bag_at_a_time(name: str, tmp_path: Path) -> None:
    head = small_head(name, tmp_path).train()
    x, offsets = packed()
    labels = labels_of(len(SIZES))
    x.requires_grad_()
    together = [call(head, x, offsets, labels)]
    pull = torch.randn(together[0].logits.shape, generator=torch.Generator().manual_seed(5))
    found, of_x = gradients(head, together, pull), x.grad
    x.grad = None
    expected = gradients(head, one_at_a_time(head, x, offsets, labels), pull)
    assert any(bool(g.abs().max() > 1e-3) for g in expected.values())
    for parameter, gradient in expected.items():
        close(found[parameter], gradient)
    if name == GENES_ALONE:
        assert of_x is None
        return
    assert of_x is not None
    assert x.grad is not None
    close(of_x, x.grad)


@pytest.mark.parametrize("name", [name for name in NAMES if name != GENES_ALONE])
def test_a_broken_bag_does_not_touch_the_others(name: str, tmp_path: Path) -> None:
    head = small_head(name, tmp_path)
    x, offsets = packed()
    clean = call(head, x, offsets).logits
    x[offsets[1] : offsets[2]] = torch.nan
    broken = call(head, x, offsets).logits
    close(broken[[0, 2, 3]], clean[[0, 2, 3]])
    assert bool(broken[1].isnan().any())


@pytest.mark.parametrize("name", ORDER_FREE)
def test_the_order_of_the_patches_does_not_matter(name: str, tmp_path: Path) -> None:
    head = small_head(name, tmp_path)
    x, offsets = packed((23,))
    order = torch.randperm(23, generator=torch.Generator().manual_seed(2))
    straight, mixed = call(head, x, offsets), call(head, x[order], offsets)
    close(mixed.logits, straight.logits)
    if straight.attention is not None and mixed.attention is not None:
        close(mixed.attention, straight.attention[order])


@pytest.mark.parametrize("name", ORDERED)
def test_transmil_sees_the_order(name: str, tmp_path: Path) -> None:
    head = small_head(name, tmp_path)
    x, offsets = packed((23,))
    assert not torch.allclose(call(head, x.flip(0), offsets).logits, call(head, x, offsets).logits)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_bags_does_not_matter(name: str, tmp_path: Path) -> None:
    head = small_head(name, tmp_path)
    x, offsets = packed((9, 2, 30))
    bags = [x[a:b] for a, b in itertools.pairwise(offsets)]
    turned = call(head, torch.cat(bags[::-1]), torch.tensor([0, 30, 32, 41])).logits
    close(turned.flip(0), call(head, x, offsets).logits)


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_attention_sums_to_one_in_each_bag(name: str, tmp_path: Path) -> None:
    head = small_head(name, tmp_path)
    x, offsets = packed((1, 30, 4000))
    attention = call(head, x * 20, offsets).attention
    assert attention is not None
    assert bool((attention >= 0).all())
    for first, last in itertools.pairwise(offsets):
        sums = attention[first:last].double().sum(0)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_bag_of_one_patch_is_trained_and_judged(name: str, tmp_path: Path) -> None:
    head = small_head(name, tmp_path)
    x, offsets = packed((1,))
    output = call(head.train(HEADS[name].trained), x, offsets, torch.tensor([1]))
    assert bool(output.logits.isfinite().all())
    if HEADS[name].trained:
        loss = output.logits.square().sum()
        (loss if output.extra_loss is None else loss + output.extra_loss).backward()
        grads = [p.grad for p in head.parameters() if p.grad is not None]
        assert grads
        assert all(bool(g.isfinite().all()) for g in grads)


@pytest.mark.parametrize("name", NAMES)
def test_stored_half_precision_is_computed_in_single(name: str, tmp_path: Path) -> None:
    head = small_head(name, tmp_path)
    x, offsets = packed()
    half = call(head, x.half(), offsets).logits
    assert half.dtype == torch.float32
    close(half, call(head, x.half().float(), offsets).logits)


@pytest.mark.parametrize("name", TRAINED)
def test_bfloat16_autocast_is_near_single_precision(name: str, tmp_path: Path) -> None:
    head = small_head(name, tmp_path)
    x, offsets = packed()
    exact = call(head, x, offsets).logits.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = call(head, x, offsets).logits.detach().float()
    apart = (rough - exact).abs().max() / exact.abs().max()
    assert float(apart) < 0.05


@pytest.mark.parametrize("name", ["linear", "transmil"])
@pytest.mark.parametrize(
    ("offsets", "told"),
    [
        ([0, 5, 5, 10], r"expected 0, rising, up to 10.*got \[0, 5, 5, 10\]"),
        ([0, 5], "up to 10"),
        ([1, 10], "expected 0"),
        ([0, 12], "up to 10"),
        ([0], "rising"),
    ],
)
def test_offsets_that_cut_wrongly_are_refused(
    name: str, offsets: list[int], told: str, tmp_path: Path
) -> None:
    head = small_head(name, tmp_path)
    with pytest.raises(FeatureError, match=told):
        head(torch.zeros(10, DIM), torch.tensor(offsets), None)


@pytest.mark.parametrize("name", NAMES)
def test_features_of_another_encoder_are_refused(name: str, tmp_path: Path) -> None:
    head = small_head(name, tmp_path)
    with pytest.raises(FeatureError, match=f"features of {DIM} numbers, got {DIM + 1}"):
        call(head, torch.zeros(10, DIM + 1), torch.tensor([0, 10]))


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_state_gives_the_same_numbers(name: str, tmp_path: Path) -> None:
    head = small_head(name, tmp_path)
    fresh = small_head(name, tmp_path)
    for parameter in fresh.parameters():
        nn.init.constant_(parameter, 0.5)
    fresh.load_state_dict(head.state_dict())
    x, offsets = packed()
    assert torch.equal(call(fresh, x, offsets).logits, call(head, x, offsets).logits)
