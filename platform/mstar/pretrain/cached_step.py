"""One optimiser step over a contrastive batch of any size, in the memory of a few cases.

Plain gradient accumulation would shrink the set of negatives to a chunk. Here (after Gao et al.
2021, GradCache) the vectors of all chunks are computed first without keeping activations; the loss
of the whole batch, over all ranks, gives each vector's gradient; then every chunk is computed again
and takes its vectors' gradients back into the parameters. Dropout is the same both times, since
every chunk has a seed of its own; FAVOR+ is redrawn once per step, before the first pass. Only the
chunk at work is on the device.

With a single chunk nothing is computed twice.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mstar.errors import TrainingError
from mstar.losses.cases import MODALITIES, CaseEmbeddings
from mstar.losses.gather import gather_cases
from mstar.losses.stage1 import LossParts
from mstar.models.multimodal import MultimodalBatch, MultimodalModel, MultimodalOutput
from mstar.training.engines import Engine, autocast
from mstar.training.seeds import reseed

LossOf = Callable[[CaseEmbeddings, Float[Tensor, ""]], LossParts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A few cases that go through the model together; possibly none.

    case_ids and cancer: of the batch's cases, in their order.
    """

    batch: MultimodalBatch
    case_ids: tuple[str, ...]
    cancer: Int64[Tensor, " case"]


def cached_step(
    engine: Engine,
    chunks: Sequence[Chunk],
    loss_of: LossOf,
    *,
    seed: int,
    step: int,
    rank: int,
    precision: str,
) -> tuple[LossParts, CaseEmbeddings, float]:
    """One optimiser step; all ranks pass equally many chunks.

    Returns:
        The loss of the whole batch, its embeddings (of all ranks, detached), the gradient's norm.

    Raises:
        TrainingError: a case's vector, or the gradient, is not finite.
    """
    model = engine.module
    assert isinstance(model, MultimodalModel)
    device = model.logit_scale.log_scale.device
    model.train()
    model.redraw(step)

    def forward(place: int) -> MultimodalOutput:
        reseed("dropout", seed, step, rank, place)
        with autocast(device, precision):
            output: MultimodalOutput = model(on_device(chunks[place].batch, device))
        return output

    if len(chunks) == 1:
        output = forward(0)
        mine = _embeddings([output], chunks)
        refuse_nan(mine, chunks, step)
        cases = gather_cases(mine)
        parts = loss_of(cases, output.logit_scale)
        engine.backward(parts.total + 0 * output.logit_scale, last=True)
    else:
        parts, cases = _cached_backward(engine, chunks, forward, loss_of, step)
    norm = engine.step()
    if not 0 <= norm < math.inf:  # the parameters are spoilt; -1 is DeepSpeed's word for NaN
        raise TrainingError(
            f"step {step}: expected a finite gradient, got norm {norm} with loss "
            f"{float(parts.total.detach()):.4g}. The last checkpoint is kept; lower the learning "
            "rate, or set a bound with --optimizer.grad-clip."
        )
    model.logit_scale.clamp_()
    return parts, _detached(cases), norm


def _cached_backward(
    engine: Engine,
    chunks: Sequence[Chunk],
    forward: Callable[[int], MultimodalOutput],
    loss_of: LossOf,
    step: int,
) -> tuple[LossParts, CaseEmbeddings]:
    """Vectors first, the whole batch's loss, then every chunk again with its gradients."""
    with torch.no_grad():
        outputs = [forward(place) for place in range(len(chunks))]
    mine = _embeddings(outputs, chunks)
    refuse_nan(mine, chunks, step)
    for name in MODALITIES:
        mine.vectors(name).requires_grad_()
    scale = outputs[0].logit_scale.detach().requires_grad_()
    cases = gather_cases(mine)
    parts = loss_of(cases, scale)
    parts.total.backward()  # type: ignore[no-untyped-call]
    gradients = {name: mine.vectors(name).grad for name in MODALITIES}
    start = 0
    for place, chunk in enumerate(chunks):
        stop = start + len(chunk.case_ids)
        output = forward(place)
        last = place == len(chunks) - 1
        assert scale.grad is not None, "the loss reaches the scale"
        surrogate = output.logit_scale * (scale.grad * float(last))
        for name in MODALITIES:
            gradient = gradients[name]
            assert gradient is not None, "the loss reaches every vector"
            surrogate = surrogate + (getattr(output, name) * gradient[start:stop]).sum()
        engine.backward(surrogate, last=last)
        start = stop
    return parts, cases


def on_device(batch: MultimodalBatch, device: torch.device) -> MultimodalBatch:
    """The batch on a device; features travel as stored and become float32 there."""
    values: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    moved: dict[str, Any] = {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in values.items()
    }
    moved["bags"] = None if batch.bags is None else moved["bags"].float()
    return MultimodalBatch(**moved)


def _embeddings(outputs: Sequence[MultimodalOutput], chunks: Sequence[Chunk]) -> CaseEmbeddings:
    fields = {name: torch.cat([getattr(o, name) for o in outputs]) for name in MODALITIES}
    has = {f"has_{n}": torch.cat([getattr(o, f"has_{n}") for o in outputs]) for n in MODALITIES}
    device = outputs[0].wsi.device
    return CaseEmbeddings(
        **fields, **has, cancer=torch.cat([chunk.cancer for chunk in chunks]).to(device)
    )


def _detached(cases: CaseEmbeddings) -> CaseEmbeddings:
    names = (*MODALITIES, *(f"has_{name}" for name in MODALITIES), "cancer")
    return CaseEmbeddings(**{name: getattr(cases, name).detach() for name in names})


def refuse_nan(cases: CaseEmbeddings, chunks: Sequence[Chunk], step: int) -> None:
    """Raises TrainingError naming the cases whose vectors are not finite."""
    ids = [case_id for chunk in chunks for case_id in chunk.case_ids]
    for name in MODALITIES:
        broken = (~torch.isfinite(cases.vectors(name).detach())).any(1).nonzero().flatten()
        if len(broken):
            named = ", ".join(ids[place] for place in broken[:5].tolist())
            raise TrainingError(
                f"step {step}: expected finite {name} vectors, got NaN or infinity for "
                f"{len(broken)} cases ({named}). Look at these cases' inputs; if all of a batch "
                "are named, lower the learning rate."
            )


def loss_metrics(parts: LossParts, scale: float, norm: float) -> Mapping[str, float]:
    """The numbers of a step for the log."""
    return {
        "loss": float(parts.total.detach()),
        **{f"loss.{name}": float(value.detach()) for name, value in parts.parts.items()},
        **{f"pairs.{name}": float(count) for name, count in parts.counts.items()},
        "logit_scale": scale,
        "grad_norm": norm,
    }
