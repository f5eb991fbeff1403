"""Pyramid levels and the pixel arithmetic that every reader shares: clipping and thumbnails."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import UInt8

Pixels = UInt8[np.ndarray, "height width 3"]
Fetch = Callable[[int, int, int, int], Pixels]  # x, y, width, height, all inside the level

_STRIP_PX = 16_000_000  # a thumbnail holds this many level pixels at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One level of the pyramid; `downsample` is the true ratio of sizes, not a rounded one."""

    width: int
    height: int
    downsample: float


def level_position(l0: int, downsample: float) -> int:
    """The level pixel nearest to a level-0 coordinate; from l0 each time, so that nothing drifts.

    Off by at most half a level pixel, `downsample / 2` level-0 pixels, wherever it lies.
    """
    return int(np.floor(l0 / downsample + 0.5))


def read_clipped(
    level: Level,
    window: tuple[int, int, int, int],
    background: tuple[int, int, int],
    fetch: Fetch,
) -> Pixels:
    """The window (x, y, width, height) of a level; what lies outside it is background."""
    x, y, width, height = window
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, level.width), min(y + height, level.height)
    if (left, top, right, bottom) == (x, y, x + width, y + height):
        return fetch(x, y, width, height)
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = background
    if left < right and top < bottom:
        inside = fetch(left, top, right - left, bottom - top)
        pixels[top - y : bottom - y, left - x : right - x] = inside
    return pixels


def draw_thumbnail(levels: tuple[Level, ...], max_px: int, read: Callable[..., Pixels]) -> Pixels:
    """The whole slide with its longer side at most `max_px`, never enlarged.

    Averaged down, strip by strip, from the smallest level that is large enough: memory stays
    bounded on slides without a pyramid.
    """
    fitting = [i for i, level in enumerate(levels) if max(level.width, level.height) >= max_px]
    index = fitting[-1] if fitting else 0
    level = levels[index]
    scale = min(1.0, max_px / max(level.width, level.height))
    width, height = max(1, round(level.width * scale)), max(1, round(level.height * scale))
    strips = -(-level.width * level.height // _STRIP_PX)
    edges = np.linspace(0, height, min(strips, height) + 1).round().astype(int)
    thumbnail = np.empty((height, width, 3), np.uint8)
    for start, stop in pairwise(edges):
        top, bottom = (round(row * level.height / height) for row in (start, stop))
        strip = read(index, 0, top, level.width, bottom - top)
        size = (width, int(stop - start))
        cv2.resize(strip, size, dst=thumbnail[start:stop], interpolation=cv2.INTER_AREA)
    return thumbnail
