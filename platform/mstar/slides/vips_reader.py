"""The fast reader of tiled JPEG TIFFs: libvips regions, trusted only as far as OpenSlide agrees."""

import os
import threading
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("VIPS_CONCURRENCY", "1")  # callers bring the threads

import numpy as np
import pyvips

from mstar.errors import SlideError
from mstar.slides.levels import Level, Pixels, draw_thumbnail, read_clipped
from mstar.slides.malloc import keep_freed_memory
from mstar.slides.metadata import SlideMetadata
from mstar.slides.openslide_reader import OpenSlideSlide
from mstar.slides.tiff_pages import TiffPage, TileCheck

# libvips keeps past loads, files open, in an operation cache; a slide's life is ours to manage.
pyvips.cache_set_max(0)

_TALL_ROWS = 3  # windows over this many tile rows outgrow the two rows that libvips keeps
_TALL_CACHE_BYTES = 192 * 2**20

_Key = tuple[int, bool]  # level, whether for tall windows


class VipsSlide:
    """A tiled JPEG TIFF read through libvips, one region per thread and level.

    Threads share each level's decoded tiles: libvips keeps about two tile rows of a level that is
    read, `2 * level width * tile height * 3` bytes. Windows over three tile rows or more (512 px at
    40x) get a second cache of at most 192 MiB, so that raster order decodes each tile once. Three
    things go to OpenSlide instead, whose word is final: tiles whose bytes look damaged, windows
    that libvips fails at, and tiles that come back all black, which is how libvips hands out a tile
    that failed for another reader.
    """

    backend = "vips"

    def __init__(self, judge: OpenSlideSlide, path: Path, pages: list[TiffPage]) -> None:
        self.uri = str(path)
        self.levels: tuple[Level, ...] = judge.levels
        self.metadata: SlideMetadata = judge.metadata
        self.width_l0, self.height_l0 = judge.width_l0, judge.height_l0
        keep_freed_memory()
        self._judge = judge
        self._path = path
        self.pages = pages
        self._file = path.open("rb", buffering=0)
        self._checks = [TileCheck(page, self._file.fileno()) for page in pages]
        self._images: dict[_Key, pyvips.Image] = {}
        self._closed = False
        self._local = threading.local()
        self._lock = threading.Lock()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """The window in the level's own pixels; outside the level is background."""
        return read_clipped(
            self.levels[level],
            (x, y, width, height),
            self.metadata.background,
            lambda *inside: self._fetch(level, *inside),
        )

    def thumbnail(self, max_px: int) -> Pixels:
        """The whole slide, its longer side at most `max_px`."""
        return draw_thumbnail(self.levels, max_px, self.read)

    def close(self) -> None:
        """Closes the file; reading afterwards is an error."""
        self.release()
        self._judge.close()

    def release(self) -> None:
        """Gives back what is libvips's, and leaves the OpenSlide slide open."""
        self._closed = True
        self._images = {}
        self._local = threading.local()  # drops the regions of every thread
        self._file.close()

    def read_fast(self, level: int, x: int, y: int, width: int, height: int) -> Pixels | None:
        """The window (inside the level) through libvips alone; None when OpenSlide is to judge."""
        if self._closed:
            raise SlideError(f"slide {self.uri}: read after it was closed")
        if not self._checks[level].sound(x, y, width, height):
            return None
        page = self.pages[level]
        rows = (y + height - 1) // page.tile_height - y // page.tile_height + 1
        image, region = self._region((level, rows >= _TALL_ROWS), rows)
        try:
            data = region.fetch(x, y, width, height)
        except pyvips.Error:
            self._forget(image)
            return None
        pixels = np.frombuffer(data, np.uint8).reshape(height, width, 3)
        return None if self._has_black_tile(level, x, y, pixels) else pixels

    def _fetch(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        pixels = self.read_fast(level, x, y, width, height)
        return self._judge.read(level, x, y, width, height) if pixels is None else pixels

    def _region(self, key: _Key, rows: int) -> tuple[pyvips.Image, pyvips.Region]:
        """This thread's region on the current image of that key."""
        image = self._images.get(key)
        if image is None:
            image = self._load(key, rows)
        regions: dict[_Key, tuple[pyvips.Image, pyvips.Region]]
        regions = self._local.__dict__.setdefault("regions", {})
        held = regions.get(key)
        if held is None or held[0] is not image:
            held = regions[key] = image, pyvips.Region.new(image)
        return held

    def _load(self, key: _Key, rows: int) -> pyvips.Image:
        level, tall = key
        with self._lock:
            if key not in self._images:
                page = self.pages[level]
                image = load_page(self._path, page.index)
                self._images[key] = _with_cache(image, page, rows) if tall else image
            return self._images[key]

    def _forget(self, failed: pyvips.Image) -> None:
        """Drops an image that failed: its cache holds the failed tile as black pixels."""
        with self._lock:
            self._images = {key: i for key, i in self._images.items() if i is not failed}

    def _has_black_tile(self, level: int, x: int, y: int, pixels: Pixels) -> bool:
        """Whether all that the window shows of some tile is black; looks at one pixel per tile."""
        page = self.pages[level]
        rows = _tile_spans(y, pixels.shape[0], page.tile_height)
        columns = _tile_spans(x, pixels.shape[1], page.tile_width)
        return any(
            not pixels[top, left].any() and not pixels[top:bottom, left:right].any()
            for top, bottom in rows
            for left, right in columns
        )


def _tile_spans(start: int, length: int, tile: int) -> list[tuple[int, int]]:
    """The parts of a window that lie in one tile each, as ranges from the window's start."""
    cuts = [0, *range(tile - start % tile, length, tile), length]
    return list(pairwise(cuts))


def load_page(path: Path, page: int) -> pyvips.Image:
    """One TIFF page as a libvips image for random access; nothing is decoded yet."""
    try:
        image = pyvips.Image.tiffload(str(path), page=page, access="random", fail_on="error")
    except pyvips.Error as error:
        raise SlideError(f"slide {path}: libvips cannot open TIFF page {page}: {error}") from error
    if image.bands != 3 or image.format != "uchar":
        raise SlideError(f"slide {path}: page {page} is {image.format} × {image.bands}, not RGB")
    return image


def _with_cache(image: pyvips.Image, page: TiffPage, rows: int) -> pyvips.Image:
    """The image behind a cache of one tile row more than a window touches."""
    tile_bytes = page.tile_width * page.tile_height * 3
    wanted = (rows + 1) * (page.tiles_across + 1)
    return image.tilecache(
        tile_width=page.tile_width,
        tile_height=page.tile_height,
        max_tiles=max(1, min(wanted, _TALL_CACHE_BYTES // tile_bytes)),
        access="random",
        threaded=True,
    )
