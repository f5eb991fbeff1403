"""The sum of the parts: weights, what is skipped, and a backward pass that always works."""

import pytest
import torch

from mstar.errors import ConfigError
from mstar.losses.cases import CaseEmbeddings
from mstar.losses.contrastive import pair_losses
from mstar.losses.stage1 import LossConfig, stage1_loss
from mstar.losses.triplet import triplet_loss

SCALE = torch.tensor(10.0)


def make_cases(has_gene: int = 6, cases: int = 6) -> CaseEmbeddings:
    torch.manual_seed(0)
    all_have = torch.ones(cases, dtype=torch.bool)
    return CaseEmbeddings(
        wsi=torch.randn(cases, 6, requires_grad=True),
        text=torch.randn(cases, 6, requires_grad=True),
        gene=torch.randn(cases, 6, requires_grad=True),
        has_wsi=all_have,
        has_text=all_have,
        has_gene=torch.arange(cases) < has_gene,
        cancer=torch.arange(cases) % 2,
    )


def test_total_is_the_weighted_sum_of_the_parts() -> None:
    cases = make_cases()
    config = LossConfig(wsi_gene_weight=0.5, text_gene_weight=2.0, triplet_weight=3.0)
    found = stage1_loss(cases, SCALE, config)
    pairs, counts = pair_losses(cases, SCALE)
    triplet, anchors = triplet_loss(cases, margin=0.3, missing="same_set")
    assert triplet is not None
    expected = pairs["wsi_text"] + 0.5 * pairs["wsi_gene"] + 2 * pairs["text_gene"] + 3 * triplet
    torch.testing.assert_close(found.total, expected)
    assert list(found.parts) == ["wsi_text", "wsi_gene", "text_gene", "triplet"]
    assert found.counts == {**counts, "triplet": anchors}
    assert found.skipped == ()


def test_parts_of_weight_zero_are_left_out() -> None:
    found = stage1_loss(make_cases(), SCALE, LossConfig(triplet_weight=0.0, wsi_gene_weight=0.0))
    assert set(found.parts) == {"wsi_text", "text_gene"}
    assert found.skipped == ()


def test_pairs_with_too_few_cases_are_skipped_and_named() -> None:
    found = stage1_loss(make_cases(has_gene=1), SCALE, LossConfig())
    assert set(found.parts) == {"wsi_text", "triplet"}
    assert found.skipped == ("wsi_gene", "text_gene")
    assert found.counts["wsi_gene"] == 1


def test_a_batch_in_which_all_is_skipped_still_runs_backward() -> None:
    cases = make_cases(has_gene=0, cases=1)
    scale = torch.tensor(10.0, requires_grad=True)
    found = stage1_loss(cases, scale, LossConfig())
    assert len(found.skipped) == 4
    found.total.backward()
    assert float(found.total.detach()) == 0
    for tensor in (cases.wsi, cases.text, cases.gene, scale):
        assert tensor.grad is not None
        assert (tensor.grad == 0).all()


def test_rubbish_in_absent_rows_does_no_harm() -> None:
    cases = make_cases(has_gene=3)
    with torch.no_grad():
        cases.gene[3:] = torch.nan
    total = stage1_loss(cases, SCALE, LossConfig()).total
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(cases.gene.grad).all()  # type: ignore[arg-type]


def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"loss triplet: expected a number from 0 up, got -1"):
        LossConfig(triplet_weight=-1.0)
    with pytest.raises(ConfigError, match="loss margin: expected a number from 0 up, got nan"):
        LossConfig(triplet_margin=float("nan"))
    dropping = LossConfig()
    object.__setattr__(dropping, "triplet_missing", "drop")  # past the annotation
    with pytest.raises(ConfigError, match="expected same_set or zero_fill, got drop"):
        dropping.__post_init__()
