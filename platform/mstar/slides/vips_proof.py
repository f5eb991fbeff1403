"""When the fast reader may be used: a rule about the file, then a proof on its own pixels."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from mstar.errors import PatchError
from mstar.slides.levels import Level
from mstar.slides.openslide_reader import OpenSlideSlide
from mstar.slides.tiff_pages import TiffPage
from mstar.slides.vips_reader import VipsSlide

# Formats whose levels are plain pages with one origin. Leica and Ventana place several areas,
# Philips pads levels, Trestle overlaps tiles, NDPI is not tiled: OpenSlide's business.
_VENDORS = ("aperio", "generic-tiff")
_PHOTOMETRICS = ("RGB", "YCBCR")
_WINDOW_PX = 96
_WINDOWS = 3  # per level
_EXACT_PX = 1 / 1024  # nearer than this to a level pixel, OpenSlide blends nothing in


def match_pages(
    vendor: str, levels: tuple[Level, ...], pages: list[TiffPage]
) -> list[TiffPage] | str:
    """The TIFF page of each level, or why the fast reader does not fit this file."""
    if vendor not in _VENDORS:
        return f"vendor {vendor} is not one of {', '.join(_VENDORS)}"
    matched = []
    for number, level in enumerate(levels):
        fitting = [p for p in pages if (p.width, p.height) == (level.width, level.height)]
        if len(fitting) != 1:
            return f"level {number} has the size of {len(fitting)} TIFF pages, not of one"
        problem = _page_problem(fitting[0])
        if problem:
            return f"level {number}: {problem}"
        matched.append(fitting[0])
    return matched


def _page_problem(page: TiffPage) -> str | None:
    if page.compression != "JPEG":
        return f"compression {page.compression}, not JPEG"
    if page.photometric not in _PHOTOMETRICS:
        return f"photometric {page.photometric}, not one of {', '.join(_PHOTOMETRICS)}"
    if (page.bits_per_sample, page.samples, page.contiguous) != (8, 3, True):
        return "not 3 interleaved samples of 8 bits"
    if min(page.byte_counts, default=0) == 0:
        return "tiles without data"
    return None


def disprove(fast: VipsSlide, judge: OpenSlideSlide) -> str | None:
    """Why the fast reader is not to be trusted on this file; None when its pixels are equal.

    Compares a few small windows per level bit by bit, over tile corners and where the JPEG data is
    largest, since glass proves nothing. A window that neither reader decodes proves nothing either.
    """
    for number, level in enumerate(judge.levels):
        proven = 0
        for x, y in _windows(level, fast.pages[number]):
            size = min(_WINDOW_PX, level.width - x), min(_WINDOW_PX, level.height - y)
            pixels = fast.read_fast(number, x, y, *size)
            if pixels is None:
                continue
            try:
                expected = judge.read(number, x, y, *size)
            except PatchError:
                return f"level {number}: libvips decodes what OpenSlide refuses at ({x}, {y})"
            if not np.array_equal(pixels, expected):
                difference = int(np.abs(pixels.astype(int) - expected).max())
                return f"level {number}: pixels differ by up to {difference} at ({x}, {y})"
            proven += 1
        if not proven:
            return f"level {number}: no window could be compared"
    return None


def _windows(level: Level, page: TiffPage) -> Iterator[tuple[int, int]]:
    """Top-left corners of the windows to compare, each over the corner of a rich tile."""
    good_x = _exact_positions(level.width, level.downsample)
    good_y = _exact_positions(level.height, level.downsample)
    last = int(good_x[-1]), int(good_y[-1])
    found: set[tuple[int, int]] = {last}
    for tile in np.argsort(page.byte_counts, kind="stable")[::-1][:100]:
        row, column = divmod(int(tile), page.tiles_across)
        x = _nearest(good_x, column * page.tile_width - _WINDOW_PX // 2)
        y = _nearest(good_y, row * page.tile_height - _WINDOW_PX // 2)
        near = abs(x - column * page.tile_width) < page.tile_width
        if near and abs(y - row * page.tile_height) < page.tile_height:
            found.add((x, y))
        if len(found) == _WINDOWS:
            break
    yield from sorted(found | {(0, 0)} if len(found) == 1 else found)


def _exact_positions(length: int, downsample: float) -> Int64[np.ndarray, " position"]:
    """Level pixels that fall on a whole level-0 pixel, where OpenSlide returns them unblended."""
    positions = np.arange(max(1, length - _WINDOW_PX + 1))
    l0 = positions * downsample
    good: Int64[np.ndarray, " position"]
    good = positions[np.abs(l0 - np.rint(l0)) / downsample < _EXACT_PX]
    return good


def _nearest(values: Int64[np.ndarray, " position"], wanted: int) -> int:
    return int(values[np.abs(values - wanted).argmin()])
