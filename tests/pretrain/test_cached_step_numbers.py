"""Numbers of a cached step: NaN ends it by name, the temperature is bounded, metrics are named."""

import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from mstar.errors import TrainingError
from mstar.losses.cases import MODALITIES, CaseEmbeddings
from mstar.losses.stage1 import LossParts
from mstar.models.multimodal import MultimodalBatch, MultimodalModel
from mstar.pretrain.cached_step import Chunk, LossOf, cached_step, loss_metrics, on_device
from support.stage1_steps import (
    CASES,
    LAYOUTS,
    SEED,
    STEP,
    chunk_of,
    loss_of,
    make_engine,
    make_model,
    step_of,
)
from support.threads import one_thread


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums of a few numbers: threads would only wait for one another."""
    with one_thread():
        yield


@pytest.mark.parametrize("num_chunks", [1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_case_with_nan_is_named_and_nothing_is_updated(num_chunks: int, value: float) -> None:
    model = make_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    cases = [CASES] if num_chunks == 1 else [CASES[:5], CASES[5:]]
    chunks = [chunk_of(some) for some in cases]
    place = chunks[-1].case_ids.index("case-7")
    bags, bag_cases = chunks[-1].batch.bags, chunks[-1].batch.bag_cases
    assert bags is not None
    assert bag_cases is not None
    bags[int((bag_cases == place).nonzero())] = value
    with pytest.raises(TrainingError, match=r"step 7: expected finite wsi vectors.*\(case-7\)"):
        step_of(model, chunks, rate=0.1)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_gradient_that_is_not_finite_ends_the_run() -> None:
    """The loss may be finite all the same; such parameters must not reach a checkpoint."""

    def broken(cases: CaseEmbeddings, scale: Tensor) -> LossParts:
        total = loss_of(cases, scale).total + (cases.wsi * 0).sum().sqrt()
        return LossParts(total=total, parts={}, counts={}, skipped=())

    engine = make_engine(make_model())
    with pytest.raises(TrainingError, match=r"step 7: expected a finite gradient, got norm"):
        cached_step(
            engine, [chunk_of(CASES)], broken, seed=SEED, step=STEP, rank=0, precision="fp32"
        )


@pytest.mark.parametrize("layout", ["one chunk", "unequal"])
def test_the_temperature_has_the_slope_of_the_loss(layout: str) -> None:
    chunks = [chunk_of(cases) for cases in LAYOUTS[layout]]

    def loss_at(log_scale: float) -> float:
        model = make_model(dropout=0.0)
        model.logit_scale.log_scale.data.fill_(log_scale)
        with torch.no_grad():
            return float(plain_loss(model, chunks))

    model = make_model(dropout=0.0)
    slope = step_of(model, chunks)[1]["logit_scale.log_scale"]
    at = math.log(1 / 0.07)
    assert float(slope) == pytest.approx((loss_at(at + 1e-2) - loss_at(at - 1e-2)) / 2e-2, rel=1e-2)


@pytest.mark.parametrize("layout", ["one chunk", "unequal"])
def test_the_temperature_stays_below_its_bound_and_can_leave_it(layout: str) -> None:
    def pushes(sign: float) -> LossOf:
        def push(cases: CaseEmbeddings, scale: Tensor) -> LossParts:
            total = loss_of(cases, scale).total * 0 + sign * scale
            return LossParts(total=total, parts={}, counts={}, skipped=())

        return push

    chunks, model = [chunk_of(cases) for cases in LAYOUTS[layout]], make_model()
    scale = model.logit_scale.log_scale
    scale.data.fill_(math.log(99))
    step_of(model, chunks, rate=0.01, loss=pushes(-1))
    assert float(scale.detach()) == pytest.approx(math.log(100))
    gradients = step_of(model, chunks, rate=0.01, loss=pushes(1))[1]
    assert float(gradients["logit_scale.log_scale"]) == pytest.approx(100, rel=1e-5)
    assert float(scale.detach()) == pytest.approx(math.log(100) - 1, rel=1e-5)


def plain_loss(model: MultimodalModel, chunks: Sequence[Chunk]) -> Tensor:
    model.train()
    model.redraw(STEP)
    outputs = [model(on_device(chunk.batch, torch.device("cpu"))) for chunk in chunks]
    names = (*MODALITIES, *(f"has_{name}" for name in MODALITIES))
    cases = CaseEmbeddings(
        **{name: torch.cat([getattr(output, name) for output in outputs]) for name in names},
        cancer=torch.cat([chunk.cancer for chunk in chunks]),
    )
    return loss_of(cases, outputs[0].logit_scale).total


def test_features_travel_as_stored() -> None:
    batch = chunk_of(CASES).batch
    moved = on_device(batch, torch.device("cpu"))
    assert batch.bags is not None
    assert moved.bags is not None
    assert (batch.bags.dtype, moved.bags.dtype) == (torch.float16, torch.float32)
    assert moved.num_cases == batch.num_cases
    assert on_device(MultimodalBatch(num_cases=0), torch.device("meta")).bags is None


def test_the_numbers_of_a_step_are_named() -> None:
    engine = make_engine(make_model())
    parts, _, norm = cached_step(
        engine, [chunk_of(CASES)], loss_of, seed=SEED, step=STEP, rank=0, precision="fp32"
    )
    found = loss_metrics(parts, 14.0, norm)
    pairs = {"wsi_text": 8.0, "wsi_gene": 7.0, "text_gene": 7.0}
    assert {name: found[f"pairs.{name}"] for name in pairs} == pairs
    total = sum(found[f"loss.{name}"] for name in (*pairs, "triplet"))
    assert found["loss"] == pytest.approx(total, rel=1e-5)
    assert (found["logit_scale"], found["grad_norm"]) == (14.0, norm)
