"""A small model trained through an engine on any number of ranks, and the same by hand.

Rank 0 of two meets only rows of branch `a`, rank 1 only rows of branch `b`, and nobody uses `idle`:
what a contrastive batch with missing modalities does to parameters.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mstar.models.multimodal import zero_of
from mstar.training.engines import (
    Engine,
    EngineConfig,
    make_engine,
    rank,
    world_size,
)
from mstar.training.optimizers import OptimizerConfig, adamw, set_rates, warmup_cosine

STEPS, ROWS, PASSES, PEAK = 6, 8, 2, 1e-2
GRAD_CLIP = 1.0  # exceeded at some steps, not at others


class Branches(nn.Module):
    """Even rows take one branch, odd rows the other."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b, self.idle = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 2)
        self.register_buffer("offset", torch.randn(16))

    def forward(self, rows: Tensor, odd: Tensor) -> Tensor:
        hidden = torch.zeros(len(rows), 16)
        for branch, mine in ((self.a, ~odd), (self.b, odd)):
            if mine.any():
                hidden = hidden.index_copy(0, mine.nonzero().flatten(), branch(rows[mine]))
        return self.head(torch.tanh(self.norm(hidden + self.offset)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Where a run ended: parameters, and the gradient's norm at each of its steps."""

    parameters: dict[str, Tensor]
    norms: tuple[float, ...]


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Rows of a step, larger every second step so that clipping comes and goes."""
    generator = torch.Generator().manual_seed(100 + step)
    return (
        torch.randn(ROWS, 8, generator=generator) * 3,
        torch.arange(ROWS) % 2 == 1,
    )


def loss_of(model: nn.Module, rows: Tensor, odd: Tensor, step: int) -> Tensor:
    """Summed over the rows given, divided by the rows of the whole step."""
    strength = 4.0 if step % 2 else 0.3
    return (model(rows, odd) ** 2).sum() * strength / ROWS


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    return adamw({"model": model}, {"model": PEAK}, OptimizerConfig())


def set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    set_rates(optimizer, warmup_cosine(STEPS, OptimizerConfig())(step))


def by_hand(grad_clip: float = GRAD_CLIP) -> Trained:
    """One process, the whole batch at once, torch alone."""
    model = Branches()
    optimizer = optimizer_of(model)
    norms = []
    for step in range(STEPS):
        set_step(optimizer, step)
        (loss_of(model, *batch(step), step) + zero_of(model.parameters())).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))
        if grad_clip and norm > grad_clip:
            for gradient in gradients:
                gradient *= grad_clip / norm
        optimizer.step()
        optimizer.zero_grad()
        norms.append(float(norm))
    return Trained(parameters=parameters_of(model), norms=tuple(norms))


def start(
    config: EngineConfig, *, resume: Path | None = None, grad_clip: float = GRAD_CLIP
) -> Engine:
    """An engine whose ranks drew different parameters, or one read from a checkpoint."""
    model = Branches(seed=rank() if resume is None else 7)
    return make_engine(model, optimizer_of(model), config, grad_clip=grad_clip, resume=resume)


def advance(engine: Engine, first: int, last: int) -> Trained:
    """Steps [first, last), several backward passes each."""
    norms = []
    for step in range(first, last):
        set_step(engine.optimizer, step)
        rows, odd = (part[rank() :: world_size()] for part in batch(step))
        for place in range(PASSES):
            mine = slice(place, None, PASSES)
            loss = loss_of(engine.module, rows[mine], odd[mine], step) * world_size()
            engine.backward(loss, last=place == PASSES - 1)
        norms.append(engine.step())
    return Trained(parameters=parameters_of(engine.module), norms=tuple(norms))


def save_merged(engine: Engine, folder: Path) -> None:
    """Every rank saves into a folder of its own, as under Ray; the files are then merged."""
    own = folder.with_name(f"{folder.name}-rank{rank()}")
    own.mkdir(parents=True)
    engine.save(own)
    dist.barrier()
    if rank() == 0:
        parts = [folder.with_name(f"{folder.name}-rank{r}") for r in range(world_size())]
        names = [p.relative_to(part) for part in parts for p in part.rglob("*") if p.is_file()]
        assert len(names) == len(set(names)), "two ranks wrote one file"
        for part in parts:
            shutil.copytree(part, folder, dirs_exist_ok=True)
    dist.barrier()


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.state_dict().items()}


def assert_close(left: Trained, right: Trained, *, rtol: float = 1e-5, atol: float = 2e-6) -> None:
    """Equal to float32 rounding; Adam's division makes the smallest gradients count fully."""
    torch.testing.assert_close(left.parameters, right.parameters, rtol=rtol, atol=atol)
    torch.testing.assert_close(left.norms, right.norms, rtol=1e-5, atol=1e-6)


def assert_equal(left: Trained, right: Trained) -> None:
    """Equal to the bit."""
    for name, value in left.parameters.items():
        assert torch.equal(value, right.parameters[name]), name
    assert left.norms == right.norms
