"""Recipes of the embedding job."""

from collections.abc import Callable
from dataclasses import replace

import tyro

from mstar.embed.config import EmbedConfig, RunConfig
from mstar.slides.grid import GridConfig
from mstar.slides.tissue import TissueConfig


def mstar_exact() -> EmbedConfig:
    """MSTAR's ViT-L on patches at exactly 0.5 µm per pixel."""
    return EmbedConfig(slides=tyro.MISSING, out=tyro.MISSING, encoder="mstar")


def tcga_mstar() -> EmbedConfig:
    """Features comparable with the published mSTAR ones: the authors' pixels and tissue preset."""
    return replace(
        mstar_exact(), grid=GridConfig(grid_mode="prepath"), tissue=TissueConfig(preset="tcga")
    )


def tcga_uni() -> EmbedConfig:
    """The same with UNI, from which stage 1 of the paper starts."""
    return replace(tcga_mstar(), encoder="uni")


def debug() -> EmbedConfig:
    """A tiny ViT with seeded random weights on one CPU: to try the machinery, not for science."""
    return replace(
        mstar_exact(),
        encoder="vit_tiny",
        weights="random:0",
        device="cpu",
        batch_size=16,
        run=RunConfig(workers=1),
    )


RECIPES: dict[str, Callable[[], EmbedConfig]] = {
    "mstar": mstar_exact,
    "tcga_mstar": tcga_mstar,
    "tcga_uni": tcga_uni,
    "debug": debug,
}
DEFAULT = "mstar"
