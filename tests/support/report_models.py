"""Small report generators and bags for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from mstar.models.histgen import HistGen, HistGenConfig

DIM, WORDS = 8, 30
SMALL = HistGenConfig(
    d_vf=32, width=16, ff=16, heads=2, decoder_layers=2, region_tokens=5, memory_slots=20,
    memory_top=7, prototypes=6, feature_dropout=0.0, dropout=0.0,
)  # fmt: skip


def small_model(words: int = WORDS, seed: int = 0, **changes: Any) -> HistGen:
    """A model in evaluation whose weights follow from the seed."""
    torch.manual_seed(seed)
    return HistGen(dataclasses.replace(SMALL, **changes), DIM, words).eval()


def bags_of(sizes: Sequence[int], seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed bags and their offsets."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.tensor([0, *torch.tensor(list(sizes)).cumsum(0).tolist()])
    return torch.randn(sum(sizes), DIM, generator=generator), edges
