"""From a grid to pixels: where a patch lies on its level, reading it, and the one resize."""

import numpy as np
from jaxtyping import UInt8

from mstar.errors import PatchError, SlideError
from mstar.schema import Grid
from mstar.slides.kernels import resize
from mstar.slides.levels import level_position
from mstar.slides.reader import Slide


def read_patch(slide: Slide, grid: Grid, index: int) -> UInt8[np.ndarray, "height width 3"]:
    """Patch `index` of the grid, output_px × output_px.

    The level pixel is rounded from the level-0 coordinate of this very patch, so positions are
    right to half a pixel of the level however far right they lie. At level 0 they are exact.

    Raises:
        PatchError: the pixels cannot be decoded.
    """
    x_l0, y_l0 = (int(value) for value in grid.coords[index])
    downsample = slide.levels[grid.read_level].downsample
    x, y = level_position(x_l0, downsample), level_position(y_l0, downsample)
    try:
        pixels = slide.read(grid.read_level, x, y, grid.read_px, grid.read_px)
    except SlideError as error:
        where = f"patch {index} of {len(grid)} at level-0 ({x_l0}, {y_l0})"
        raise PatchError(f"slide {grid.slide_id}: {where} cannot be read: {error}") from error
    return resize(pixels, grid.output_px)
