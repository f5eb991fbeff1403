"""Heads that read gene expression: sizes as published, their formulas, and bags of any size."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mstar.errors import ConfigError, FeatureError
from mstar.models.heads import (
    FUSION_HEADS,
    HEADS,
    GeneHead,
    GeneLayout,
    GroupedGenes,
    HeadOutput,
    build_head,
)
from mstar.models.heads.fusion import KroneckerFusion, LowRankFusion
from mstar.models.heads.gene_layers import GeneScale
from mstar.models.heads.mcat import Mcat
from mstar.models.heads.motcat import Motcat, mean_of_curves
from mstar.models.heads.transport import transport_plan
from support.head_bags import COLUMNS, DIM, LAYOUT, SMALL, call, packed, small_head

PAPER_GROUPS = (82, 328, 513, 443, 1536, 452)
PAPER = GeneLayout(genes=20_000, groups=PAPER_GROUPS)
BINS = 4
WITH_GENES = ("snn", *FUSION_HEADS)


def linear(inputs: int, outputs: int) -> int:
    """Parameters of a linear layer."""
    return inputs * outputs + outputs


def published(name: str) -> int:
    """Parameters at the paper's sizes: 1,024 features, 4 bins, 20,000 genes, 3,354 in groups."""
    attention = linear(256, 3 * 256) + linear(256, 256)  # multi-head, of dim 256
    gated = 2 * linear(256, 256) + linear(256, 1)
    concat = linear(512, 256) + linear(256, 256)
    classifier = linear(256, BINS)
    if name == "snn":
        return linear(sum(PAPER_GROUPS), 256) + linear(256, 256) + classifier
    if name == "porpoise":
        gate = linear(256, 32) + linear(512, 32) + linear(32, 32)
        low_rank = 2 * gate + 2 * 16 * 33 * BINS + 16 + BINS
        slide = linear(1024, 512) + 2 * linear(512, 256) + linear(256, 1) + linear(512, 256)
        return slide + linear(20_000, 256) + linear(256, 256) + low_rank
    if name == "cmta":
        nystrom = 2 * 256 + 256 * 3 * 256 + linear(256, 256) + 8 * 33
        coder = 2 * nystrom + 2 * 256 + 256  # final norm, CLS token
        grid = 256 * (49 + 25 + 9) + 3 * 256
        genes = sum(linear(size, 1024) + linear(1024, 256) for size in PAPER_GROUPS)
        slide = linear(1024, 256) + linear(256, 256)
        return slide + genes + 4 * coder + 2 * grid + 2 * attention + concat + classifier
    genes = sum(linear(size, 256) + linear(256, 256) for size in PAPER_GROUPS)
    layer = attention + linear(256, 512) + linear(512, 256) + 2 * 2 * 256
    pooling = 2 * layer + gated + linear(256, 256)
    co_attention = attention if name == "mcat" else 0
    return linear(1024, 256) + genes + co_attention + 2 * pooling + concat + classifier


def paper_head(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_head(name, {}, input_dim=1024, num_outputs=BINS, genes=PAPER)


def some_genes(bags: int, layout: GeneLayout = PAPER, seed: int = 0) -> GroupedGenes:
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.normal(5.0, 2.0, (bags, layout.genes)).astype(np.float32))
    columns = tuple(torch.from_numpy(rng.permutation(layout.genes)[:n]) for n in layout.groups)
    return GroupedGenes(values=values, columns=columns)


@pytest.mark.parametrize("name", WITH_GENES)
def test_parameters_and_output_are_as_published(name: str) -> None:
    head = paper_head(name)
    assert isinstance(head, GeneHead)
    assert sum(p.numel() for p in head.parameters()) == published(name)
    x, offsets = packed((3, 1), dim=1024)
    output = head.eval()(x, offsets, None, some_genes(2))
    assert output.logits.shape == (2, BINS)
    shape = None if output.attention is None else tuple(output.attention.shape)
    assert shape == {"mcat": (4, 6), "motcat": (4, 6), "porpoise": (4,)}.get(name)


def test_bilinear_mcat_has_the_published_sizes() -> None:
    head = build_head("mcat", {"fusion": "bilinear"}, input_dim=8, num_outputs=BINS, genes=LAYOUT)
    assert isinstance(head, Mcat)
    assert isinstance(head.fusion, KroneckerFusion)
    gate = linear(256, 32) + linear(512, 32) + linear(32, 32)
    joint = linear(33 * 33, 256) + linear(256, 256)
    assert sum(p.numel() for p in head.fusion.parameters()) == 2 * gate + joint


def finite_step(name: str, patches: int) -> HeadOutput:
    """A training step on one bag: all gradients are finite, and some reach features and genes."""
    torch.manual_seed(1)
    head = build_head(name, {}, input_dim=32, num_outputs=BINS, genes=LAYOUT).train()
    x, offsets = packed((patches,), dim=32)
    x.requires_grad_()
    output: HeadOutput = head(x, offsets, None, some_genes(1, LAYOUT))
    loss = output.logits.square().sum()
    if output.chunks:
        loss = loss + output.chunks[0].square().sum()
    (loss if output.extra_loss is None else loss + output.extra_loss).backward()
    gradients = {n: p.grad for n, p in head.named_parameters() if p.grad is not None}
    assert all(bool(g.isfinite().all()) for g in gradients.values())
    assert any("genes" in n or "scale" in n or "network" in n for n in gradients)
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert float(x.grad.abs().sum()) > 0
    return output


@pytest.mark.parametrize("name", FUSION_HEADS)
def test_gradients_of_a_bag_of_one_patch_are_finite(name: str) -> None:
    finite_step(name, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUSION_HEADS)
def test_gradients_of_a_bag_of_50_000_patches_are_finite(name: str) -> None:
    output = finite_step(name, 50_000)
    assert (output.chunks is not None) == (name == "motcat")


@pytest.mark.parametrize("name", WITH_GENES)
def test_genes_that_were_not_built_for_are_refused(name: str) -> None:
    head = build_head(name, SMALL[name], input_dim=DIM, num_outputs=3, genes=LAYOUT)
    x, offsets = packed((2, 2))
    good = some_genes(2, LAYOUT)
    fewer = GroupedGenes(values=good.values[:, :-1], columns=good.columns)
    with pytest.raises(FeatureError, match="made for 12 genes, got 11"):
        head(x, offsets, None, fewer)
    with pytest.raises(FeatureError, match="reads gene expression, got none"):
        head(x, offsets)
    with pytest.raises(FeatureError, match="a row for each of 2 bags, got 1"):
        head(x, offsets, None, GroupedGenes(values=good.values[:1], columns=good.columns))
    if HEADS[name].genes == "groups":
        swapped = GroupedGenes(values=good.values, columns=good.columns[::-1])
        with pytest.raises(FeatureError, match=r"groups of \[3, 2, 1, 2, 2, 1\] genes, got \[1, 2"):
            head(x, offsets, None, swapped)


@pytest.mark.parametrize("name", WITH_GENES)
def test_a_head_without_its_genes_is_not_built(name: str) -> None:
    with pytest.raises(ConfigError, match="reads gene expression, and this task has none"):
        build_head(name, {}, input_dim=DIM, num_outputs=BINS)
    if HEADS[name].genes == "groups":
        with pytest.raises(ConfigError, match="reads genes in groups"):
            build_head(name, {}, input_dim=DIM, num_outputs=BINS, genes=GeneLayout(genes=12))


def test_genes_are_scaled_by_what_was_learnt() -> None:
    rng = np.random.default_rng(0)
    seen = rng.normal(3.0, 2.0, (50, 4)).astype(np.float32)
    seen[:, 1] = 7.0  # constant
    seen[3, 2] = np.nan  # not measured in one case
    scale = GeneScale(GeneLayout(genes=4))
    scale.learn(torch.from_numpy(seen))
    new = np.array([[3.0, 9.0, np.nan, 1.0]], np.float32)
    found = scale(GroupedGenes(values=torch.from_numpy(new)))[0].numpy()
    expected = (new[0] - np.nanmean(seen, 0)) / np.where(
        np.arange(4) == 1, np.inf, np.nanstd(seen, 0)
    )
    np.testing.assert_allclose(found, np.nan_to_num(expected), rtol=1e-4, atol=1e-5)
    assert found[1] == found[2] == 0.0
    assert set(scale.state_dict()) == {"mean", "spread"}  # a saved head brings them along


def test_genes_that_are_all_missing_count_as_the_training_mean() -> None:
    scale = GeneScale(GeneLayout(genes=2))
    scale.learn(torch.tensor([[1.0, torch.nan], [3.0, torch.nan]]))
    values = torch.tensor([[2.0, 5.0], [torch.nan, torch.nan]])
    assert scale(GroupedGenes(values=values)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_low_rank_fusion_is_the_outer_product_in_few_terms() -> None:
    torch.manual_seed(0)
    fusion = LowRankFusion(16, 3, 4, 5, 0.0)
    slide, genes = torch.randn(2, 7, 16)
    first, second = fusion.gates(slide, genes)
    assert bool((first[:, -1] == 1).all())
    outer = torch.einsum("bi,bj->bij", first, second)
    weights = torch.einsum(
        "r,rio,rjo->ijo", fusion.weights[0], fusion.slide_factors, fusion.gene_factors
    )
    expected = torch.einsum("bij,ijo->bo", outer, weights) + fusion.bias
    torch.testing.assert_close(fusion(slide, genes), expected, rtol=1e-4, atol=1e-5)


def test_co_attention_is_a_softmax_over_the_patches() -> None:
    head = small_head("mcat", Path())
    assert isinstance(head, Mcat)
    patches, groups = torch.randn(9, 16), torch.randn(6, 16)
    found, weights = head.meet(patches, groups)
    attention = head.meet.attention
    query, key, value = (
        rows @ w.T + b
        for rows, w, b in zip(
            (groups, patches, patches),
            attention.in_proj_weight.chunk(3),
            attention.in_proj_bias.chunk(3),
            strict=True,
        )
    )
    expected = (query @ key.T / 4).softmax(1)  # sqrt(16)
    torch.testing.assert_close(weights, expected.T, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found, attention.out_proj(expected @ value), rtol=1e-4, atol=1e-5)


def reference_plan(cost: np.ndarray, reg: float, tau: float) -> np.ndarray:
    """The scaling iterations of Chizat et al. 2018, written out."""
    a, b = (np.full(size, 1 / size) for size in cost.shape)
    kernel = np.exp(-cost / reg) * np.outer(a, b)
    u, v = np.ones_like(a), np.ones_like(b)
    for _ in range(5000):
        u = (a / (kernel @ v)) ** (tau / (tau + reg))
        v = (b / (kernel.T @ u)) ** (tau / (tau + reg))
    return u[:, None] * kernel * v[None]


@pytest.mark.parametrize(("reg", "tau"), [(0.1, 0.5), (0.5, 2.0)])
def test_the_transport_plan_is_that_of_the_scaling_iterations(reg: float, tau: float) -> None:
    rng = np.random.default_rng(3)
    patches, groups = rng.normal(size=(40, 8)), rng.normal(size=(6, 8))
    shifted = [v - v.min(1, keepdims=True) for v in (patches, groups)]
    cost = ((shifted[0][:, None] - shifted[1][None]) ** 2).sum(2)
    found = transport_plan(torch.from_numpy(patches), torch.from_numpy(groups), reg, tau)
    expected = reference_plan(cost / cost.max(), reg, tau)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-3, atol=1e-7)
    assert 0.3 < float(found.sum()) < 1.05  # unbalanced: some of the mass stays


def test_transport_of_one_patch_that_equals_its_group() -> None:
    same = torch.full((1, 4), 2.0)
    plan = transport_plan(same, same.expand(6, -1), 0.1, 0.5)
    assert plan.shape == (1, 6)
    assert bool(plan.isfinite().all())


def in_chunks(patches: int) -> Motcat:
    options = {**SMALL["motcat"], "chunk_patches": patches}
    torch.manual_seed(3)
    head = build_head("motcat", options, input_dim=DIM, num_outputs=3, genes=LAYOUT)
    assert isinstance(head, Motcat)
    return head.eval()


@pytest.mark.parametrize("training", [False, True])
def test_large_bags_are_cut_into_near_equal_chunks(training: bool) -> None:
    x, offsets = packed((23, 4, 1))
    output = call(in_chunks(10).train(training), x, offsets)
    assert output.chunks is not None
    assert [len(chunk) for chunk in output.chunks] == [3, 1, 1]  # N // 10 + 1
    assert output.attention is not None
    for first, last in itertools.pairwise(offsets):
        sums = output.attention[first:last].sum(0)
        torch.testing.assert_close(sums, torch.ones(6), rtol=0, atol=1e-5)


def test_chunks_do_not_depend_on_the_pack_when_judging() -> None:
    head = in_chunks(10)
    x, offsets = packed((23, 35))
    together = call(head, x, offsets).logits
    alone = call(head, x[23:], torch.tensor([0, 35])).logits
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(call(head, x, offsets).logits, together)


def test_the_risk_of_a_bag_is_the_mean_risk_of_its_chunks() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)) * 2
    curves = (1 - logits.sigmoid()).cumprod(1)
    mean = mean_of_curves(logits)
    torch.testing.assert_close((1 - mean.sigmoid()).cumprod(0), curves.mean(0))
    assert torch.equal(mean_of_curves(logits[:1]), logits[0])
    certain = mean_of_curves(torch.full((2, 3), 80.0).requires_grad_())
    certain.sum().backward()
    assert bool(certain.isfinite().all())


def test_alignment_pulls_the_decoders_alone() -> None:
    """Encoders' CLS tokens are held fixed; encoders learn through what the decoders are told."""
    head = small_head("cmta", Path()).train()
    x, offsets = packed((7, 3))
    output = call(head, x, offsets)
    assert output.extra_loss is not None
    output.extra_loss.backward()
    assert head.get_parameter("slide_decoder.norm.weight").grad is not None
    assert head.get_parameter("classifier.weight").grad is None
    cls = head.get_parameter("slide_encoder.norm.bias").grad
    assert cls is not None  # through the patches that the genes ask
    assert call(head.eval(), x, offsets).extra_loss is None
    off = build_head(
        "cmta", {**SMALL["cmta"], "alignment": 0.0}, input_dim=DIM, num_outputs=3, genes=LAYOUT
    )
    assert call(off.train(), x, offsets).extra_loss is None


@pytest.mark.parametrize("mode", ["public", "masked"])
@pytest.mark.parametrize("attention", ["nystrom", "exact"])
def test_cmta_in_every_mode(mode: str, attention: str) -> None:
    options = {**SMALL["cmta"], "mode": mode, "attention": attention}
    torch.manual_seed(3)
    head = build_head("cmta", options, input_dim=DIM, num_outputs=3, genes=LAYOUT).train()
    x, offsets = packed((11, 1))
    output = call(head, x, offsets)
    (output.logits.sum() + output.extra_loss).backward()  # type: ignore[operator]
    assert all(bool(p.grad.isfinite().all()) for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", FUSION_HEADS)
def test_both_sides_count(name: str) -> None:
    head = small_head(name, Path())
    x, offsets = packed((8, 8))
    genes = some_genes(2, LAYOUT)
    genes = GroupedGenes(values=genes.values, columns=COLUMNS)
    plain: Tensor = head(x, offsets, None, genes).logits
    other = GroupedGenes(values=genes.values.flip(0), columns=COLUMNS)
    assert not torch.allclose(head(x, offsets, None, other).logits, plain, atol=1e-4)
    assert not torch.allclose(head(x * 2, offsets, None, genes).logits, plain, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("motcat", {"reg": 0.0}, "reg and tau above 0"),
        ("motcat", {"chunk_patches": 0}, "chunk_patches of at least 1"),
        ("cmta", {"heads": 3}, "heads that divide dim"),
        ("porpoise", {"fusion_scale": 7}, "scale 7: expected a divisor of 256"),
        ("porpoise", {"rank": 0}, "rank 0: expected 1 or more"),
        ("mcat", {"fusion": "sum"}, "expected concat, bilinear"),
        ("snn", {"genes": "some"}, "expected auto, groups, all"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    name: str, options: dict[str, object], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        build_head(name, options, input_dim=8, num_outputs=BINS, genes=LAYOUT)


def test_the_network_of_genes_takes_groups_or_all() -> None:
    sizes = {}
    for genes in ("auto", "groups", "all"):
        head = build_head("snn", {"genes": genes}, input_dim=8, num_outputs=BINS, genes=LAYOUT)
        sizes[genes] = next(p.shape[1] for p in head.parameters())
    assert sizes == {"auto": 11, "groups": 11, "all": 12}
    alone = build_head("snn", {}, input_dim=8, num_outputs=BINS, genes=GeneLayout(genes=12))
    assert next(p.shape[1] for p in alone.parameters()) == 12
    with pytest.raises(ConfigError, match="needs a signature table"):
        build_head(
            "snn", {"genes": "groups"}, input_dim=8, num_outputs=4, genes=GeneLayout(genes=9)
        )
