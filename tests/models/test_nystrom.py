"""Nyström attention: against the package, exact attention and the true inverse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nystrom_attention import NystromAttention as PackageAttention
from torch import Tensor

from mstar.models.nystrom import NystromAttention, landmark_slots, pseudo_inverse


def make(**fields: object) -> NystromAttention:
    torch.manual_seed(0)
    settings = {
        "dim": 32,
        "heads": 4,
        "landmarks": 8,
        "inverse_iterations": 6,
        "dropout": 0.0,
        "mode": "public",
        "attention": "nystrom",
        "inverse_scale": "bag",
    }
    return NystromAttention(**{**settings, **fields}).eval()  # type: ignore[arg-type]


def package_like(ours: NystromAttention) -> PackageAttention:
    theirs = PackageAttention(
        dim=32, dim_head=8, heads=4, num_landmarks=ours.landmarks, pinv_iterations=6
    )
    theirs.load_state_dict(ours.state_dict())
    return theirs.eval()


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(1, 70), scale=st.floats(0.1, 2))
def test_public_mode_equals_the_package(tokens: int, scale: float) -> None:
    ours = make()
    x = torch.randn(1, tokens, 32) * scale
    torch.testing.assert_close(ours(x), package_like(ours)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [8, 29, 31, 40, 62])
def test_masked_mode_equals_the_package_with_a_mask_where_no_landmark_is_empty(tokens: int) -> None:
    ours = make(mode="masked")
    assert landmark_slots(torch.tensor([tokens]), 8)[1].any(2).all()
    x = torch.randn(1, tokens, 32)
    expected = package_like(ours)(x, mask=torch.ones(1, tokens, dtype=torch.bool))
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)


def test_modes_agree_where_nothing_is_padded() -> None:
    x = torch.randn(2, 64, 32)
    torch.testing.assert_close(make()(x), make(mode="masked")(x), rtol=1e-5, atol=1e-5)


def test_landmarks_of_single_tokens_give_exact_attention() -> None:
    """With a landmark per token, A · pinv(A) · A is A."""
    x = torch.randn(2, 8, 32)
    nystrom = make(mode="masked", inverse_iterations=30)(x)
    torch.testing.assert_close(nystrom, make(attention="exact")(x), rtol=1e-3, atol=1e-4)


def test_exact_attention_equals_softmax_written_out() -> None:
    layer = make(attention="exact")
    x = torch.randn(2, 21, 32)
    q, k, v = layer.to_qkv(x).view(2, 21, 3, 4, 8).permute(2, 0, 3, 1, 4)
    mixed = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v + layer.res_conv(v)
    expected = layer.to_out(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=4), landmarks=st.integers(1, 12))
def test_every_token_is_in_one_landmark_and_in_order(lengths: list[int], landmarks: int) -> None:
    slots, taken = landmark_slots(torch.tensor(lengths), landmarks)
    assert slots.shape[:2] == (len(lengths), landmarks)
    for row, length in enumerate(lengths):
        assert slots[row][taken[row]].tolist() == list(range(length))
        groups = taken[row].sum(1)
        assert (groups[taken[row].any(1)][1:] == -(-length // landmarks)).all()


def softmax_matrices(seed: int, peakiness: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 3, 8, 8, generator=generator) + 3 * torch.eye(8)
    return (peakiness * scores).softmax(-1)


def test_pseudo_inverse_converges_to_the_true_one() -> None:
    matrices = softmax_matrices(0, 1.0)
    found = pseudo_inverse(matrices, 30, scale="bag")
    torch.testing.assert_close(found, torch.linalg.pinv(matrices), rtol=1e-3, atol=1e-3)


def test_pseudo_inverse_leaves_zero_rows_and_columns_alone() -> None:
    matrices = softmax_matrices(0, 1.0)
    framed = torch.nn.functional.pad(matrices, (2, 0, 2, 0))
    found = pseudo_inverse(framed, 6, scale="bag")
    assert (found[..., :2, :] == 0).all()
    assert (found[..., :2] == 0).all()
    torch.testing.assert_close(
        found[..., 2:, 2:], pseudo_inverse(matrices, 6, scale="bag"), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("mode", ["public", "masked"])
def test_inverse_stays_float32_under_autocast(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit what it is without autocast, from the same landmarks."""
    layer = make(mode=mode)
    ql, kl, summary = (torch.randn(2, 4, 8, 8) for _ in range(3))
    alive = torch.ones(2, 8, dtype=torch.bool) if mode == "masked" else None
    expected = layer._inverse_times(ql, kl, summary, alive)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer._inverse_times(ql, kl, summary, alive)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert (ql @ kl).dtype == torch.float32  # the island ends where it should
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (ql @ kl).dtype == torch.bfloat16


@pytest.mark.parametrize("attention", ["nystrom", "exact"])
@pytest.mark.parametrize("mode", ["public", "masked"])
def test_autocast_changes_results_by_rounding_only(mode: str, attention: str) -> None:
    layer = make(mode=mode, attention=attention)
    x = torch.randn(2, 50, 32)
    lengths = torch.tensor([50, 20]) if mode == "masked" else None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = layer(x, lengths)
    torch.testing.assert_close(rounded.float(), layer(x, lengths), rtol=0.1, atol=0.05)
