"""Recipes of the ablation."""

from collections.abc import Callable
from dataclasses import replace

from mstar.pretrain.ablate_config import AblateConfig


def full() -> AblateConfig:
    """Every arm on five cohorts of 1,200 cases, as the table in ablation.md was made."""
    return AblateConfig()


def quick() -> AblateConfig:
    """One small cohort, the method against an untrained aggregator and the initial encoder.

    Shows that every step runs; one cohort, so briefly trained, shows nothing about the method.
    """
    return replace(
        full(),
        seeds=(101,),
        arms="ace",
        cases=120,
        slide_px=320,
        encoder_cases=60,
        encoder_steps=60,
        stage1_epochs=6,
        bag_patches=16,
        stage2_steps=60,
        stage2_precision="fp32",  # as fast on any CPU
        workers=1,
    )


RECIPES: dict[str, Callable[[], AblateConfig]] = {"full": full, "quick": quick}
DEFAULT = "full"
