"""Truth cells: the lattice on which a slide says where its signal is, and its way to patches.

A cell is one patch of `patch_px` at 0.5 µm per pixel, as `mstar.slides.grid` lays them in its mode
`exact` (origin at the slide's corner, each start rounded on its own). Any other patch takes its
truth from the cells that it covers, by area.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

TARGET_MPP = 0.5
NATIVE_TOLERANCE = 0.01  # so near to the target a reader does not resample, as GridConfig has it
LEAST_TISSUE = 0.25  # share of a cell that must be tissue for it to carry signal
SIGNALS = ("mutation", "pathway")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TruthCells:
    """The cells of one slide, row-major, those without tissue included.

    mutation, pathway: the cell is one of those that would show the factor. Chosen alike in every
    case, whatever its factors: in a case without the mutation they look like all others.
    """

    x_l0: Int64[np.ndarray, " cell"]
    y_l0: Int64[np.ndarray, " cell"]
    size_px: int
    step_px: float
    columns: int
    rows: int
    tissue: Float32[np.ndarray, " cell"]
    mutation: Bool[np.ndarray, " cell"]
    pathway: Bool[np.ndarray, " cell"]

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.x_l0)

    def index_of(
        self, x: Float64[np.ndarray, " point"], y: Float64[np.ndarray, " point"]
    ) -> Int64[np.ndarray, " point"]:
        """The cell of each point of level 0; -1 past the last whole cell."""
        column, row = (x / self.step_px).astype(np.int64), (y / self.step_px).astype(np.int64)
        inside = (column < self.columns) & (row < self.rows)
        place: np.ndarray = np.where(inside, row * self.columns + column, -1)
        return place


def cell_step_px(mpp: float, patch_px: int) -> float:
    """Distance of neighbouring cells on level 0."""
    native = abs(mpp / TARGET_MPP - 1) <= NATIVE_TOLERANCE
    return float(patch_px if native else patch_px * TARGET_MPP / mpp)


def draw_cells(
    rng: np.random.Generator,
    mask: Bool[np.ndarray, "high wide"],
    *,
    plan_px: int,
    size_px: tuple[int, int],
    step_px: float,
    signal_fraction: float,
) -> TruthCells:
    """Cells of a slide of `size_px` (width, height) with `mask` its tissue, `plan_px` a pixel.

    Only whole cells count: a patch that hangs over the edge is never read.
    """
    starts = [_starts(length, step_px) for length in size_px]
    columns, rows = len(starts[0]), len(starts[1])
    x, y = np.tile(starts[0], rows), np.repeat(starts[1], columns)
    tissue = _shares(mask.astype(np.float64), x / plan_px, y / plan_px, step_px / plan_px)
    candidates = np.flatnonzero(tissue >= LEAST_TISSUE)
    flags = {name: np.zeros(len(x), dtype=bool) for name in SIGNALS}
    for name in SIGNALS:
        count = min(len(candidates), max(1, round(signal_fraction * len(candidates))))
        wanted = count if signal_fraction > 0 else 0
        flags[name][rng.permutation(candidates)[:wanted]] = True
    return TruthCells(
        x_l0=x,
        y_l0=y,
        size_px=int(step_px + 0.5),
        step_px=step_px,
        columns=columns,
        rows=rows,
        tissue=tissue.astype(np.float32),
        **flags,
    )


def truth_of_patches(
    coords: Int64[np.ndarray, "patch 2"], patch_size_l0: int, cells: TruthCells
) -> dict[str, Float32[np.ndarray, " patch"]]:
    """The share of each patch, by area, that lies in cells with each factor's signal."""
    result = {}
    for name in SIGNALS:
        flags = getattr(cells, name).reshape(cells.rows, cells.columns).astype(np.float64)
        start = coords / cells.step_px
        side = patch_size_l0 / cells.step_px
        result[name] = _shares(flags, start[:, 0], start[:, 1], side).astype(np.float32)
    return result


def _starts(length_px: int, step_px: float) -> Int64[np.ndarray, " start"]:
    """Starts of the whole cells along one side of a slide."""
    starts = np.floor(np.arange(int(length_px / step_px) + 1) * step_px + 0.5).astype(np.int64)
    fitting: np.ndarray = starts[starts + int(step_px + 0.5) <= length_px]
    return fitting


def _shares(
    values: Float64[np.ndarray, "high wide"],
    left: Float64[np.ndarray, " box"],
    top: Float64[np.ndarray, " box"],
    side: float,
) -> Float64[np.ndarray, " box"]:
    """Mean of a piecewise constant map over squares; outside the map it is 0."""
    sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    sums[1:, 1:] = values.cumsum(axis=0).cumsum(axis=1)

    def integral(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Of the map over [0, x] × [0, y]: bilinear between the sums at whole pixels."""
        x, y = np.clip(x, 0, values.shape[1]), np.clip(y, 0, values.shape[0])
        i, j = (
            np.minimum(x.astype(int), values.shape[1] - 1),
            np.minimum(y.astype(int), values.shape[0] - 1),
        )
        u, v = x - i, y - j
        upper = sums[j, i] * (1 - u) + sums[j, i + 1] * u
        lower = sums[j + 1, i] * (1 - u) + sums[j + 1, i + 1] * u
        between: np.ndarray = upper * (1 - v) + lower * v
        return between

    right, bottom = left + side, top + side
    total = integral(right, bottom) - integral(left, bottom)
    total = total - integral(right, top) + integral(left, top)
    shares: np.ndarray = total / side**2
    return shares
