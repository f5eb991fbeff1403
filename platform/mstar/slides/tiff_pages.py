"""The directory of a TIFF slide, and a cheap look at whether a JPEG tile's bytes are sound."""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

import tifffile

_log = logging.getLogger(__name__)
# In entropy-coded data 0xFF is followed by 0x00, a restart or another 0xFF; all else is damage.
_STRAY_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_HOLE = bytes(512)  # a disk sector that was never written
_UNKNOWN, _SOUND, _SUSPECT = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TiffPage:
    """One tiled directory of a TIFF, as far as choosing a reader needs it."""

    index: int
    width: int
    height: int
    tile_width: int
    tile_height: int
    compression: str  # tifffile's name, JPEG, APERIO_JP2000_RGB…
    photometric: str
    bits_per_sample: int
    samples: int
    contiguous: bool  # colours interleaved
    offsets: tuple[int, ...]
    byte_counts: tuple[int, ...]

    @property
    def tiles_across(self) -> int:
        """Number of tiles in a row."""
        return -(-self.width // self.tile_width)


def read_tiff_pages(path: Path) -> list[TiffPage]:
    """The tiled pages of a TIFF; empty when the file is not a TIFF that tifffile understands."""
    try:
        with tifffile.TiffFile(path) as tiff:
            return [_read_page(page) for page in tiff.pages if page.is_tiled]
    except (tifffile.TiffFileError, OSError, ValueError, KeyError, AttributeError) as error:
        _log.debug("%s: no TIFF directory: %s", path, error)
        return []


def _read_page(page: tifffile.TiffPage) -> TiffPage:
    bits = page.bitspersample
    return TiffPage(
        index=page.index,
        width=page.imagewidth,
        height=page.imagelength,
        tile_width=page.tilewidth,
        tile_height=page.tilelength,
        compression=getattr(page.compression, "name", str(page.compression)),
        photometric=getattr(page.photometric, "name", str(page.photometric)),
        bits_per_sample=max(bits) if isinstance(bits, tuple) else int(bits),
        samples=page.samplesperpixel,
        contiguous=page.planarconfig == tifffile.PLANARCONFIG.CONTIG,
        offsets=tuple(page.dataoffsets),
        byte_counts=tuple(page.databytecounts),
    )


class TileCheck:
    """Looks at each tile's bytes once, before libvips decodes them.

    libvips decodes damaged JPEG data into grey without a word; OpenSlide refuses it. This finds
    what a storage fault leaves behind (cut, overwritten, unwritten), in about a twentieth of the
    time that decoding takes. A tile that looks wrong is not condemned, OpenSlide is asked.
    """

    def __init__(self, page: TiffPage, file_descriptor: int) -> None:
        self._page = page
        self._file = file_descriptor
        self._states = bytearray(len(page.offsets))

    def sound(self, x: int, y: int, width: int, height: int) -> bool:
        """Whether every tile under the window (inside the page) looks decodable."""
        page, states = self._page, self._states
        for row in range(y // page.tile_height, (y + height - 1) // page.tile_height + 1):
            first = row * page.tiles_across
            for column in range(x // page.tile_width, (x + width - 1) // page.tile_width + 1):
                state = states[first + column] or self._look(first + column)
                if state == _SUSPECT:
                    return False
        return True

    def _look(self, tile: int) -> int:
        start, size = self._page.offsets[tile], self._page.byte_counts[tile]
        try:
            data = os.pread(self._file, size, start)
        except OSError:
            return _SUSPECT  # not remembered: storage trouble may pass
        self._states[tile] = _SOUND if len(data) == size and looks_decodable(data) else _SUSPECT
        return self._states[tile]


def looks_decodable(data: bytes) -> bool:
    """Whether bytes have the outline of one baseline JPEG scan, from start to end marker."""
    scan, end = data.find(b"\xff\xda"), data.rfind(b"\xff\xd9")
    if not data.startswith(b"\xff\xd8") or scan < 0 or not scan < end or len(data) - end > 8:
        return False
    return _STRAY_MARKER.search(data, scan + 2, end) is None and _HOLE not in data
