"""The one file that knows DeepSpeed: ZeRO stage 0, 1 or 2 over float32 parameters.

Ranks come from the process group that Ray Train (or a test) has made; alone, a group of one is made
here. A checkpoint written by another number of ranks, or another of the stages 1 and 2, is
converted to DeepSpeed's universal form, in a temporary folder of each node.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mstar.errors import CheckpointError
from mstar.training.engines import (
    clip_gradients,
    rank,
    read_facts,
    with_gradients,
    world_size,
    write_facts,
)

_TAG, _UNTRAINED = "deepspeed", "untrained.pt"
_UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, AssertionError, EOFError, PickleError)
_BUCKET_ELEMENTS = 100_000_000  # the default holds the whole model: nothing would overlap


class DeepSpeedEngine:
    """A DeepSpeed engine behind the protocol of `engines.Engine`."""

    def __init__(
        self,
        engine: Any,
        optimizer: torch.optim.Optimizer,
        *,
        zero_stage: int,
        grad_clip: float,
        converts: bool,
    ) -> None:
        """Use `start_deepspeed`. `converts`: the engine reads universal checkpoints only."""
        self._engine = engine
        self._zero_stage, self._grad_clip, self._converts = zero_stage, grad_clip, converts
        self._passes, self._in_step = ExitStack(), False
        self.module: nn.Module = engine.module
        self.optimizer = optimizer  # the one given: its groups carry the learning rates

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the loss's gradient; reduced to the ranks that own it after the last pass.

        DeepSpeed would reduce during every pass, in buckets filled in the order in which gradients
        become ready. Where ranks use different parameters these orders differ, and gradients of
        different parameters are added up without a word.
        """
        if self._zero_stage == 0:  # reduces at the boundary, in the order of the parameters
            self._engine.set_gradient_accumulation_boundary(last)
            self._engine.backward(loss)
            return
        if not self._in_step:
            self._passes.enter_context(self._engine.coalesce_grad_reduction())
            self._in_step = True
        self._engine.backward(loss)
        if last:
            with_gradients(self.module)
            self._passes.close()
            self._in_step = False

    def step(self) -> float:
        """Clip and update."""
        if self._zero_stage == 0:  # DeepSpeed would clip here as well, but not tell the norm
            norm = clip_gradients(with_gradients(self.module), self._grad_clip)
            self._engine.step()
            return norm
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def save(self, folder: Path) -> None:
        """Every rank writes its own files."""
        self._engine.save_checkpoint(str(folder), tag=_TAG)
        if rank() == 0:
            torch.save(_untrained(self.module), folder / _UNTRAINED)
            write_facts(folder, engine="deepspeed", zero_stage=self._zero_stage)

    def load(self, folder: Path) -> None:
        """Read back what ranks of the number and stage told to `start_deepspeed` wrote."""
        with _universal(folder) if self._converts else nullcontext(folder) as readable:
            try:
                found, _ = self._engine.load_checkpoint(str(readable), tag=_TAG)
                untrained = torch.load(folder / _UNTRAINED, map_location="cpu", weights_only=True)
                self.module.load_state_dict(untrained, strict=False)
            except _UNREADABLE as error:
                raise _broken(folder, str(error)) from error
            if found is None:
                raise _broken(folder, "nothing that DeepSpeed can read")


def start_deepspeed(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    zero_stage: int,
    grad_clip: float,
    resume: Path | None,
) -> DeepSpeedEngine:
    """DeepSpeed around a model and its optimiser, resumed where a checkpoint is given.

    The model is on its device already; DeepSpeed works there.
    """
    device = next(module.parameters()).device
    deepspeed = _deepspeed(device)
    _ensure_group(device)
    changed = resume is not None and zero_stage > 0 and _is_of_others(resume, zero_stage)
    settings = {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed insists; batches are ours
        "gradient_accumulation_steps": 1,
        "zero_optimization": {
            "stage": zero_stage,
            "overlap_comm": device.type == "cuda",
            "contiguous_gradients": True,
            "reduce_bucket_size": _BUCKET_ELEMENTS,
            "allgather_bucket_size": _BUCKET_ELEMENTS,
        },
        "gradient_clipping": grad_clip if zero_stage else 0.0,  # stage 0: see `step`
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "checkpoint": {"load_universal": changed},
    }
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    made = DeepSpeedEngine(
        engine, optimizer, zero_stage=zero_stage, grad_clip=grad_clip, converts=changed
    )
    if resume is not None:
        made.load(resume)
    return made


def _is_of_others(folder: Path, zero_stage: int) -> bool:
    wrote = read_facts(folder)
    return (wrote.world_size, wrote.zero_stage) != (world_size(), zero_stage)


def _untrained(module: nn.Module) -> dict[str, Tensor]:
    """Buffers and frozen parameters, which a universal checkpoint leaves out."""
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in trained}


def _deepspeed(device: torch.device) -> Any:
    """The package, told not to compile its shared-memory collective (two minutes, same maths)."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("ERROR")
    return deepspeed


def _ensure_group(device: torch.device) -> None:
    """A process group of one for a run without Ray."""
    if dist.is_initialized():
        return
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        os.environ.setdefault(name, value)
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=0, world_size=1)


@contextmanager
def _universal(folder: Path) -> Iterator[Path]:
    """The checkpoint in universal form; one rank of each node converts, the others wait.

    Not beside the checkpoint: on a shared disk the nodes would write over one another, and the
    pieces would become part of it.
    """
    token = [uuid.uuid4().hex]
    dist.broadcast_object_list(token, 0)
    target = Path(tempfile.gettempdir()) / f"mstar-universal-{token[0]}"
    converts = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        said = [""] * world_size()
        dist.all_gather_object(said, _convert(folder, target) if converts else "")
        if any(said):
            raise _broken(folder, "; ".join(filter(None, said)))
        yield target
        dist.barrier()
    finally:
        if converts:
            shutil.rmtree(target, ignore_errors=True)


def _convert(folder: Path, target: Path) -> str:
    """What went wrong, empty when nothing did."""
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(folder / _TAG), "--output_folder", str(target / _TAG)]
    done = subprocess.run(
        [*command, "--inject_missing_state"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
    )
    return done.stderr[-2000:] or "no reason" if done.returncode else ""


def _broken(folder: Path, said: str) -> CheckpointError:
    return CheckpointError(
        f"{folder}: expected a DeepSpeed checkpoint of this model, got: {said}. "
        "Delete this checkpoint to go on from the one before it."
    )
