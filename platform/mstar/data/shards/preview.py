"""A sheet of rows, to look at: are these patches, in the right colours, of many slides?"""

import io
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from mstar.slides.raw_tiles import decode

_CELL_PX = 144
_TEXT_PX = 14
_GAP_PX = 4
_GAP_COLOUR = (255, 255, 255)


def draw_sheet(
    jpegs: Sequence[bytes], names: Sequence[str], *, columns: int = 8
) -> UInt8[np.ndarray, "height width 3"]:
    """Patches side by side, each with its name below, cut to the width of the patch."""
    rows = max(1, -(-len(jpegs) // columns))
    step_x, step_y = _CELL_PX + _GAP_PX, _CELL_PX + _TEXT_PX + _GAP_PX
    size = columns * step_x + _GAP_PX, rows * step_y + _GAP_PX
    sheet = Image.new("RGB", size, _GAP_COLOUR)
    draw = ImageDraw.Draw(sheet)
    for at, (data, name) in enumerate(zip(jpegs, names, strict=True)):
        x, y = _GAP_PX + at % columns * step_x, _GAP_PX + at // columns * step_y
        small = cv2.resize(decode(data), (_CELL_PX, _CELL_PX), interpolation=cv2.INTER_AREA)
        sheet.paste(Image.fromarray(small), (x, y))
        draw.text((x, y + _CELL_PX + 1), _shortened(draw, name), fill=(0, 0, 0))
    return np.asarray(sheet)


def to_jpeg(sheet: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """A sheet as the bytes of a JPEG file."""
    out = io.BytesIO()
    Image.fromarray(sheet).save(out, "JPEG", quality=90)
    return out.getvalue()


def _shortened(draw: ImageDraw.ImageDraw, name: str) -> str:
    """The end of a name, which tells slides apart, as far as there is room for it."""
    while draw.textlength(name) > _CELL_PX:
        name = name[1:]
    return name
