"""One scale of colours for tiles, pictures and overlays: a percentile's colour."""

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

NAME = "turbo"
LEVELS = 10  # classes of tiles, so that QuPath can show and hide them


@cache
def palette() -> UInt8[np.ndarray, "256 3"]:
    """The colours from percentile 0 to 100: blue, green, yellow, red."""
    from matplotlib import colormaps  # slow to import

    shades = colormaps[NAME](np.arange(256))[:, :3]
    return np.rint(255 * shades).astype(np.uint8)


def colours(percentile: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """The colour of each percentile; of NaN, that of 0."""
    place = np.nan_to_num(percentile, nan=0.0) * (255 / 100)
    return palette()[np.clip(np.rint(place), 0, 255).astype(np.uint8)]


def level_of(percentile: Float[np.ndarray, " patch"]) -> np.ndarray:
    """0 … LEVELS − 1."""
    return np.clip(percentile * LEVELS // 100, 0, LEVELS - 1).astype(int)


def level_colour(level: int) -> tuple[int, int, int]:
    """The colour of a level's middle."""
    red, green, blue = colours(np.array((level + 0.5) * 100 / LEVELS)).tolist()
    return red, green, blue
