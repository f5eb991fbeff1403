"""Writes pixels as a pyramidal, tiled, JPEG-compressed TIFF with Aperio's description.

Equal pixels give equal bytes: libvips writes neither time nor host into the file.
"""

import os
from pathlib import Path

os.environ.setdefault("VIPS_CONCURRENCY", "1")  # callers bring the processes

import numpy as np
import pyvips
from jaxtyping import UInt8

TILE_PX = 256
_SOFTWARE = "Aperio Image Library v12.0.16"  # readers know the format by its first word


def write_svs(
    path: Path,
    pixels: UInt8[np.ndarray, "height width 3"],
    *,
    mpp: float,
    objective: float,
    quality: int,
    description: str = "",
) -> None:
    """Write a slide; each level of the pyramid is half as large as the one before.

    `mpp`: µm per pixel at level 0. `objective`: nominal magnification. `quality`: JPEG's, 1 to 89
    (from 90 on colours would be stored another way). `description`: fields to add to the Aperio
    comment, `|Name = value`. An interrupted call leaves half a file: write to a temporary name.
    """
    height, width = pixels.shape[:2]
    image = pyvips.Image.new_from_memory(np.ascontiguousarray(pixels), width, height, 3, "uchar")
    image = image.copy(interpretation="srgb", xres=1000 / mpp, yres=1000 / mpp)
    text = _aperio_text(width, height, mpp=mpp, objective=objective, quality=quality)
    image.set_type(pyvips.GValue.gstr_type, "image-description", text + description)
    image.tiffsave(
        str(path),
        tile=True,
        tile_width=TILE_PX,
        tile_height=TILE_PX,
        pyramid=True,
        compression="jpeg",
        Q=quality,
    )


def _aperio_text(width: int, height: int, *, mpp: float, objective: float, quality: int) -> str:
    size = f"{width}x{height}"
    return (
        f"{_SOFTWARE}\r\n{size} [0,0 {size}] ({TILE_PX}x{TILE_PX}) JPEG/RGB Q={quality}"
        f"|AppMag = {objective:g}|MPP = {mpp:.6g}"
    )
