"""DeepZoom: a slide as square tiles at every power of two, and the pixels of one tile.

Level `max_level` is the finest; each level below has half its size, rounded up, down to 1 × 1.
A tile carries `overlap` pixels of each neighbour it has. A tile's pixel is the mean of the slide's
pixels that it covers, taken from the coarsest level of the slide that is fine enough; pixels at the
right and lower edge that are covered in part are the mean of the part.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from mstar.slides.levels import Level
from mstar.slides.reader import Slide

TILE_PX, OVERLAP_PX = 254, 1
_WINDOW_PX = 16_000_000  # a tile holds this many of the slide's pixels at a time
_FINE_ENOUGH = 1.01  # a level that is coarser by less than this is taken: sizes are rounded
_WHOLE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepZoom:
    """The geometry of the tiles.

    width_l0, height_l0: of the slide. downsample: of the finest level, a power of two; above 1 the
    levels finer than it do not exist.
    """

    width_l0: int
    height_l0: int
    downsample: int = 1
    tile_px: int = TILE_PX
    overlap_px: int = OVERLAP_PX

    @property
    def width(self) -> int:
        """Of the finest level, in its pixels."""
        return -(-self.width_l0 // self.downsample)

    @property
    def height(self) -> int:
        """Of the finest level, in its pixels."""
        return -(-self.height_l0 // self.downsample)

    @property
    def max_level(self) -> int:
        """The finest level; 0 is one pixel."""
        return (max(self.width, self.height) - 1).bit_length()

    def scale(self, level: int) -> int:
        """Level-0 pixels per pixel of a level."""
        return self.downsample << (self.max_level - level)

    def size(self, level: int) -> tuple[int, int]:
        """Width and height of a level."""
        step = 1 << (self.max_level - level)
        return -(-self.width // step), -(-self.height // step)

    def tiles(self, level: int) -> tuple[int, int]:
        """Columns and rows of tiles of a level."""
        width, height = self.size(level)
        return -(-width // self.tile_px), -(-height // self.tile_px)

    def has(self, level: int, column: int, row: int) -> bool:
        """Whether there is such a tile."""
        if not 0 <= level <= self.max_level:
            return False
        columns, rows = self.tiles(level)
        return 0 <= column < columns and 0 <= row < rows

    def box(self, level: int, column: int, row: int) -> tuple[int, int, int, int]:
        """Left, top, width and height of a tile with its overlap, in the level's pixels."""
        assert self.has(level, column, row)
        width, height = self.size(level)
        left = column * self.tile_px - (self.overlap_px if column else 0)
        top = row * self.tile_px - (self.overlap_px if row else 0)
        right = min((column + 1) * self.tile_px + self.overlap_px, width)
        bottom = min((row + 1) * self.tile_px + self.overlap_px, height)
        return left, top, right - left, bottom - top

    def addresses(self) -> Iterator[tuple[int, int, int]]:
        """Level, column and row of every tile, the coarsest first."""
        for level in range(self.max_level + 1):
            columns, rows = self.tiles(level)
            for row in range(rows):
                for column in range(columns):
                    yield level, column, row

    def __len__(self) -> int:
        """Number of tiles."""
        sizes = [self.tiles(level) for level in range(self.max_level + 1)]
        return sum(columns * rows for columns, rows in sizes)


def tile_pixels(
    slide: Slide, zoom: DeepZoom, level: int, column: int, row: int
) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a tile.

    Raises:
        PatchError: the slide's pixels cannot be decoded.
    """
    left, top, width, height = zoom.box(level, column, row)
    index = source_level(slide.levels, zoom.scale(level))
    step = zoom.scale(level) / slide.levels[index].downsample
    strips = max(1, round(width * step * height * step / _WINDOW_PX))
    edges = np.linspace(0, height, min(strips, height) + 1).round().astype(int)
    pixels = np.empty((height, width, 3), np.uint8)
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        box = (left, top + start, width, stop - start)
        pixels[start:stop] = _shrunk(slide, index, box, step)
    return pixels


def source_level(levels: tuple[Level, ...], scale: int) -> int:
    """The coarsest level of a slide that is fine enough for `scale` level-0 pixels a pixel."""
    fine = [i for i, level in enumerate(levels) if level.downsample <= scale * _FINE_ENOUGH]
    return max(fine, key=lambda index: levels[index].downsample, default=0)


def _shrunk(
    slide: Slide, index: int, box: tuple[int, int, int, int], step: float
) -> UInt8[np.ndarray, "height width 3"]:
    """A box in units of `step` pixels of the slide's level, each the mean of what it covers."""
    left, top, width, height = box
    level = slide.levels[index]
    across = _covered(left, width, step, level.width)
    down = _covered(top, height, step, level.height)
    read = slide.read(
        index, across[0], down[0], across[1] - across[0], down[1] - down[0]
    )  # inside the level always
    whole = round(step)
    if abs(step - whole) < _WHOLE:
        right, below = left * whole + width * whole, top * whole + height * whole
        missing = ((0, below - down[1]), (0, right - across[1]), (0, 0))
        if (across[0], down[0]) == (left * whole, top * whole) and max(missing)[1] < whole:
            parts = tuple((1, max(1, whole - one)) for _, one in missing)  # of the last block
            padded = np.pad(read, missing, mode="mean", stat_length=parts)
            shrunk = cv2.resize(padded, (width, height), interpolation=cv2.INTER_AREA)
            return np.asarray(shrunk, np.uint8)
    rows = _weights(top, height, step, down) @ read.reshape(len(read), -1).astype(np.float32)
    columns = _weights(left, width, step, across)
    mixed = np.einsum("wn,hnc->hwc", columns, rows.reshape(height, -1, 3), optimize=True)
    made: UInt8[np.ndarray, "height width 3"] = np.clip(mixed + 0.5, 0, 255).astype(np.uint8)
    return made


def _covered(start: int, count: int, step: float, limit: int) -> tuple[int, int]:
    """First and end of the level's pixels that some steps cover, at least one, all of the level."""
    first = min(int(start * step + _WHOLE), limit - 1)
    end = int(np.ceil((start + count) * step - _WHOLE))
    return first, max(min(end, limit), first + 1)


def _weights(
    start: int, count: int, step: float, covered: tuple[int, int]
) -> Float32[np.ndarray, "step pixel"]:
    """What share each pixel has in each step; a step beyond the level is its last pixel."""
    edges = (start + np.arange(count + 1)) * step
    pixels = np.arange(covered[0], covered[1])
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    shared = np.maximum(shared, 0)
    shared[shared.sum(axis=1) <= _WHOLE, -1] = 1
    made: Float32[np.ndarray, "step pixel"] = shared / shared.sum(axis=1, keepdims=True)
    return made.astype(np.float32)
