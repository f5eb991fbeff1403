"""Scores as a raster in the slide's own frame, and as a pyramidal TIFF that lies over the slide.

One pixel of the raster is `downsample` level-0 pixels, a power of two, and pixel (0, 0) begins
where the slide does; so it registers by its resolution alone. Where patches overlap a pixel has the
mean of theirs.

    colour   RGB and alpha, by percentile; transparent where no patch is
    values   the scores themselves, float32, NaN where no patch is
"""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tifffile
from jaxtyping import Float32, Integer, UInt8

from mstar import __version__
from mstar.evidence.palette import colours
from mstar.evidence.scores import PatchScores, SlideScores
from mstar.evidence.tiles import label
from mstar.storage import objects

OverlayKind = Literal["colour", "values"]

PATCH_SIDE = 16  # pixels of the raster along a patch, at least where the slide has as many
TILE_PX = 256
MOST_PIXELS = 48_000_000
ALPHA = 255  # viewers have their own opacity
_UM_PER_CM = 10_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Raster:
    """Numbers in the slide's frame, NaN where no patch is."""

    values: Float32[np.ndarray, "row column"]
    downsample: int


def frame_l0(scores: SlideScores) -> tuple[int, int]:
    """Width and height of level 0; what patches cover, where the slide's size is not known."""
    if scores.width_l0 and scores.height_l0:
        return scores.width_l0, scores.height_l0
    right, bottom = (scores.coords_l0.max(axis=0) + scores.patch_size_l0).tolist()
    return right, bottom


def make_raster(scores: SlideScores, values: Float32[np.ndarray, " patch"]) -> Raster:
    """The patches' numbers, each in its place."""
    width_l0, height_l0 = frame_l0(scores)
    step = _downsample(scores.patch_size_l0, width_l0, height_l0)
    shape = -(-height_l0 // step), -(-width_l0 // step)
    total, count = np.zeros(shape, np.float32), np.zeros(shape, np.uint16)
    start = np.rint(scores.coords_l0 / step).astype(int)
    stop = np.rint((scores.coords_l0 + scores.patch_size_l0) / step).astype(int)
    start, stop = np.maximum(start, 0), np.maximum(stop, start + 1)
    places = zip(start.tolist(), stop.tolist(), values.tolist(), strict=True)
    for (left, top), (right, bottom), value in places:
        total[top:bottom, left:right] += value
        count[top:bottom, left:right] += 1
    return Raster(values=_means(total, count), downsample=step)


def _downsample(size_l0: int, width_l0: int, height_l0: int) -> int:
    """A power of two, so that a patch has PATCH_SIDE pixels and the raster not too many."""
    step = 1 << max(0, int(math.log2(max(1, size_l0 // PATCH_SIDE))))
    while (width_l0 // step) * (height_l0 // step) > MOST_PIXELS:
        step *= 2
    return step


def coloured(raster: Raster, alpha: int = ALPHA) -> UInt8[np.ndarray, "row column 4"]:
    """A raster of percentiles as colours; transparent where no patch is."""
    there = np.isfinite(raster.values)
    picture = np.zeros((*raster.values.shape, 4), np.uint8)
    picture[there, :3] = colours(raster.values[there])
    picture[there, 3] = alpha
    return picture


def write_overlay(
    uri: str, scores: SlideScores, layer: PatchScores, kind: OverlayKind = "colour"
) -> None:
    """Write a tiled pyramid, halved until one tile holds it; equal scores give equal bytes."""
    numbers = layer.percentile if kind == "colour" else layer.values
    raster = make_raster(scores, numbers)
    with tempfile.TemporaryDirectory(prefix="mstar-") as folder:
        path = Path(folder) / "overlay.tif"
        with tifffile.TiffWriter(path) as writer:
            for level, one in enumerate(_pyramid(raster)):
                _write_level(writer, level, one, scores, layer, kind)
        objects.put_file(path, uri)


def _write_level(
    writer: tifffile.TiffWriter,
    level: int,
    raster: Raster,
    scores: SlideScores,
    layer: PatchScores,
    kind: OverlayKind,
) -> None:
    mpp = scores.mpp * raster.downsample
    colour = kind == "colour"
    writer.write(
        coloured(raster) if colour else raster.values,
        tile=(TILE_PX, TILE_PX),
        photometric="rgb" if colour else "minisblack",
        extrasamples=["unassalpha"] if colour else None,
        compression="zlib",
        subfiletype=1 if level else 0,
        resolution=(_UM_PER_CM / mpp, _UM_PER_CM / mpp) if mpp > 0 else (1, 1),
        resolutionunit="CENTIMETER" if mpp > 0 else "NONE",
        description=None if level else _description(raster, scores, layer, kind),
        software=None if level else f"mstar {__version__}",
        metadata=None,
    )


def _description(raster: Raster, scores: SlideScores, layer: PatchScores, kind: OverlayKind) -> str:
    what = "percentile as colour" if kind == "colour" else "score"
    text = (
        f"{scores.slide_id}: {label(layer)}, {what}; one pixel is {raster.downsample} level-0 "
        f"pixels. {scores.warning}"
    )
    return text.encode("ascii", "replace").decode()  # TIFF knows no other characters


def _pyramid(raster: Raster) -> list[Raster]:
    levels = [raster]
    while max(levels[-1].values.shape) > TILE_PX:
        levels.append(_halved(levels[-1]))
    return levels


def _halved(raster: Raster) -> Raster:
    """Means over two by two of the pixels that have a number."""
    rows, columns = raster.values.shape
    even = np.pad(raster.values, ((0, rows % 2), (0, columns % 2)), constant_values=np.nan)
    quarters = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2)
    there = np.isfinite(quarters)
    count = there.sum(axis=(1, 3))
    total = np.where(there, quarters, 0).sum(axis=(1, 3), dtype=np.float32)
    return Raster(values=_means(total, count), downsample=2 * raster.downsample)


def _means(
    total: Float32[np.ndarray, "row column"], count: Integer[np.ndarray, "row column"]
) -> Float32[np.ndarray, "row column"]:
    """NaN where nothing was counted."""
    return total / np.where(count, count, np.nan).astype(np.float32)
