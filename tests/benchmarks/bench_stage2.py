"""What the whole input pipeline costs a stage-2 step: its rate against the same step on one batch.

    PYTHONPATH=tests python tests/benchmarks/bench_stage2.py
        [--encoder timm:vit_small_patch16_224] [--steps 6]

The student is a ViT-S/16 at 224 px in float32 on the CPU, its targets have 512 values, and the
patches are 256 px JPEGs read from shards. Both ways are the run's own: the same engine, losses and
anchor. In the one, batches come from the stream (read, order, decode, hand over); in the other
every step gets the first batch again. The ways take turns; each turn's first step is left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Literal

import torch

from mstar.pretrain.stage2_prepare import Stage2, prepare
from mstar.pretrain.stage2_step import StepBatch
from mstar.recipes.stage2 import laptop
from mstar.training.engines import EngineConfig
from mstar.training.run_log import RunLog
from mstar.training.sessions import LocalSession
from support.shard_sets import untrained_encoder, write_shard_set

PX, DIM = 256, 512
TARGET = 0.90


def main() -> None:
    """Parse the size of the measurement and run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="timm:vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.set_defaults(device="cpu")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), given)


def measure(folder: Path, given: argparse.Namespace) -> None:
    """Time both ways in turn and print their ratio."""
    rows = given.batch * (given.steps + 1) * given.rounds
    run = opened(folder, given, rows=rows, precision="fp32")
    streamed, fixed = [], []
    with run.batches:
        first = run.batches.get(0)
        for turn in range(given.rounds):
            start = turn * (given.steps + 1)
            streamed.append(rate(run, start, given, run.batches.get))
            fixed.append(rate(run, start, given, lambda step: first))
    ratios = [one / other for one, other in zip(streamed, fixed, strict=True)]
    line = {
        "bench": "stage2",
        "row": f"step rate, whole pipeline / one batch in memory, {given.encoder}, CPU",
        "ratio": round(median(ratios), 3),
        "all": [round(ratio, 3) for ratio in ratios],
        "target": TARGET,
        "patches_per_s": round(median(streamed), 2),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(line), flush=True)


def opened(
    folder: Path, given: argparse.Namespace, *, rows: int, precision: Literal["bf16", "fp32"]
) -> Stage2:
    """A run of stage 2 that is ready for its first step.

    Args:
        folder: for its shards, which are written here, and what it writes itself.
        given: encoder, batch, and device where it is not the CPU.
        rows: of the shards.
        precision: of its passes.
    """
    write_shard_set(
        folder / "shards",
        num_rows=rows,
        rows_per_group=16,
        rows_per_shard=64,
        target_dim=DIM,
        patch_px=PX,
        encoder=untrained_encoder(given.encoder),
    )
    config = replace(
        laptop(),  # without looks and checkpoints in between
        shards=str(folder / "shards"),
        weights="random:0",
        out=str(folder / "out"),
        batch_patches=given.batch,
        micro_batch=given.batch,
        lanes=4,
        watch_every_steps=0,
        tracking=False,
        device=given.device,
        engine=EngineConfig(engine="plain", precision=precision),
    )
    session = LocalSession(str(folder / "checkpoints"), device=torch.device(given.device))
    return prepare(session, config, RunLog(str(folder / "out")))


def rate(
    run: Stage2, start: int, given: argparse.Namespace, get: Callable[[int], StepBatch]
) -> float:
    """Patches per second of some steps, the first one apart."""
    began_s = 0.0
    for step in range(start, start + given.steps + 1):
        if step == start + 1:
            began_s = time.perf_counter()
        run.steps.take(step, get(step))
    return given.batch * given.steps / (time.perf_counter() - began_s)


if __name__ == "__main__":
    main()
