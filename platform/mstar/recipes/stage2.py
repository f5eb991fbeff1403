"""Recipes of stage 2."""

from collections.abc import Callable
from dataclasses import replace

import tyro

from mstar.models.student import StudentConfig
from mstar.pretrain.stage2_config import Stage2Config
from mstar.training.engines import EngineConfig
from mstar.training.group_config import GroupConfig


def paper() -> Stage2Config:
    """One epoch over all patches, 1,024 a step, bfloat16, DeepSpeed ZeRO-2 on four GPUs."""
    return Stage2Config(
        shards=tyro.MISSING,
        weights=tyro.MISSING,
        out=tyro.MISSING,
        student=StudentConfig(activation_checkpointing=False),
        group=GroupConfig(workers=4, gpus=True, cpus_per_worker=8.0),
    )


def laptop() -> Stage2Config:
    """Small shards in this process on CPU: plain torch, float32, 64 patches a step."""
    return replace(
        paper(),
        batch_patches=64,
        micro_batch=64,
        lanes=16,
        lr=1e-4,
        lr_projection=1e-3,
        checkpoint_every_steps=50,
        watch_every_steps=20,
        log_every_steps=1,
        probe_patches=128,
        max_bad_rows="1%",
        device="cpu",
        engine=EngineConfig(engine="plain", precision="fp32"),
        group=GroupConfig(workers=0),
    )


RECIPES: dict[str, Callable[[], Stage2Config]] = {"paper": paper, "laptop": laptop}
DEFAULT = "paper"
