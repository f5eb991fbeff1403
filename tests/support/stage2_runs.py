"""Small stage-2 runs: their shards, their settings, and what they trained by id."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from mstar.data.shards.decode import PatchBatch
from mstar.data.shards.format import ShardIndex
from mstar.pretrain import stage2_batches, stage2_run
from mstar.pretrain.stage2 import run
from mstar.pretrain.stage2_batches import StepBatches
from mstar.pretrain.stage2_config import Stage2Config
from mstar.pretrain.stage2_prepare import Stage2
from mstar.pretrain.stage2_step import StepBatch
from mstar.recipes.stage2 import laptop
from mstar.storage import objects
from mstar.training.run_log import RunLog, read_steps
from mstar.training.sessions import LocalSession, TrainState
from support.shard_sets import untrained_encoder, write_shard_set

ROWS, STEPS_AN_EPOCH = 100, 5  # of 24 patches; the last one has 4
KILLED = 9


def write_stage2_shards(folder: Path, **more: Any) -> ShardIndex:
    """100 patches in five shards of thirteen row groups, for vit_micro with weights random:0."""
    sizes: dict[str, Any] = {"num_rows": ROWS, "rows_per_group": 8, "rows_per_shard": 20}
    encoder = untrained_encoder("vit_micro")
    return write_shard_set(folder, patch_px=64, encoder=encoder, **(sizes | more))


def small_run(shards: Path, out: Path, **changes: Any) -> Stage2Config:
    """Ten steps of 24 patches in this process, with a checkpoint every three."""
    base = replace(
        laptop(),
        shards=str(shards),
        weights="random:0",
        out=str(out),
        epochs=2,
        batch_patches=24,
        micro_batch=24,
        lanes=8,
        checkpoint_every_steps=3,
        watch_every_steps=0,
        probe_patches=24,
        tracking=False,
    )
    return replace(base, **changes)


def losses_of(out: Path) -> dict[int, float]:
    """The loss of every step, the last attempt at it."""
    return {r["step"]: r["loss"] for r in read_steps(out / "steps.jsonl") if "loss" in r}


@contextmanager
def recorded(out: Path, name: str) -> Iterator[None]:
    """Write down the patches of every step, padding and bad rows apart: `<out>/ids-<name>`."""
    taken: list[PatchBatch] = []
    get = StepBatches.get

    class Seen:
        @staticmethod
        def of(batch: PatchBatch) -> StepBatch:
            taken.append(batch)
            return StepBatch.of(batch)

    def recording(self: StepBatches, step: int) -> StepBatch:
        found = get(self, step)
        batch = taken.pop()
        ids = zip(batch.identities(), batch.weights, strict=True)
        line = {"step": step, "ids": [str(patch) for patch, weight in ids if weight]}
        with (out / f"ids-{name}").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return found

    out.mkdir(parents=True, exist_ok=True)
    with (
        mock.patch.object(stage2_batches, "StepBatch", Seen),
        mock.patch.object(StepBatches, "get", recording),
    ):
        yield


def ids_of(out: Path, *names: str) -> dict[int, list[str]]:
    """The patches of every step (from 0), over all the records named."""
    found: dict[int, list[str]] = {}
    for name in names:
        for line in (out / f"ids-{name}").read_text().splitlines():
            row = json.loads(line)
            found.setdefault(row["step"], []).extend(row["ids"])
    return found


def killed_at(config: Stage2Config, step: int) -> None:
    """A run whose process ends without a word right after a step was logged."""
    append = RunLog.append

    def dying(self: RunLog, done: int, metrics: Mapping[str, float]) -> None:
        append(self, done, metrics)
        if done == step:
            os._exit(KILLED)

    with recorded(Path(config.out), "killed"), mock.patch.object(RunLog, "append", dying):
        run(config)


class RankSession(LocalSession):
    """A rank of a process group without Ray; goes on from a lone run's checkpoint, writes none."""

    def __init__(self, config: Stage2Config) -> None:
        """Call in a rank."""
        root = objects.join(config.out, "checkpoints", "alone")
        super().__init__(root, device=torch.device("cpu"))
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def save(
        self, write: Any, state: TrainState, metrics: Mapping[str, float], *, wait: bool = True
    ) -> None:
        """Nothing is kept."""


def on_rank(config: Stage2Config) -> list[torch.Tensor]:
    """Train to the end on this rank; its parameters."""
    session = RankSession(config)
    kept: list[Stage2] = []
    go = stage2_run.go

    def keeping(found: Stage2) -> TrainState:
        kept.append(found)
        return go(found)

    with (
        recorded(Path(config.out), f"rank{session.rank}"),
        mock.patch.object(stage2_run, "go", keeping),
    ):
        stage2_run.train(session, config)
    return [p.detach().clone() for p in kept[0].student.parameters()]
