"""The slide as one small image: a box mean of a pyramid level, read block by block.

Nothing larger than a block (2048 px square) of the level is ever held, so a slide without a pyramid
costs time, not memory.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from mstar.errors import PatchError
from mstar.slides.reader import Slide

BLOCK_PX = 2048
SMALLEST_DAMAGE_PX = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Raster:
    """A reduced picture of the scanned area, and where it lies on the slide.

    Pixel (i, j) covers the level-0 square of side `scale` at `origin_l0 + scale · (i, j)`.
    """

    pixels: UInt8[np.ndarray, "height width 3"]
    origin_l0: tuple[float, float]
    scale: float

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        return self.pixels.shape[1], self.pixels.shape[0]


def read_raster(slide: Slide, *, scale: float, max_px: int, level: int | None = None) -> Raster:
    """The slide's scanned area (`bounds_l0`) at about `scale` level-0 pixels per pixel.

    A whole number of level pixels makes one pixel, so nothing is interpolated: the true scale is
    within about a third of the one asked for, unless `level` is given. The longest side never
    exceeds `max_px`.
    """
    x, y, width, height = slide.metadata.bounds_l0
    longest = max(width, height)
    wanted = max(scale, longest / max_px)
    if level is None:
        fitting = [i for i, own in enumerate(slide.levels) if own.downsample <= 1.25 * wanted]
        level = max(fitting, key=lambda i: slide.levels[i].downsample, default=0)
    downsample = slide.levels[level].downsample
    factor = max(1, round(wanted / downsample), math.ceil(longest / downsample / (max_px - 1)))
    left, top = math.floor(x / downsample), math.floor(y / downsample)
    columns = math.ceil(((x + width) / downsample - left) / factor)
    rows = math.ceil(((y + height) / downsample - top) / factor)
    pixels = _box_means(slide, level, (left, top), (columns, rows), factor)
    origin_l0 = (left * downsample, top * downsample)
    return Raster(pixels=pixels, origin_l0=origin_l0, scale=downsample * factor)


def _box_means(
    slide: Slide, level: int, start: tuple[int, int], size_px: tuple[int, int], factor: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Every `factor` × `factor` square of a level, from `start` on, averaged to one pixel."""
    columns, rows = size_px
    pixels = np.empty((rows, columns, 3), dtype=np.uint8)
    block = max(1, BLOCK_PX // factor)
    for row in range(0, rows, block):
        for column in range(0, columns, block):
            high, wide = min(block, rows - row), min(block, columns - column)
            corner = (start[0] + column * factor, start[1] + row * factor)
            read = read_around_damage(slide, level, *corner, wide * factor, high * factor)
            small = cv2.resize(read, (wide, high), interpolation=cv2.INTER_AREA)
            pixels[row : row + high, column : column + wide] = small
    return pixels


def read_around_damage(
    slide: Slide, level: int, x: int, y: int, width: int, height: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Part of a level in its own pixels; what cannot be decoded is the background colour.

    Only for pictures that are looked at from afar (tissue, overview): one broken tile must not cost
    the slide. Patches are never read this way.
    """
    try:
        return slide.read(level, x, y, width, height)
    except PatchError:
        if max(width, height) <= SMALLEST_DAMAGE_PX:
            return np.full((height, width, 3), slide.metadata.background, np.uint8)
    if width >= height:
        half = width // 2
        left = read_around_damage(slide, level, x, y, half, height)
        right = read_around_damage(slide, level, x + half, y, width - half, height)
        return np.concatenate([left, right], axis=1)
    half = height // 2
    upper = read_around_damage(slide, level, x, y, width, half)
    lower = read_around_damage(slide, level, x, y + half, width, height - half)
    return np.concatenate([upper, lower], axis=0)


def box_means(
    channel: np.ndarray, boxes_px: Float64[np.ndarray, "box 4"]
) -> Float64[np.ndarray, " box"]:
    """Mean of a channel over boxes (left, top, right, bottom), fractions of pixels included.

    What lies outside the channel counts as 0. An integral image makes the cost independent of the
    boxes' size; between its nodes it is interpolated, which is exact for square pixels.
    """
    total = cv2.integral(channel.astype(np.uint8, copy=False), sdepth=cv2.CV_64F)
    left, top, right, bottom = boxes_px.T
    sums = (
        _integral_at(total, right, bottom)
        - _integral_at(total, left, bottom)
        - _integral_at(total, right, top)
        + _integral_at(total, left, top)
    )
    return np.asarray(sums / ((right - left) * (bottom - top)))


def _integral_at(
    total: Float64[np.ndarray, "height width"],
    x: Float64[np.ndarray, " box"],
    y: Float64[np.ndarray, " box"],
) -> Float64[np.ndarray, " box"]:
    """The integral image between its nodes."""
    height, width = total.shape
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    column = np.minimum(x.astype(np.int64), width - 2)
    row = np.minimum(y.astype(np.int64), height - 2)
    right, down = x - column, y - row
    flat, node = total.ravel(), row * width + column
    upper = flat[node] * (1 - right) + flat[node + 1] * right
    lower = flat[node + width] * (1 - right) + flat[node + width + 1] * right
    return np.asarray(upper * (1 - down) + lower * down)
