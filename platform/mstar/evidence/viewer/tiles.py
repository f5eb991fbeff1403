"""Tiles as JPEG, made when asked for, the last ones kept; safe to use from threads."""

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import simplejpeg

from mstar.errors import PatchError
from mstar.evidence.viewer.deepzoom import DeepZoom, tile_pixels
from mstar.slides.reader import Slide

CACHE_BYTES = 128 << 20
_UNREADABLE = 200  # grey level of what cannot be decoded


class TileMaker:
    """The tiles of one slide.

    unreadable: addresses of tiles whose pixels could not be decoded, and why.
    """

    def __init__(
        self,
        slide: Slide,
        zoom: DeepZoom,
        *,
        quality: int = 85,
        threads: int = 4,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Makes nothing yet."""
        self.slide, self.zoom, self.quality = slide, zoom, quality
        self.unreadable: dict[tuple[int, int, int], str] = {}
        self.num_made = 0
        self._kept: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._kept_bytes, self._cache_bytes = 0, cache_bytes
        self._lock, self._threads = threading.Lock(), threads
        self._slots = threading.Semaphore(threads)

    @property
    def kept_bytes(self) -> int:
        """Size of the tiles that are kept."""
        return self._kept_bytes

    def tile(self, level: int, column: int, row: int) -> bytes | None:
        """A tile as JPEG; None when there is no such tile; grey when it cannot be decoded."""
        address = (level, column, row)
        if not self.zoom.has(*address):
            return None
        with self._lock:
            if address in self._kept:
                self._kept.move_to_end(address)
                return self._kept[address]
        with self._slots:
            made = self._make(address)
        self._keep(address, made)
        return made

    def close(self) -> None:
        """Waits for tiles in the making, then closes the slide."""
        for _ in range(self._threads):
            self._slots.acquire()
        self.slide.close()

    def _make(self, address: tuple[int, int, int]) -> bytes:
        try:
            pixels = tile_pixels(self.slide, self.zoom, *address)
        except PatchError as error:
            with self._lock:
                self.unreadable[address] = str(error)
            _, _, width, height = self.zoom.box(*address)
            pixels = np.full((height, width, 3), _UNREADABLE, np.uint8)
        return encode_jpeg(pixels, self.quality)

    def _keep(self, address: tuple[int, int, int], made: bytes) -> None:
        with self._lock:
            self.num_made += 1
            if address in self._kept or len(made) > self._cache_bytes:
                return
            self._kept[address] = made
            self._kept_bytes += len(made)
            while self._kept_bytes > self._cache_bytes:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])


def encode_jpeg(pixels: Any, quality: int) -> bytes:
    """RGB pixels as JPEG."""
    made: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    return made
