"""Engines: who turns losses into updated parameters, alone or over many ranks.

    plain       torch, one process, or replicas whose gradients are averaged once per step
    deepspeed   DeepSpeed ZeRO stage 0, 1 or 2: optimiser state (and gradients) split over the ranks

Parameters stay float32 in both; the forward pass runs under bfloat16 autocast where asked. The
bfloat16 engine of DeepSpeed would cast what must stay float32 (temperature, losses, Nyström's
inverse, FAVOR+).

A step may have several backward passes (`last=False` but for the final one). Gradients are averaged
over ranks once per step, after the last pass, in the order of the parameters: ranks may use
different parameters in different passes (a modality that some cases lack). What no pass of any rank
used has a gradient of zero.

A checkpoint says in `engine.json` what wrote it. DeepSpeed's can be gone on with at another number
of ranks or between ZeRO stages 1 and 2; the plain engine's at any number of ranks.
"""

import json
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mstar.errors import CheckpointError, ConfigError

_FACTS_FILE = "engine.json"
_PLAIN_FILE = "plain.pt"
_BUCKET_ELEMENTS = 25_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How a model is trained."""

    engine: Literal["deepspeed", "plain"] = "deepspeed"
    """DeepSpeed, or plain torch (replicas that average gradients)."""
    zero_stage: Literal[0, 1, 2] = 2
    """What DeepSpeed splits over the ranks: 0 nothing, 1 optimiser state, 2 gradients too."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Autocast of the forward pass; parameters, losses and optimiser state are float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What wrote a checkpoint: the engine, its ZeRO stage (0 for plain), its number of ranks."""

    engine: str
    zero_stage: int
    world_size: int


@runtime_checkable
class Engine(Protocol):
    """A model with its optimiser on one rank."""

    module: nn.Module
    optimizer: torch.optim.Optimizer

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the loss's gradient; `last` ends the step's passes."""

    def step(self) -> float:
        """Update the parameters; returns the gradient's norm before clipping. Collective."""

    def save(self, folder: Path) -> None:
        """Write this rank's state into a folder. Collective."""

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, at the same number of ranks. Collective."""


class PlainEngine:
    """Torch alone; with several ranks each holds the whole model and gradients are averaged."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, *, grad_clip: float
    ) -> None:
        """`grad_clip`: largest gradient norm, 0 for no bound."""
        self.module, self.optimizer, self._grad_clip = module, optimizer, grad_clip

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the loss's gradient; averaged over ranks in `step`."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> float:
        """Average gradients, clip, update."""
        trained = with_gradients(self.module)
        if world_size() > 1:
            average_gradients(trained)
        norm = clip_gradients(trained, self._grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def save(self, folder: Path) -> None:
        """One file, from rank 0: all ranks hold the same."""
        if rank() == 0:
            state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, folder / _PLAIN_FILE)
            write_facts(folder, engine="plain", zero_stage=0)

    def load(self, folder: Path) -> None:
        """Any number of ranks can read it."""
        try:
            state = torch.load(folder / _PLAIN_FILE, map_location="cpu", weights_only=True)
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.PickleError) as error:
            raise CheckpointError(
                f"{folder / _PLAIN_FILE}: expected the state of this model, got {error}. "
                "Delete this checkpoint to go on from the one before it."
            ) from error


def with_gradients(module: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters; those that no pass used get a gradient of zero."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for p in trained:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    return trained


def clip_gradients(parameters: Iterable[nn.Parameter], grad_clip: float) -> float:
    """Scale gradients down to a norm of at most `grad_clip` (0: no bound); the norm before that."""
    return float(nn.utils.clip_grad_norm_(parameters, grad_clip or float("inf")))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the ranks, a bucket at a time."""
    for bucket in _buckets(parameters):
        gradients = [p.grad for p in bucket if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= world_size()
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    elements = 0
    for parameter in parameters:
        bucket.append(parameter)
        elements += parameter.numel()
        if elements >= _BUCKET_ELEMENTS:
            yield bucket
            bucket, elements = [], 0
    if bucket:
        yield bucket


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Bfloat16 where it is safe, for `bf16`; nothing for `fp32`."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


def make_engine(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: EngineConfig,
    *,
    grad_clip: float,
    resume: Path | None = None,
) -> Engine:
    """The engine asked for, its state read back from a checkpoint folder where there is one.

    The optimiser has every trainable parameter of the module, once. Collective.

    Raises:
        CheckpointError: the checkpoint is another engine's, or broken.
    """
    _assert_covered(module, optimizer)
    _start_equal(module)
    if resume is not None:
        _refuse_other_engine(resume, config)
    if config.engine == "plain":
        engine: Engine = PlainEngine(module, optimizer, grad_clip=grad_clip)
        if resume is not None:
            engine.load(resume)
        return engine
    if config.engine != "deepspeed":
        raise ConfigError(f"--engine {config.engine}: expected deepspeed or plain")
    from mstar.training.deepspeed_engine import start_deepspeed  # 5 s to import

    return start_deepspeed(
        module, optimizer, zero_stage=config.zero_stage, grad_clip=grad_clip, resume=resume
    )


def _start_equal(module: nn.Module) -> None:
    """Rank 0's parameters and buffers for all, whatever the ranks drew."""
    if world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, 0)


def _assert_covered(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    left_out = [name for key, name in trained.items() if key not in held]
    assert not left_out, f"trainable, but in no group of the optimiser: {left_out}"
    assert held <= trained.keys(), "the optimiser has parameters that the model does not train"


def write_facts(folder: Path, *, engine: str, zero_stage: int) -> None:
    """Say beside a checkpoint what wrote it."""
    facts = EngineFacts(engine=engine, zero_stage=zero_stage, world_size=world_size())
    (folder / _FACTS_FILE).write_text(json.dumps(asdict(facts)))


def read_facts(folder: Path) -> EngineFacts:
    """What wrote a checkpoint.

    Raises:
        CheckpointError: it does not say.
    """
    try:
        return EngineFacts(**json.loads((folder / _FACTS_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder / _FACTS_FILE}: expected which engine wrote the checkpoint, got {error}. "
            "Delete this checkpoint to go on from the one before it."
        ) from error


def _refuse_other_engine(folder: Path, config: EngineConfig) -> None:
    facts = read_facts(folder)
    if facts.engine != config.engine:
        raise CheckpointError(
            f"{folder}: expected a checkpoint of the {config.engine} engine, got one of the "
            f"{facts.engine} engine. Go on with --engine {facts.engine}, or start afresh in "
            "another --out."
        )
    if config.engine == "deepspeed" and (facts.zero_stage == 0) != (config.zero_stage == 0):
        raise CheckpointError(
            f"{folder}: expected a checkpoint that ZeRO stage {config.zero_stage} can read, got "
            f"one of stage {facts.zero_stage}; 0 keeps its state in another form than 1 and 2. "
            f"Go on with --zero-stage {facts.zero_stage}."
        )


def rank() -> int:
    """This process's rank; 0 when alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many ranks there are; 1 when alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
