"""MIL heads: one table, one forward contract (packed bags), a file for each paper."""

from mstar.models.heads import huge_pages
from mstar.models.heads.contract import FittedHead, HeadOutput, HeadSpec
from mstar.models.heads.table import HEADS, build_head, head_config, head_spec

__all__ = [
    "HEADS",
    "FittedHead",
    "HeadOutput",
    "HeadSpec",
    "build_head",
    "head_config",
    "head_spec",
    "huge_pages",
]
