"""Recipes of the grid job."""

from collections.abc import Callable
from dataclasses import replace

import tyro

from mstar.embed.config import GridJobConfig
from mstar.slides.grid import GridConfig
from mstar.slides.tissue import TissueConfig


def exact() -> GridJobConfig:
    """256 px at exactly 0.5 µm per pixel, whatever the scanner."""
    return GridJobConfig(slides=tyro.MISSING, out=tyro.MISSING)


def tcga() -> GridJobConfig:
    """As the mSTAR authors cut TCGA: their patch sizes on level 0, their tissue preset."""
    return replace(
        exact(), grid=GridConfig(grid_mode="prepath"), tissue=TissueConfig(preset="tcga")
    )


RECIPES: dict[str, Callable[[], GridJobConfig]] = {"exact": exact, "tcga": tcga}
DEFAULT = "exact"
