"""Recipes of stage 1."""

from collections.abc import Callable
from dataclasses import replace

import tyro

from mstar.losses.stage1 import LossConfig
from mstar.models.aggregator import AggregatorConfig
from mstar.models.gene_encoder import GeneEncoderConfig
from mstar.pretrain.stage1_config import Stage1Config
from mstar.training.engines import EngineConfig
from mstar.training.group_config import GroupConfig
from mstar.training.optimizers import OptimizerConfig


def paper() -> Stage1Config:
    """The paper's sizes: M = 4,096, BioBERT, 128 cases contrasted, four GPUs, DeepSpeed."""
    return Stage1Config(
        cohort=tyro.MISSING,
        features=tyro.MISSING,
        out=tyro.MISSING,
        optimizer=OptimizerConfig(min_warmup_steps=100),
        group=GroupConfig(workers=4, gpus=True, cpus_per_worker=6.0),
    )


def laptop() -> Stage1Config:
    """Small cohorts in this process on CPU: plain torch, float32, bags of 256, small encoders."""
    return replace(
        paper(),
        epochs=20,
        batch_cases=64,
        chunk_cases=16,
        bag_patches=256,
        max_tokens=448,  # a finding may stand anywhere in a report
        token_dropout=0.2,
        lr=1e-3,
        lr_text=5e-4,
        max_bad_cases="10%",
        gradient_checkpointing=False,
        device="cpu",
        aggregator=AggregatorConfig(dim=128, heads=4, landmarks=32),
        gene=GeneEncoderConfig(dim=64, heads=4, head_dim=16, random_features=44),
        loss=LossConfig(triplet_weight=0.1),  # at 1 few cases learn their type and little else
        optimizer=OptimizerConfig(),
        engine=EngineConfig(engine="plain", precision="fp32"),
        group=GroupConfig(workers=0),
    )


RECIPES: dict[str, Callable[[], Stage1Config]] = {"paper": paper, "laptop": laptop}
DEFAULT = "paper"
