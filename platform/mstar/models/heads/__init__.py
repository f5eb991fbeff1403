"""MIL heads: one table, one forward contract (packed bags), a file for each paper."""

from mstar.models.heads import huge_pages
from mstar.models.heads.contract import (
    FittedHead,
    GeneHead,
    GeneLayout,
    GroupedGenes,
    HeadOutput,
    HeadSpec,
)
from mstar.models.heads.table import FUSION_HEADS, HEADS, build_head, head_config, head_spec

__all__ = [
    "FUSION_HEADS",
    "HEADS",
    "FittedHead",
    "GeneHead",
    "GeneLayout",
    "GroupedGenes",
    "HeadOutput",
    "HeadSpec",
    "build_head",
    "head_config",
    "head_spec",
    "huge_pages",
]
