"""One optimiser step of stage 2, on one rank.

The rank's patches go through student and anchor in passes of `micro_batch`; gradients are
accumulated, averaged over ranks and clipped by the engine; then the anchor follows once. The loss
is divided by the weight of the whole step's rows, over all passes and ranks, so that one rank and
many, one pass and many, take the same step. Every rank has equally many rows, and so passes; those
missing are padding of weight 0.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from mstar.data.shards.decode import PatchBatch
from mstar.errors import TrainingError
from mstar.losses.self_taught import (
    SelfTaughtLossConfig,
    SelfTaughtParts,
    TargetStatistics,
    self_taught_loss,
)
from mstar.models.ema import Ema, momentum_at
from mstar.models.student import Student
from mstar.pretrain.stage2_config import Stage2Config
from mstar.training.engines import Engine, autocast, rank, world_size
from mstar.training.layer_decay import adamw_by_layer
from mstar.training.optimizers import set_rates, warmup_cosine
from mstar.training.seeds import reseed

SUMS = ("loss", "loss.a", "loss.b", "cosine.a", "cosine.b")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepBatch:
    """One rank's patches of a step, as they were stored; on the CPU or on the device.

    weights: 1, or 0 for padding and rows that cannot be used.
    """

    images: UInt8[Tensor, "patch side side 3"]
    targets: Float[Tensor, "patch target"]
    weights: Float[Tensor, " patch"]

    @classmethod
    def of(cls, batch: PatchBatch) -> "StepBatch":
        """A decoded batch, in the memory where it lies."""
        return cls(
            images=torch.from_numpy(batch.pixels),
            targets=torch.from_numpy(batch.targets),
            weights=torch.from_numpy(batch.weights),
        )

    def __len__(self) -> int:
        """Rows, padding included."""
        return len(self.weights)

    def passes(self, size: int) -> Iterator["StepBatch"]:
        """The rows in order, at most `size` at a time."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield StepBatch(
                images=self.images[rows], targets=self.targets[rows], weights=self.weights[rows]
            )


@dataclass(slots=True, kw_only=True)
class Stage2Steps:
    """The steps of a run; `take` is what `training.loop.Loop` calls with a step's batch.

    num_steps: of the whole run, which the schedules are stretched over.
    statistics: of the targets, for a loss that standardises them.
    """

    engine: Engine
    ema: Ema
    config: Stage2Config
    num_steps: int
    statistics: TargetStatistics | None = None

    def take(self, step: int, batch: StepBatch) -> dict[str, float]:
        """Step number `step` (the first is 0) and its numbers. Collective."""
        config = self.config
        factor = warmup_cosine(self.num_steps, config.optimizer)(step)
        set_rates(self.engine.optimizer, factor)
        momentum = momentum_at(step, self.num_steps, config.ema)
        found = stage2_step(
            self.engine,
            self.ema,
            batch,
            loss=config.loss,
            statistics=self.statistics,
            micro_batch=config.micro_batch,
            momentum=momentum,
            precision=config.engine.precision,
            seed=config.seed,
            step=step,
        )
        return {**found, "lr": config.lr * factor, "ema.momentum": momentum}


def stage2_step(
    engine: Engine,
    ema: Ema,
    batch: StepBatch,
    *,
    loss: SelfTaughtLossConfig,
    statistics: TargetStatistics | None,
    micro_batch: int,
    momentum: float,
    precision: str,
    seed: int = 0,
    step: int = 0,
) -> dict[str, float]:
    """One optimiser step over this rank's rows. Collective; equally many rows on every rank.

    Args:
        engine: around a `Student`.
        ema: the anchor, updated at the end.
        batch: this rank's rows.
        loss: forms and balance.
        statistics: of the targets, where they are standardised.
        micro_batch: rows of one pass.
        momentum: of the anchor's update.
        precision: bf16 or fp32, of both forward passes.
        seed: of what drop_path draws.
        step: number of the step, which is drawn for and named in errors.

    Returns:
        The numbers of the whole step over all ranks: loss and its parts, cosines, rows, gradient
        norm before clipping.

    Raises:
        TrainingError: the gradient is not finite; neither student nor anchor is to be kept.
    """
    student = engine.module
    assert isinstance(student, Student)
    student.train()
    total_weight = _over_ranks(batch.weights.to(student.device, torch.float32).sum())
    sums = torch.zeros(len(SUMS), device=student.device)
    passes = list(batch.passes(micro_batch))
    for place, rows in enumerate(passes):
        reseed("drop path", seed, step, rank(), place)
        parts = _forward(student, ema, rows, loss, statistics, total_weight, precision)
        # the engine averages over ranks, where the batch's loss is the sum of the ranks' shares
        engine.backward(parts.total * world_size(), last=place == len(passes) - 1)
        sums += torch.stack([parts.total.detach(), *_parts(parts)])
    norm = engine.step()
    found = dict(zip(SUMS, _over_ranks(sums).tolist(), strict=True))
    _refuse_broken(step, norm, found)
    ema.update(student.encoder, momentum)
    return {**found, "grad_norm": norm, "rows": float(total_weight)}


def build_optimizer(student: Student, config: Stage2Config) -> torch.optim.AdamW:
    """AdamW over the encoder, by layer, and the projection at its own rate."""
    heads: dict[str, nn.Module] = {"projection": student.proj}
    return adamw_by_layer(
        student.encoder,
        heads,
        rate=config.lr,
        head_rates={"projection": config.lr_projection},
        layer_decay=config.layer_decay,
        config=config.optimizer,
    )


def _forward(
    student: Student,
    ema: Ema,
    rows: StepBatch,
    loss: SelfTaughtLossConfig,
    statistics: TargetStatistics | None,
    total_weight: Tensor,
    precision: str,
) -> SelfTaughtParts:
    """Both branches on the same pixels, and the rows' share in the loss."""
    device = student.device
    images = student.prepare(rows.images)
    with autocast(device, precision):
        anchor = ema(images)
        output = student(images)
    return self_taught_loss(
        output.projected,
        rows.targets.to(device, non_blocking=True),
        output.features,
        anchor,
        rows.weights.to(device, non_blocking=True),
        total_weight=total_weight,
        config=loss,
        statistics=statistics,
    )


def _parts(parts: SelfTaughtParts) -> list[Tensor]:
    return [parts.a, parts.b, parts.cosine_a, parts.cosine_b]


def _over_ranks(values: Tensor) -> Tensor:
    """The sum over ranks."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def _refuse_broken(step: int, norm: float, found: dict[str, float]) -> None:
    if 0 <= norm < math.inf and math.isfinite(found["loss"]):  # -1 is DeepSpeed's word for NaN
        return
    raise TrainingError(
        f"step {step}: expected a finite loss and gradient, got loss {found['loss']:.4g} "
        f"(A {found['loss.a']:.4g}, B {found['loss.b']:.4g}) and gradient norm {norm:.4g}. The "
        "last checkpoint is kept; lower the learning rate, or bound it with --optimizer.grad-clip."
    )
