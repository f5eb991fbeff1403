"""The anchor of stage 2: an exponential moving average of the student's encoder.

The average is float32, whole on every rank and in evaluation mode (no dropout, no skipped blocks,
no gradient). Every rank holds the same full parameters after an optimiser step, so each updates its
own copy by one fused pass, without a message. Rank 0 writes it into checkpoints; on load it is sent
to the others. Why not split it like the optimiser's state: `docs/adr/0010`.

The projection f has no average: it exists to reach the teacher's space, the anchor guards p.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Float, Float32
from torch import Tensor, nn

from mstar.errors import CheckpointError, ConfigError
from mstar.models.loaded_encoder import forward_of
from mstar.models.student import Student, set_activation_checkpointing

EMA_FILE = "ema.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmaConfig:
    """How fast the anchor follows the student."""

    momentum: float = 0.996
    """Share of the anchor that an optimiser step keeps; 1 holds it fixed for ever. A choice."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """`cosine`: from `momentum` at the first step to 1 at the last. A choice."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        if not 0 <= self.momentum <= 1:
            raise ConfigError(f"--ema.momentum {self.momentum}: expected a number from 0 to 1")
        if self.schedule not in ("cosine", "constant"):
            raise ConfigError(f"--ema.schedule {self.schedule}: expected cosine or constant")


class Ema:
    """The average of a student's encoder on one rank."""

    def __init__(self, student: Student) -> None:
        """Starts equal to the student's encoder. Collective: all ranks start with rank 0's.

        The student is already on its device. Buffers are constants of a ViT and are not averaged.
        """
        module = copy.deepcopy(student.encoder).to(torch.float32)
        self.module: nn.Module = module.eval().requires_grad_(False)
        set_activation_checkpointing(self.module, False)
        self._forward: Callable[[Tensor], Tensor] = forward_of(
            student.spec, self.module, compiled=student.compiled
        )
        self._averaged: list[Tensor] = list(self.module.parameters())
        self._share()

    @torch.no_grad()
    def __call__(
        self, images: Float32[Tensor, "patch 3 input_px input_px"]
    ) -> Float[Tensor, "patch dim"]:
        """The anchor's features p̄ of prepared images; no gradient flows back."""
        return self._forward(images)

    @torch.no_grad()
    def update(self, encoder: nn.Module, momentum: float) -> None:
        """Move towards the encoder: ema ← momentum · ema + (1 − momentum) · encoder."""
        if momentum == 1 or not self._averaged:  # fixed measures have nothing to average
            return
        current: list[Tensor] = list(encoder.parameters())
        torch._foreach_lerp_(self._averaged, current, 1 - momentum)

    @torch.no_grad()
    def distance(self, encoder: nn.Module) -> float:
        """How far the encoder is from the average, relative to the average's norm."""
        if not self._averaged:
            return 0.0
        apart = torch.zeros((), dtype=torch.float64, device=self._averaged[0].device)
        size = apart.clone()
        for mine, theirs in zip(self._averaged, encoder.parameters(), strict=True):
            apart += (theirs - mine).square().sum()
            size += mine.square().sum()
        return math.sqrt(float(apart) / max(float(size), 1e-30))

    def save(self, folder: Path) -> None:
        """Write the average into a checkpoint; rank 0 does, all hold the same."""
        if _rank() == 0:
            torch.save(self.module.state_dict(), folder / EMA_FILE)

    def load(self, folder: Path | None) -> None:
        """Read back what `save` wrote and send it to all ranks. Collective.

        folder: only rank 0's is looked at.

        Raises:
            CheckpointError: the checkpoint has none, or one of another encoder; on all ranks.
        """
        problem = _read_into(self.module, folder) if _rank() == 0 else ""
        if _world_size() > 1:
            problems = [problem]
            dist.broadcast_object_list(problems, 0)
            problem = problems[0]
        if problem:
            raise CheckpointError(problem)
        self._share()

    def _share(self) -> None:
        if _world_size() > 1:
            for tensor in self.module.state_dict().values():
                dist.broadcast(tensor, 0)


def momentum_at(step: int, num_steps: int, config: EmaConfig) -> float:
    """The momentum of the update after a step, a function of the step alone."""
    if config.schedule == "constant":
        return config.momentum
    done = min(1.0, step / max(1, num_steps - 1))
    return 1 - (1 - config.momentum) * (1 + math.cos(math.pi * done)) / 2


def _read_into(module: nn.Module, folder: Path | None) -> str:
    """Fill a module from a checkpoint; what is wrong with that, else empty."""
    path = (folder or Path()) / EMA_FILE
    try:
        module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError) as error:
        return (
            f"{path}: expected the EMA copy of this encoder, got {str(error).splitlines()[0]} "
            "Name another checkpoint, or start afresh in another --out."
        )
    return ""


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
