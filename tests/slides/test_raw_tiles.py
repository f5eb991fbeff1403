"""Raw tiles decode to the pixels that OpenSlide gives, for every way a TIFF can hold them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image

from mstar.errors import SlideError
from mstar.slides.raw_tiles import RawTiles, decode, read_header, standalone
from mstar.slides.reader import Slide, open_slide
from support.slides import ArraySlide, SlideSpec, spoil_tile, write_slide

WAYS = [
    {"photometric": photometric, "jpeg_tables": tables, "vendor": vendor}
    for photometric in ("ycbcr", "rgb")
    for tables in (True, False)
    for vendor in ("aperio", "generic")
]
ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


@contextmanager
def opened(path: Path) -> Iterator[tuple[Slide, RawTiles]]:
    """A slide and its tiles, closed afterwards."""
    slide = open_slide(path)
    tiles = RawTiles.of(slide)
    assert tiles is not None, slide.backend
    yield slide, tiles
    tiles.close()
    slide.close()


def openslide_pixels(path: Path, level: int, x: int, y: int, side: int) -> np.ndarray:
    """What OpenSlide itself says of a window, (x, y) in the level's pixels."""
    with openslide.OpenSlide(path) as slide:
        scale = slide.level_downsamples[level]
        place = round(x * scale), round(y * scale)
        return np.asarray(slide.read_region(place, level, (side, side)).convert("RGB"))


def pil_pixels(data: bytes) -> np.ndarray:
    """The same JPEG through another decoder, as one would who knows nothing of slides."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
def test_tiles_decode_to_openslides_pixels(
    way: dict[str, object], slide_factory: Callable[..., Path]
) -> None:
    path = slide_factory(full=True, levels=2, downsample=2.0, **way)
    with opened(path) as (slide, tiles):
        for level, (columns, rows) in enumerate(((4, 3), (2, 1))):
            for column in range(columns):
                for row in range(rows):
                    x, y = column * 256, row * 256
                    data = tiles.read(level, x, y, 256)
                    assert data is not None
                    expected = openslide_pixels(path, level, x, y, 256)
                    np.testing.assert_array_equal(decode(data), expected)
                    np.testing.assert_array_equal(pil_pixels(data), expected)
                    np.testing.assert_array_equal(slide.read(level, x, y, 256, 256), expected)


def test_tiles_of_a_real_slide_decode_to_openslides_pixels(real_slide: Path) -> None:
    with opened(real_slide) as (slide, tiles):
        side = slide.pages[0].tile_width  # type: ignore[attr-defined]
        found = [
            (x, y, tiles.read(0, x, y, side))
            for x in range(0, slide.width_l0, side)
            for y in range(0, slide.height_l0, side)
        ]
        for x, y, data in found:
            inside = x + side <= slide.width_l0 and y + side <= slide.height_l0
            assert (data is not None) == inside
            if data is not None:
                expected = openslide_pixels(real_slide, 0, x, y, side)
                np.testing.assert_array_equal(decode(data), expected)
        assert sum(data is not None for _, _, data in found) > 50


def write_as_aperio(path: Path, spec: SlideSpec) -> Path:
    """RGB in the JPEG and nothing in the stream that says so: ids 0, 1, 2 and no Adobe marker."""
    data = write_slide(path, spec).read_bytes()
    for old, new in (
        (ADOBE_RGB[:9], b"\xff\xfe\x00\x0eAdobe"),  # a comment
        (b"\x03R\x11\x00G\x11\x00B\x11\x00", b"\x03\x00\x11\x00\x01\x11\x00\x02\x11\x00"),
        (b"\x03R\x00G\x00B\x00", b"\x03\x00\x00\x01\x00\x02\x00"),
    ):
        assert data.count(old) >= 12, old
        data = data.replace(old, new)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("jpeg_tables", [True, False])
def test_rgb_tiles_get_the_marker_that_keeps_their_colours(
    jpeg_tables: bool, tmp_path: Path
) -> None:
    spec = SlideSpec(full=True, photometric="rgb", jpeg_tables=jpeg_tables)
    path = write_as_aperio(tmp_path / "a.svs", spec)
    with opened(path) as (_, tiles):
        data = tiles.read(0, 0, 0, 256)
        assert data is not None
        expected = openslide_pixels(path, 0, 0, 0, 256)
        np.testing.assert_array_equal(decode(data), expected)
        np.testing.assert_array_equal(pil_pixels(data), expected)
        assert data.count(ADOBE_RGB) == 1
        wrong = decode(data.replace(ADOBE_RGB, b""))
        assert np.abs(wrong.astype(int) - decode(data)).max() > 50


@pytest.mark.parametrize(
    ("x", "y", "side", "why"),
    [
        (128, 0, 256, "between two tiles"),
        (0, 1, 256, "a row off"),
        (0, 0, 224, "smaller than a tile"),
        (0, 0, 512, "four tiles"),
        (768, 0, 256, "reaches over the right edge"),
        (0, 512, 256, "reaches over the lower edge"),
        (-256, 0, 256, "left of the slide"),
    ],
)
def test_only_whole_tiles_are_handed_out(
    x: int, y: int, side: int, why: str, slide_factory: Callable[..., Path]
) -> None:
    path = slide_factory(full=True, width=1000, height=700)
    with opened(path) as (_, tiles):
        assert tiles.read(0, 0, 0, 256) is not None
        assert tiles.read(0, x, y, side) is None, why


@pytest.mark.parametrize("damage", ["garbage", "cut", "overwritten", "no-end"])
def test_a_damaged_tile_is_not_handed_out(damage: str, tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.svs", SlideSpec(full=True))
    spoil_tile(path, tile=5, damage=damage)
    with opened(path) as (_, tiles):
        assert tiles.read(0, 256, 256, 256) is None
        assert tiles.read(0, 0, 0, 256) is not None


def test_a_level_whose_tiles_decode_otherwise_is_given_up(
    slide_factory: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = slide_factory(full=True)
    with opened(path) as (slide, tiles):
        honest = slide.read
        monkeypatch.setattr(slide, "read", lambda *window: honest(*window) ^ 1)
        assert tiles.read(0, 0, 0, 256) is None
        monkeypatch.setattr(slide, "read", honest)
        assert tiles.read(1, 0, 0, 256) is None, "smaller than a tile"


def test_slides_read_otherwise_have_no_raw_tiles(slide_factory: Callable[..., Path]) -> None:
    assert RawTiles.of(ArraySlide(np.zeros((256, 256, 3), np.uint8))) is None
    slow = open_slide(slide_factory(full=True), reader="openslide")
    assert RawTiles.of(slow) is None
    slow.close()


def test_closing_gives_the_file_back(slide_factory: Callable[..., Path]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with opened(slide_factory(full=True)):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("stated", ["RGB", "YCBCR"])
@pytest.mark.parametrize("keep_rgb", [True, False])
def test_colours_are_what_the_directory_says_whatever_the_stream_says(
    stated: str, keep_rgb: bool
) -> None:
    """JFIF and Adobe markers of a careless writer are overruled, and kept where they are right."""
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(out, "JPEG", keep_rgb=keep_rgb, quality=95, subsampling=0)
    data = out.getvalue()
    made = "RGB" if keep_rgb else "YCBCR"
    assert read_header(data).photometric == made
    again = standalone(data, b"", stated)
    assert read_header(again).photometric == stated
    assert (again == data) == (stated == made)
    same = np.array_equal(decode(again), decode(data))
    assert same == (stated == made)


def test_what_is_no_jpeg_stream_is_refused() -> None:
    for data in (b"", b"\xff\xd8", b"\xff\xd8garbage", b"\xff\xd8\xff\xd9"):
        with pytest.raises(SlideError, match="no JPEG stream"):
            standalone(data, b"", "RGB")
