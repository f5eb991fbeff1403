"""From a slide's patch to the JPEG bytes that are stored.

Raw where it can be: a patch that is exactly one tile of the slide, read without a resize, is stored
as the tile's own JPEG data, which costs no decoding and loses nothing. Else the pixels that the
encoder saw before its own resize are brought to the stored side, where that differs, and encoded
once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simplejpeg
from jaxtyping import UInt8

from mstar.schema import Grid
from mstar.slides.levels import level_position
from mstar.slides.patches import read_patch
from mstar.slides.raw_tiles import RawTiles
from mstar.slides.reader import Slide

Resize = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """How patches are stored.

    side_px: of every stored image.
    quality: of JPEG, where a patch is encoded; always without subsampled colours (4:4:4).
    pass_through: whether raw tiles are taken where they fit.
    """

    side_px: int
    quality: int = 95
    pass_through: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPatch:
    """The JPEG file of one patch."""

    data: bytes
    passed_through: bool


class PatchImages:
    """The patches of one open slide as JPEG files; threads may share it."""

    def __init__(self, slide: Slide, grid: Grid, config: ImageConfig, resize: Resize) -> None:
        """Take the slide's patches from `grid`.

        `resize` is the kernel of the encoder that made the features: (pixels, side) → pixels.
        """
        self._slide, self._grid, self._config, self._resize = slide, grid, config, resize
        whole = grid.read_px == grid.output_px == config.side_px
        self._tiles = RawTiles.of(slide) if config.pass_through and whole else None

    def read(self, row: int) -> StoredPatch:
        """The stored form of the grid's patch `row`.

        Raises:
            PatchError: its pixels cannot be decoded.
        """
        raw = self._raw(row)
        if raw is not None:
            return StoredPatch(data=raw, passed_through=True)
        pixels = self._resize(read_patch(self._slide, self._grid, row), self._config.side_px)
        data = encode(pixels, self._config.quality)
        return StoredPatch(data=data, passed_through=False)

    def close(self) -> None:
        """Give back what is held beside the slide."""
        if self._tiles is not None:
            self._tiles.close()

    def _raw(self, row: int) -> bytes | None:
        if self._tiles is None:
            return None
        level = self._grid.read_level
        downsample = self._slide.levels[level].downsample
        x, y = (level_position(int(value), downsample) for value in self._grid.coords[row])
        return self._tiles.read(level, x, y, self._grid.read_px)


def encode(pixels: UInt8[np.ndarray, "side side 3"], quality: int) -> bytes:
    """Pixels as a JPEG file, colours in full resolution."""
    return bytes(
        simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels),
            quality=quality,
            colorspace="RGB",
            colorsubsampling="444",
            fastdct=False,
        )
    )
