"""Pictures of a stage-2 run: its curves, and nearest patches before and after."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from mstar.pretrain.stage2_watch import nearest

PANELS = (
    ("losses", ("loss", "loss.a", "loss.b")),
    ("cosine to target and to anchor", ("cosine.a", "cosine.b")),
    ("probe: drift, neighbours kept", ("watch.drift", "watch.neighbours_kept")),
    ("probe: effective rank and spread, of the first", (
        "watch.effective_rank_share", "watch.spread_share")),
    ("gradient norm", ("grad_norm",)),
    ("patches/s and share of time waiting for input", ("patches_per_s", "input_wait")),
)  # fmt: skip
ROWS, SHOWN = 6, 6


def curves(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Losses, cosines, the probe's numbers and speed by step."""
    figure = Figure(figsize=(15, 7.5), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in history if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), lw=1.2, label=name.split(".")[-1])
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def neighbours(
    images: Tensor,
    before: Float[np.ndarray, "patch dim"],
    after: Float[np.ndarray, "patch dim"],
    path: Path,
) -> None:
    """Some probe patches with their nearest others, by the initial and by the trained encoder."""
    rows = np.linspace(0, len(images) - 1, min(ROWS, len(images))).astype(int)
    first, last = nearest(before, SHOWN), nearest(after, SHOWN)
    columns = 2 * first.shape[1] + 2
    figure = Figure(figsize=(columns, len(rows) + 0.6), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for line, row in enumerate(rows):
        shown = [row, *first[row], None, *last[row]]
        for axes, place in zip(grid[line], shown, strict=True):
            if place is not None:
                axes.imshow(images[int(place)].numpy())
    grid[0][0].set_title("patch", fontsize=9)
    grid[0][1].set_title("nearest before", fontsize=9, loc="left")
    grid[0][first.shape[1] + 2].set_title("nearest after", fontsize=9, loc="left")
    figure.savefig(path, dpi=90)
