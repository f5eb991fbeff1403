"""One scale of colours for tiles, pictures and overlays: a percentile's colour."""

from functools import cache

import numpy as np
from jaxtyping import Float, Int64, UInt8

NAME = "turbo"
LEVELS = 10  # classes of tiles, so that QuPath can show and hide them


@cache
def palette() -> UInt8[np.ndarray, "256 3"]:
    """The colours from percentile 0 to 100: blue, green, yellow, red."""
    from matplotlib import colormaps  # slow to import

    shades = colormaps[NAME](np.arange(256))[:, :3]
    made: UInt8[np.ndarray, "256 3"] = np.rint(255 * shades).astype(np.uint8)
    return made


def colours(percentile: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """The colour of each percentile; of NaN, that of 0."""
    place = np.nan_to_num(percentile, nan=0.0) * (255 / 100)
    found: UInt8[np.ndarray, "*shape 3"] = palette()[np.clip(np.rint(place), 0, 255).astype(int)]
    return found


def level_of(percentile: Float[np.ndarray, " patch"]) -> Int64[np.ndarray, " patch"]:
    """0 … LEVELS − 1."""
    levels: Int64[np.ndarray, " patch"] = np.clip(percentile * LEVELS // 100, 0, LEVELS - 1).astype(
        np.int64
    )
    return levels


def level_colour(level: int) -> tuple[int, int, int]:
    """The colour of a level's middle."""
    red, green, blue = colours(np.array((level + 0.5) * 100 / LEVELS)).tolist()
    return red, green, blue
