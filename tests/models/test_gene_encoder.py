"""The gene encoder against performer-pytorch, and its random features."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from performer_pytorch import FastAttention, Performer
from torch import Tensor

from mstar.errors import ConfigError, FeatureError
from mstar.models.favor import draw_projection, favor_attention
from mstar.models.gene_encoder import GeneEncoder, GeneEncoderConfig

SMALL = {"num_genes": 30, "dim": 40, "heads": 4, "head_dim": 16, "random_features": 44}


def make(seed: int = 0, **fields: object) -> GeneEncoder:
    torch.manual_seed(seed)
    config = GeneEncoderConfig(**{**SMALL, **fields})  # type: ignore[arg-type]
    return GeneEncoder(config, torch.randn(config.num_genes, config.dim))


def expression_ids(cases: int = 3, genes: int = 30, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 6, (cases, genes)))


def package_output(model: GeneEncoder, ids: Tensor) -> Tensor:
    """The same weights in the package's own Performer, every token through every layer."""
    config = model.config
    performer = Performer(
        dim=config.dim,
        depth=config.depth,
        heads=config.heads,
        dim_head=config.head_dim,
        nb_features=config.random_features,
        qkv_bias=False,
        auto_check_redraw=False,
    )
    missing, unexpected = performer.load_state_dict(  # the very same parameters, not copies
        model.performer.state_dict(keep_vars=True), strict=False, assign=True
    )
    assert not unexpected
    assert all(k.endswith("projection_matrix") or "proj_updater" in k for k in missing)
    for layer, projection in zip(performer.net.layers, model.projections, strict=True):
        layer[0].fn.fast_attention.projection_matrix.copy_(projection)
    names = torch.cat([model.gene_table, torch.zeros(1, config.dim)])
    ids = torch.cat([ids, torch.zeros(len(ids), 1, dtype=torch.int64)], dim=1)
    tokens = performer(names + model.expression(ids))
    result: Tensor = model.proj_gene(model.norm(tokens[:, -1]))
    return result


def test_parameters_are_as_many_as_published() -> None:
    model = GeneEncoder(GeneEncoderConfig(), torch.zeros(17_425, 200))
    assert sum(p.numel() for p in model.parameters()) == 938_712
    assert model.gene_table.shape == (17_425, 200)
    assert model.projections.shape == (1, int(64 * np.log(64)), 64)
    assert sum(v.numel() for v in model.state_dict().values()) == 938_712 + 3_485_000 + 17_024 + 1


@pytest.mark.parametrize("depth", [1, 3])
def test_equals_the_packages_performer(depth: int) -> None:
    """Though only the CLS token's query is computed in the last layer."""
    model = make(depth=depth).eval()
    ids = expression_ids()
    torch.testing.assert_close(model(ids), package_output(model, ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2])
def test_gradients_equal_the_packages_with_and_without_checkpoints(depth: int) -> None:
    ids, weights = expression_ids(), torch.randn(3, 512)
    gradients = []
    for checkpoint_cases, by_package in ((0, True), (0, False), (1, False), (2, False)):
        model = make(depth=depth, checkpoint_cases=checkpoint_cases).train()
        output = package_output(model, ids) if by_package else model(ids)
        (output * weights).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for other in gradients[2:]:
        torch.testing.assert_close(other, gradients[1], rtol=1e-5, atol=1e-5)
    for name, gradient in gradients[1].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradient, gradients[0][name], rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("queries", [1, 7])
def test_attention_equals_the_packages(queries: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 16) for n in (queries, 20, 20))
    theirs = FastAttention(16, nb_features=44)
    expected = theirs(q, k, v)
    found = favor_attention(q, k, v, theirs.projection_matrix)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_attention_approximates_softmax() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, n, 16) * 0.5 for n in (5, 50, 50))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    projection = draw_projection((0,), 4096, 16)
    assert (favor_attention(q, k, v, projection) - exact).abs().max() < 0.02


def test_attention_is_float32_under_autocast() -> None:
    """Keys of a size at which half-precision exponents would already be wrong by far."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 16) * 4 for n in (1, 20, 20))
    projection = draw_projection((0,), 44, 16)
    expected = favor_attention(q, k, v, projection)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = favor_attention(q, k, v, projection)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_model_runs_under_autocast() -> None:
    model, ids = make().train(), expression_ids()
    expected = model(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(ids)
        found.float().square().sum().backward()
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_projections_are_orthogonal_in_blocks_with_gaussian_lengths() -> None:
    rows = draw_projection((3, 1), 200, 64).double()
    directions = rows / rows.norm(dim=1, keepdim=True)
    for start in (0, 64, 128):
        block = directions[start : start + 64]
        torch.testing.assert_close(
            block @ block.T, torch.eye(len(block), dtype=torch.float64), rtol=0, atol=1e-6
        )
    lengths = rows.norm(dim=1)  # of a Gaussian vector: chi with 64 degrees, 7.97 ± 0.70
    assert 7.7 < float(lengths.mean()) < 8.2
    assert 0.5 < float(lengths.std()) < 0.9


def test_projections_depend_on_their_seed_alone() -> None:
    """Not on the global generator, and not on the process."""
    torch.manual_seed(1)
    first = draw_projection((0, 5, 0), 44, 16)
    state = torch.get_rng_state()
    assert torch.equal(draw_projection((0, 5, 0), 44, 16), first)
    assert torch.equal(torch.get_rng_state(), state)
    for other in ((1, 5, 0), (0, 6, 0), (0, 5, 1)):
        assert not torch.equal(draw_projection(other, 44, 16), first)


@pytest.mark.slow
def test_projections_are_equal_in_another_process() -> None:
    code = (
        "import torch; torch.manual_seed(99); from mstar.models.favor import draw_projection;"
        "print(draw_projection((0, 5, 0), 44, 16).numpy().tobytes().hex())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == draw_projection((0, 5, 0), 44, 16).numpy().tobytes().hex()


def test_redrawing_follows_the_optimisers_steps() -> None:
    model = make(redraw_every=10).train()
    drawn = [step for step in range(35) if model.redraw(step) or model.redraw(step)]
    assert drawn == [10, 20, 30]
    assert not make(redraw_every=0).train().redraw(5000)


def test_redrawing_is_the_same_on_every_rank_and_after_a_resume() -> None:
    """Other global generators, another history, the same step: the same projections."""
    one, other = make(seed=0, redraw_every=10).train(), make(seed=1, redraw_every=10).train()
    assert torch.equal(one.projections, other.projections)
    first = one.projections.clone()
    for step in range(25):
        one.redraw(step)
    other.redraw(24)
    assert torch.equal(one.projections, other.projections)
    assert not torch.equal(one.projections, first)
    resumed = make(seed=2, redraw_every=10).train()
    resumed.load_state_dict(one.state_dict())
    assert torch.equal(resumed.projections, one.projections)
    assert not resumed.redraw(25)
    assert resumed.redraw(30)


def test_forward_calls_and_evaluation_never_redraw() -> None:
    model = make(redraw_every=1).train()
    before = model.projections.clone()
    for _ in range(3):
        model(expression_ids())
    model.eval()
    assert not model.redraw(50)
    assert torch.equal(model.projections, before)


def test_place_of_the_cls_token_changes_nothing_else() -> None:
    leading, trailing = make(cls_token="leading", depth=2), make(cls_token="trailing", depth=2)
    leading.load_state_dict(trailing.state_dict())
    ids = expression_ids()
    torch.testing.assert_close(leading(ids), trailing(ids), rtol=1e-4, atol=1e-5)


def test_a_case_does_not_depend_on_its_batch() -> None:
    model, ids = make().eval(), expression_ids(4)
    alone = torch.cat([model(row[None]) for row in ids])
    torch.testing.assert_close(model(ids), alone, rtol=1e-5, atol=1e-6)


def test_genes_are_told_apart_by_their_names() -> None:
    """The same ids on other genes give another vector, unless the names move along."""
    model, ids = make().eval(), expression_ids(1)
    order = torch.randperm(30)
    assert not torch.allclose(model(ids[:, order]), model(ids), atol=1e-3)
    moved = make().eval()
    moved.load_state_dict(model.state_dict())
    moved.gene_table.copy_(model.gene_table[order])
    torch.testing.assert_close(moved(ids[:, order]), model(ids), rtol=1e-4, atol=1e-5)


def test_name_vectors_are_trained_only_when_learned() -> None:
    frozen, learned = make(gene_vectors="frozen"), make(gene_vectors="learned")
    assert "gene_table" not in dict(frozen.named_parameters())
    learned.train()(expression_ids()).sum().backward()
    assert learned.gene_table.grad is not None
    assert float(learned.gene_table.grad.abs().sum()) > 0
    without = GeneEncoder(GeneEncoderConfig(**SMALL, gene_vectors="learned"))  # type: ignore[arg-type]
    assert float(without.gene_table.detach().norm(dim=1).mean()) == pytest.approx(1, abs=0.2)


def test_wrong_vectors_and_rows_are_refused() -> None:
    config = GeneEncoderConfig(**SMALL)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="frozen, and none are given"):
        GeneEncoder(config)
    with pytest.raises(ConfigError, match=r"expected 30 × 40 numbers, got 29 × 40"):
        GeneEncoder(config, torch.zeros(29, 40))
    with pytest.raises(FeatureError, match="expects rows of 30 genes, got 29"):
        make()(expression_ids(genes=29))
