"""Recipes of the teacher pass."""

from collections.abc import Callable
from dataclasses import replace

import tyro

from mstar.pretrain.shards_config import ShardSettings
from mstar.pretrain.targets_config import TargetsConfig, TargetsRunConfig


def all_116m() -> TargetsConfig:
    """A target for every patch (116 million in the paper's cohort), in windows of 4,096."""
    return TargetsConfig(
        cohort=tyro.MISSING,
        features=tyro.MISSING,
        aggregator=tyro.MISSING,
        out=tyro.MISSING,
        shard=ShardSettings(memory_mb=8192),  # with less, object storage sees many small requests
    )


def paper_39m() -> TargetsConfig:
    """One sample of 4,096 patches per case, as the paper is read: at most 39 million targets."""
    return replace(all_116m(), coverage="paper")


def laptop() -> TargetsConfig:
    """Every patch of a small cohort, in this process, on CPU."""
    return replace(
        all_116m(),
        device="cpu",
        run=TargetsRunConfig(workers=0),
        shard=ShardSettings(shard_mb=64, memory_mb=512),
    )


RECIPES: dict[str, Callable[[], TargetsConfig]] = {
    "all_116m": all_116m,
    "paper_39m": paper_39m,
    "laptop": laptop,
}
DEFAULT = "all_116m"
