"""The JPEG bytes of a slide's own tiles, as files that any decoder shows in the right colours.

    tiles = RawTiles.of(slide)              # None where the format has no such tiles
    data = tiles.read(level, x, y, 256)     # None where that window is not exactly one tile

A tile in a TIFF is often no JPEG file of its own: quantisation and Huffman tables lie once in the
directory, and whether the three components are RGB (as Aperio stores them) or YCbCr is said there
too. Both are put into the stream; the entropy-coded data stay as the scanner wrote them. Decoded,
the bytes are the pixels that the slide's reader gives, which is proven on a tile of each level
before any is handed out.
"""

import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile

from mstar.errors import SlideError
from mstar.slides.reader import Slide
from mstar.slides.tiff_pages import TiffPage, looks_decodable
from mstar.slides.vips_reader import VipsSlide

_SOI, _EOI, _SOS, _APP0, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE
_BASELINE = (0xC0, 0xC1)
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_TRANSFORM = {"RGB": 0, "YCBCR": 1}  # of the Adobe marker, which every decoder obeys
_TILES_TO_PROVE = 20  # looked at for one that is sound, before a level is given up


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegHeader:
    """What a JPEG stream says before its entropy-coded data.

    adobe: the colour transform of the Adobe marker, None without one.
    components: their ids.
    """

    baseline: bool
    width: int
    height: int
    components: tuple[int, ...]
    jfif: bool
    adobe: int | None

    @property
    def photometric(self) -> str:
        """The colours a decoder assumes who sees nothing but the stream (libjpeg's rule)."""
        if self.jfif:
            return "YCBCR"
        if self.adobe is not None:
            return "RGB" if self.adobe == 0 else "YCBCR"
        return "RGB" if self.components == (0x52, 0x47, 0x42) else "YCBCR"


class RawTiles:
    """Whole tiles of one slide, each as a JPEG file; threads may share it."""

    def __init__(self, slide: VipsSlide) -> None:
        """Use `RawTiles.of`."""
        self._slide = slide
        self._path = Path(slide.uri)
        self._tables = _read_tables(self._path, slide.pages)
        self._proven: dict[int, bool] = {}
        self._lock = threading.Lock()
        self._file = os.open(self._path, os.O_RDONLY)

    @classmethod
    def of(cls, slide: Slide) -> "RawTiles | None":
        """The tiles of an open slide; None where its pixels are not plain JPEG tiles.

        That is what the fast reader has found out and proven already: see `vips_proof`.
        """
        return cls(slide) if isinstance(slide, VipsSlide) else None

    def read(self, level: int, x: int, y: int, side_px: int) -> bytes | None:
        """The JPEG file of the tile that is this window; None when no tile is.

        Args:
            level: of the pyramid.
            x: left of the window in the level's own pixels.
            y: top of the window.
            side_px: of the window.
        """
        page = self._slide.pages[level]
        if (page.tile_width, page.tile_height) != (side_px, side_px) or x % side_px or y % side_px:
            return None
        if x < 0 or y < 0 or x + side_px > page.width or y + side_px > page.height:
            return None  # the rest of an edge tile is whatever the scanner put there
        if not self._is_proven(level):
            return None
        return self._tile(level, y // side_px * page.tiles_across + x // side_px)

    def close(self) -> None:
        """Give the file back; the slide stays open."""
        os.close(self._file)

    def _tile(self, level: int, tile: int) -> bytes | None:
        """A tile as a JPEG file, None when its bytes look damaged."""
        page = self._slide.pages[level]
        data = os.pread(self._file, page.byte_counts[tile], page.offsets[tile])
        if len(data) < page.byte_counts[tile] or not looks_decodable(data):
            return None
        try:
            merged = standalone(data, self._tables[level], page.photometric)
            header = read_header(merged)
        except SlideError:
            return None
        size = header.width, header.height
        sound = header.baseline and size == (page.tile_width, page.tile_height)
        return merged if sound and len(header.components) == 3 else None

    def _is_proven(self, level: int) -> bool:
        with self._lock:
            if level not in self._proven:
                self._proven[level] = self._prove(level)
            return self._proven[level]

    def _prove(self, level: int) -> bool:
        """Whether a tile of the level, decoded alone, gives the reader's pixels.

        The largest is taken: it has the most detail, and glass proves nothing.
        """
        page = self._slide.pages[level]
        for tile in np.argsort(page.byte_counts, kind="stable")[::-1][:_TILES_TO_PROVE].tolist():
            row, column = divmod(tile, page.tiles_across)
            x, y = column * page.tile_width, row * page.tile_height
            width, height = (
                min(page.tile_width, page.width - x),
                min(page.tile_height, page.height - y),
            )
            data = self._tile(level, tile)
            if data is None:
                continue
            try:
                expected = self._slide.read(level, x, y, width, height)
                found = decode(data)[:height, :width]
            except (SlideError, ValueError):
                continue
            return bool(np.array_equal(found, expected))
        return False


def decode(data: bytes) -> np.ndarray:
    """The pixels of a JPEG file as libjpeg gives them: RGB, exact arithmetic, smooth chroma.

    Raises:
        ValueError: the bytes cannot be decoded.
    """
    return np.asarray(simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False))


def standalone(data: bytes, tables: bytes, photometric: str) -> bytes:
    """A tile's stream as a JPEG file: tables merged in, colours stated where they would be guessed.

    Args:
        data: the tile, with or without tables of its own.
        tables: the directory's JPEGTables, empty when there are none.
        photometric: RGB or YCBCR, as the directory states it.

    Raises:
        SlideError: the bytes are not a JPEG stream.
    """
    header = read_header(data)
    end = data.rfind(b"\xff\xd9")
    body = data[2 : end + 2] if end > 0 else data[2:]
    if header.photometric != photometric:
        body = _adobe(_TRANSFORM[photometric]) + _without(body, (_APP0, _APP14))
    return b"\xff\xd8" + _table_segments(tables) + body


def read_header(data: bytes) -> JpegHeader:
    """The header of a JPEG stream.

    Raises:
        SlideError: there is none.
    """
    header = JpegHeader(baseline=False, width=0, height=0, components=(), jfif=False, adobe=None)
    for marker, start, stop in _segments(data, 2):
        body = data[start + 4 : stop]
        if marker == _APP0 and body.startswith(b"JFIF\0"):
            header = replace(header, jfif=True)
        elif marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            header = replace(header, adobe=body[11])
        elif marker in _FRAMES and len(body) >= 6:
            bits, height, width, count = struct.unpack(">BHHB", body[:6])
            header = replace(
                header,
                baseline=marker in _BASELINE and bits == 8,
                width=width,
                height=height,
                components=tuple(body[6 : 6 + 3 * count : 3]),
            )
    if not header.components:
        raise SlideError("a tile is no JPEG stream: it has no frame header")
    return header


def _segments(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment up to the start of the scan, or the end of tables."""
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise SlideError(f"a tile is no JPEG stream: byte {at} is {data[at]:#04x}, no marker")
        marker = data[at + 1]
        if marker in (_SOS, _EOI):
            return
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        stop = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, at, stop
        at = stop


def _table_segments(tables: bytes) -> bytes:
    """JPEGTables without the markers around them."""
    if not tables:
        return b""
    end = tables.rfind(b"\xff\xd9")
    return _without(tables[2 : end if end > 0 else len(tables)], (_APP0, _APP14))


def _without(body: bytes, markers: tuple[int, ...]) -> bytes:
    """The segments of a stream without those of some markers; all that follows them is kept."""
    kept, last = b"", 0
    for marker, start, stop in _segments(body, 0):
        if marker in markers:
            kept += body[last:start]
            last = stop
    return kept + body[last:]


def _adobe(transform: int) -> bytes:
    """The Adobe marker: version 100, no flags, the colour transform."""
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])


def _read_tables(path: Path, pages: list[TiffPage]) -> list[bytes]:
    """The JPEGTables of some pages."""
    with tifffile.TiffFile(path) as tiff:
        return [bytes(tiff.pages[page.index].jpegtables or b"") for page in pages]
