"""Which readers there are, and the pixels that each must give: OpenSlide's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from mstar.slides.reader import ReaderChoice

READERS: tuple[ReaderChoice, ...] = ("openslide", "vips")


def expected_pixels(
    path: Path, level: int, place_l0: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """OpenSlide's pixels on white, by OpenSlide and PIL alone."""
    with openslide.OpenSlide(path) as slide:
        image = slide.read_region(place_l0, level, size)
    white = Image.new("RGBA", size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))
