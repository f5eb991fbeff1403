"""Pictures for people: a slide with its tissue and grid, and sheets of many of them.

Only the pyramid is drawn, never the label or the macro image, which can name the patient.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mstar.schema import Grid
from mstar.slides.raster import read_raster
from mstar.slides.reader import Slide
from mstar.slides.tissue import Tissue

MAX_PX = 1024
TISSUE_RGB = (0, 150, 60)
HOLE_RGB = (30, 80, 230)
GRID_RGB = (25, 25, 25)


def draw_overview(slide: Slide, tissue: Tissue, grid: Grid, *, max_px: int = MAX_PX) -> Image.Image:
    """The scanned area with tissue outlines (green), holes (blue) and patches (thin, dark).

    What no patch covers is paler, so that a gap in the grid is seen at once.
    """
    x, y, width, height = slide.metadata.bounds_l0
    shrink = max(1.0, max(width, height) / max_px)  # level-0 pixels per pixel of the picture
    size_px = (max(1, round(width / shrink)), max(1, round(height / shrink)))
    # Twice as fine, then reduced once: sharper than the nearest whole reduction of a level.
    raster = read_raster(slide, scale=shrink / 2, max_px=4 * max_px)
    cut = [round(length / raster.scale) for length in (width, height)]
    pixels = raster.pixels[: max(1, cut[1]), : max(1, cut[0])]
    picture = np.ascontiguousarray(cv2.resize(pixels, size_px, interpolation=cv2.INTER_AREA))
    _draw_patches(picture, grid, (x, y), shrink)
    thick = max(2, max_px // 400)
    for region in tissue.polygons:
        for ring, color in [
            (region.outer, TISSUE_RGB),
            *((hole, HOLE_RGB) for hole in region.holes),
        ]:
            points = np.rint((ring - np.array((x, y))) / shrink).astype(np.int32)
            cv2.polylines(picture, [points], True, color, thick, cv2.LINE_AA)
    return Image.fromarray(picture)


def _draw_patches(picture: np.ndarray, grid: Grid, origin: tuple[int, int], shrink: float) -> None:
    """Draws the patches in place: colours stay inside them, a half-transparent line around."""
    start = np.floor((grid.coords - np.array(origin)) / shrink).astype(int)
    end = np.floor((grid.coords + grid.patch_size_l0 - np.array(origin)) / shrink).astype(int)
    start, end = np.maximum(start, 0), np.maximum(end, 1)
    covered = np.zeros(picture.shape[:2], dtype=bool)
    lines = np.zeros(picture.shape[:2], dtype=np.uint8)
    outlined = grid.patch_size_l0 / shrink >= 4  # below that lines would hide the picture
    for (left, top), (right, bottom) in zip(start.tolist(), end.tolist(), strict=True):
        covered[top:bottom, left:right] = True
        if outlined:
            cv2.rectangle(lines, (left, top), (right, bottom), 1, 1)
    picture[~covered] = picture[~covered] // 3 + 170
    drawn = lines.astype(bool)
    picture[drawn] = picture[drawn] // 2 + np.array(GRID_RGB, dtype=np.uint8) // 2


def contact_sheet(
    pictures: Sequence[tuple[str, Image.Image]], *, columns: int = 6, cell_px: int = 256
) -> Image.Image:
    """Labelled pictures side by side in the order given; an empty sheet says so."""
    if not pictures:
        return contact_sheet([("no slides", Image.new("RGB", (8, 8), "white"))], cell_px=cell_px)
    font = ImageFont.load_default(size=max(10, cell_px // 18))
    gap, text_px = max(4, cell_px // 32), cell_px // 9
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    size = (gap + columns * (cell_px + gap), gap + rows * (cell_px + text_px + gap))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for index, (label, picture) in enumerate(pictures):
        left = gap + index % columns * (cell_px + gap)
        top = gap + index // columns * (cell_px + text_px + gap)
        small = picture.convert("RGB")
        small.thumbnail((cell_px, cell_px), Image.Resampling.BOX)
        inset = ((cell_px - small.width) // 2, (cell_px - small.height) // 2)
        sheet.paste(small, (left + inset[0], top + inset[1]))
        pen.rectangle((left, top, left + cell_px - 1, top + cell_px - 1), outline=(200, 200, 200))
        text = _fitting(pen, label, font, cell_px)
        pen.text((left, top + cell_px + 2), text, fill=(30, 30, 30), font=font)
    return sheet


def _fitting(
    pen: ImageDraw.ImageDraw,
    label: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    width_px: int,
) -> str:
    """The label, its beginning cut off when it is too wide: slide names differ at their ends."""
    if pen.textlength(label, font=font) <= width_px:
        return label
    while label and pen.textlength("…" + label, font=font) > width_px:
        label = label[1:]
    return "…" + label
