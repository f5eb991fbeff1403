"""Recipes of the ablation."""

from collections.abc import Callable
from dataclasses import replace

from mstar.pretrain.ablate_config import AblateConfig


def full() -> AblateConfig:
    """Every arm on six cohorts of 300 cases; at most 40 minutes on two cores."""
    return AblateConfig()


def quick() -> AblateConfig:
    """One cohort, the method against an untrained aggregator and the initial encoder."""
    return replace(full(), seeds=(101,), arms="ace", workers=1)


RECIPES: dict[str, Callable[[], AblateConfig]] = {"full": full, "quick": quick}
DEFAULT = "full"
