"""The multimodal model: whichever modalities a batch has, rows by case, and the temperature."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mstar.errors import ConfigError
from mstar.models.aggregator import Aggregator, AggregatorConfig
from mstar.models.gene_encoder import GeneEncoder, GeneEncoderConfig
from mstar.models.multimodal import LogitScale, MultimodalBatch, MultimodalModel
from mstar.models.text_encoder import TextEncoder, TextEncoderConfig, pretrained_text_encoder
from support.tiny_bert import write_tiny_bert

DIM = 32
PARTS = ("wsi", "text", "gene")


def make_aggregator(dim: int = DIM) -> Aggregator:
    return Aggregator(AggregatorConfig(input_dim=24, dim=dim, heads=4, landmarks=8))


def make_gene_encoder() -> GeneEncoder:
    config = GeneEncoderConfig(
        num_genes=30, dim=40, heads=4, head_dim=16, random_features=44, output_dim=DIM
    )
    return GeneEncoder(config, torch.randn(30, 40))


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    folder: Path = write_tiny_bert(tmp_path_factory.mktemp("bert"), ["a"], hidden=32)
    return pretrained_text_encoder(TextEncoderConfig(name=str(folder), output_dim=DIM))


@pytest.fixture(scope="module")
def model(text_encoder: TextEncoder) -> MultimodalModel:
    torch.manual_seed(0)
    return MultimodalModel(make_aggregator(), text_encoder, make_gene_encoder()).eval()


def batch_of(num_cases: int, wsi: list[int], text: list[int], gene: list[int]) -> MultimodalBatch:
    """A batch whose rows depend on their case alone."""

    def rows(cases: list[int], make: object) -> Tensor | None:
        drawn = [make(torch.Generator().manual_seed(case)) for case in cases]  # type: ignore[operator]
        return torch.stack(drawn) if cases else None

    return MultimodalBatch(
        num_cases=num_cases,
        bags=rows(wsi, lambda g: torch.randn(20, 24, generator=g)),
        bag_mask=torch.ones(len(wsi), 20, dtype=torch.bool) if wsi else None,
        bag_cases=torch.tensor(wsi) if wsi else None,
        tokens=rows(text, lambda g: torch.randint(5, 60, (7,), generator=g)),
        token_mask=torch.ones(len(text), 7, dtype=torch.bool) if text else None,
        token_cases=torch.tensor(text) if text else None,
        expression=rows(gene, lambda g: torch.randint(0, 6, (30,), generator=g)),
        expression_cases=torch.tensor(gene) if gene else None,
    )


CASES = st.permutations(range(4)).flatmap(
    lambda order: st.integers(0, 4).map(lambda n: list(order)[:n])
)


@settings(max_examples=25, deadline=None)
@given(wsi=CASES, text=CASES, gene=CASES)
def test_rows_stand_at_their_cases_and_absent_ones_are_zero(
    model: MultimodalModel, wsi: list[int], text: list[int], gene: list[int]
) -> None:
    """The vector of a case is the same whatever else is in the batch, in any order."""
    with torch.no_grad():
        output = model(batch_of(4, wsi, text, gene))
        complete = model(batch_of(4, [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]))
    for name, cases in zip(PARTS, (wsi, text, gene), strict=True):
        vectors, has = getattr(output, name), getattr(output, f"has_{name}")
        assert vectors.shape == (4, DIM)
        assert vectors.dtype == torch.float32
        assert has.nonzero().flatten().tolist() == sorted(cases)
        assert (vectors[~has] == 0).all()
        expected = getattr(complete, name)[has]
        torch.testing.assert_close(vectors[has], expected, rtol=1e-4, atol=1e-5)


def test_absent_modalities_get_gradients_of_zero(model: MultimodalModel) -> None:
    """None would leave this rank out of a reduction the others take part in."""
    model.zero_grad()
    output = model(batch_of(3, [0, 2], [0, 1], []))
    (output.wsi.sum() + output.text.sum() + output.gene.sum() + output.logit_scale).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.gene_encoder is not None
    assert all((p.grad == 0).all() for p in model.gene_encoder.parameters() if p.grad is not None)
    assert model.aggregator is not None
    assert all((p.grad != 0).any() for p in model.aggregator.layer1.parameters())  # type: ignore[union-attr]
    model.zero_grad()


def test_a_modality_can_be_left_out_of_the_model(text_encoder: TextEncoder) -> None:
    model = MultimodalModel(make_aggregator(), text_encoder, None)
    output = model(batch_of(3, [0, 1], [1, 2], []))
    assert not output.has_gene.any()
    assert output.gene.shape == (3, DIM)
    assert not any("gene" in name for name in model.state_dict())
    assert not model.redraw(1000)
    with pytest.raises(ConfigError, match="has RNA, and the model no encoder"):
        model(batch_of(3, [0], [1], [2]))


def test_encoders_have_to_go_together(text_encoder: TextEncoder) -> None:
    with pytest.raises(ConfigError, match="got aggregator 64, text encoder 32"):
        MultimodalModel(make_aggregator(64), text_encoder, None)
    with pytest.raises(ConfigError, match="expected two or three encoders"):
        MultimodalModel(None, text_encoder, None)


def test_output_is_float32_under_autocast(model: MultimodalModel) -> None:
    batch = batch_of(2, [0, 1], [0, 1], [0, 1])
    with torch.no_grad():
        expected = model(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(batch)
    for name in (*PARTS, "logit_scale"):
        assert getattr(output, name).dtype == torch.float32
        torch.testing.assert_close(
            getattr(output, name), getattr(expected, name), rtol=0.1, atol=0.1
        )


def test_redrawing_reaches_the_gene_encoder(model: MultimodalModel) -> None:
    assert model.train().redraw(1000)
    assert model.redraw(0)
    model.eval()


def test_batches_and_outputs_are_frozen(model: MultimodalModel) -> None:
    batch = batch_of(2, [0], [0], [0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.num_cases = 3  # type: ignore[misc]


def test_temperature_starts_at_clips_and_is_clamped() -> None:
    scale = LogitScale()
    assert float(scale().detach()) == pytest.approx(1 / 0.07, rel=1e-6)
    assert not scale.at_clamp()
    with torch.no_grad():
        scale.log_scale.fill_(10.0)
    assert float(scale().detach()) == pytest.approx(100, rel=1e-5)
    assert scale.at_clamp()
    scale.clamp_()
    assert float(scale.log_scale.detach()) == pytest.approx(math.log(100))


def test_temperature_can_leave_the_clamp() -> None:
    """A clamp that stops the gradient would hold it there for ever."""
    scale = LogitScale(initial=200.0)
    optimiser = torch.optim.SGD(scale.parameters(), lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        scale().backward()
        optimiser.step()
        scale.clamp_()
    assert float(scale().detach()) < 99
