"""Regions: outlines with holes in level-0 pixels, drawn onto rasters and asked about points."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Region:
    """One connected piece: an outline and the holes in it, level-0 pixels, rings not closed."""

    outer: Int64[np.ndarray, "_ 2"]
    holes: tuple[Int64[np.ndarray, "_ 2"], ...] = ()

    @property
    def box_l0(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the outline."""
        left, top = self.outer.min(axis=0)
        right, bottom = self.outer.max(axis=0)
        return int(left), int(top), int(right), int(bottom)


def draw_mask(
    regions: Sequence[Region],
    size_px: tuple[int, int],
    origin_l0: tuple[float, float],
    scale: float,
) -> Bool[np.ndarray, "height width"]:
    """True where a pixel of the raster (width, height) belongs to a region.

    Rings run through the centres of the pixels they were traced on, the outer one on the region's
    own border pixels and a hole's on the region's pixels around the hole. Both are drawn that way
    here, so that tracing a mask and drawing the outlines gives the mask back.
    """
    width, height = size_px
    mask = np.zeros((height, width), dtype=bool)
    for region in regions:
        outer = _on_raster(region.outer, origin_l0, scale)
        low = np.maximum(outer.min(axis=0), 0)
        high = np.minimum(outer.max(axis=0) + 1, (width, height))
        if (high <= low).any():
            continue
        # A region is drawn alone: another one may lie inside its hole, which is filled with 0.
        piece = np.zeros((high[1] - low[1], high[0] - low[0]), dtype=np.uint8)
        cv2.fillPoly(piece, [outer - low], 1)
        for hole in (_on_raster(ring, origin_l0, scale) - low for ring in region.holes):
            cv2.fillPoly(piece, [hole], 0)
            cv2.polylines(piece, [hole], True, 1)
        mask[low[1] : high[1], low[0] : high[0]] |= piece.astype(bool)
    return mask


def _on_raster(
    ring: Int64[np.ndarray, "_ 2"], origin_l0: tuple[float, float], scale: float
) -> Int32[np.ndarray, "_ 2"]:
    """The raster pixels that a ring's points lie in."""
    pixel: np.ndarray = np.floor((ring - np.array(origin_l0)) / scale)
    return pixel.astype(np.int32)


def ring_contains(
    ring: Int64[np.ndarray, "vertex 2"],
    xs: Float64[np.ndarray, " column"],
    ys: Float64[np.ndarray, " row"],
    *,
    edge: bool,
) -> Bool[np.ndarray, "row column"]:
    """Which points of the lattice `xs` × `ys` lie inside a ring (`edge`: or on it).

    Scan lines: every row is cut with all edges at once, and a point is inside when an odd number
    of cuts lies left of it. A row that runs through vertices is looked at from just below and
    just above; a point on the ring is one about which the two disagree, or which a cut hits.
    """
    x0, y0 = ring.astype(np.float64).T
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (x1 - x0) / (y1 - y0)  # level edges give inf or nan and are never cut
    inside = np.zeros((len(ys), len(xs)), dtype=bool)
    for row, y in enumerate(ys):
        below = _odd_cuts(x0, y0, slope, (y0 <= y) != (y1 <= y), float(y), xs, edge)
        above = _odd_cuts(x0, y0, slope, (y0 < y) != (y1 < y), float(y), xs, edge)
        inside[row] = below | above if edge else below & above
    return inside


def _odd_cuts(
    x0: Float64[np.ndarray, " vertex"],
    y0: Float64[np.ndarray, " vertex"],
    slope: Float64[np.ndarray, " vertex"],
    cut: Bool[np.ndarray, " vertex"],
    y: float,
    xs: Float64[np.ndarray, " column"],
    edge: bool,
) -> Bool[np.ndarray, " column"]:
    """Which of the points have an odd number of cuts to their left; a hit counts as `edge` says."""
    cuts = np.sort(x0[cut] + (y - y0[cut]) * slope[cut])
    left, up_to = np.searchsorted(cuts, xs, "left"), np.searchsorted(cuts, xs, "right")
    hit, odd = up_to > left, left % 2 == 1
    return np.asarray(odd | hit if edge else odd & ~hit)
