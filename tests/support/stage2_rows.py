"""Rows of a stage-2 step for the small student."""

from __future__ import annotations

import torch

from mstar.pretrain.stage2_step import StepBatch
from support.micro_student import SIDE, TARGET


def rows_for_student(count: int, *, seed: int = 0, side: int = SIDE) -> StepBatch:
    """Noise patches with random targets; each row depends on its place and the seed alone."""
    draw = torch.Generator()
    images, targets = [], []
    for place in range(count):
        draw.manual_seed(1000 * seed + place)
        images.append(torch.randint(0, 256, (side, side, 3), generator=draw, dtype=torch.uint8))
        targets.append(torch.randn(TARGET, generator=draw))
    return StepBatch(
        images=torch.stack(images),
        targets=torch.stack(targets).half(),
        weights=torch.ones(count),
    )


def some_rows(batch: StepBatch, rows: list[int], *, padding: int = 0) -> StepBatch:
    """Chosen rows of a batch, and padding behind them: no pixels, NaN as target, no weight."""
    side = batch.images.shape[1]
    blank = torch.zeros(padding, side, side, 3, dtype=torch.uint8)
    nothing = torch.full((padding, batch.targets.shape[1]), torch.nan, dtype=batch.targets.dtype)
    return StepBatch(
        images=torch.cat([batch.images[rows], blank]),
        targets=torch.cat([batch.targets[rows], nothing]),
        weights=torch.cat([batch.weights[rows], torch.zeros(padding)]),
    )
