"""Readers give OpenSlide's pixels, at every level, beside the slide and small."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mstar.slides import levels
from mstar.slides.openslide_reader import _on_background
from mstar.slides.reader import ReaderChoice, Slide, describe, open_slide
from support.openslide_pixels import READERS, expected_pixels
from support.slides import ArraySlide, SlideSpec, slide_pixels, write_slide

SHAPES = (
    SlideSpec(full=True),
    SlideSpec(full=True, jpeg_tables=False),
    SlideSpec(full=True, photometric="rgb", tile_px=240, width=1003, height=777),
    SlideSpec(full=True, vendor="generic", width=999, height=1001, levels=3, downsample=2),
)


@pytest.mark.parametrize("reader", READERS)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_level_0_pixels_of_a_real_slide_are_those_of_openslide(
    reader: ReaderChoice, data: st.DataObject, real_slide: Path
) -> None:
    """Aligned, unaligned, over edges and corners: difference 0."""
    slide = open_slide(real_slide, reader=reader)
    side = data.draw(st.sampled_from([1, 17, 224, 240, 256, 512]))
    step = data.draw(st.sampled_from([1, 240]))
    x = data.draw(st.integers(-300 // step, 2400 // step)) * step
    y = data.draw(st.integers(-300 // step, 3100 // step)) * step
    pixels = slide.read(0, x, y, side, side)
    slide.close()
    assert np.array_equal(pixels, expected_pixels(real_slide, 0, (x, y), (side, side)))


@pytest.mark.parametrize("spec", SHAPES, ids=lambda spec: f"{spec.vendor}-{spec.photometric}")
def test_generated_slides_are_read_fast_with_the_same_pixels(
    spec: SlideSpec, slide_factory: Callable[..., Path]
) -> None:
    """Shared tables or not, RGB or YCbCr, odd sizes: auto takes vips, whole level 0 is equal."""
    path = slide_factory(**{name: getattr(spec, name) for name in spec.__slots__})
    slide = open_slide(path)
    assert slide.backend == "vips"
    expected = expected_pixels(path, 0, (0, 0), (spec.width, spec.height))
    assert np.array_equal(slide.read(0, 0, 0, spec.width, spec.height), expected)
    assert np.abs(expected.astype(int) - slide_pixels(spec)).mean() < 8  # and it is the picture
    slide.close()


@pytest.mark.parametrize("reader", READERS)
def test_upper_levels_with_whole_downsamples_are_exact(
    reader: ReaderChoice, slide_factory: Callable[..., Path]
) -> None:
    path = slide_factory(full=True, levels=3, downsample=2)
    slide = open_slide(path, reader=reader)
    assert [level.downsample for level in slide.levels] == [1, 2, 4]
    for level, x, y in ((1, 0, 0), (1, 33, 101), (2, 7, 5)):
        expected = expected_pixels(path, level, (x * 2**level, y * 2**level), (90, 80))
        assert np.array_equal(slide.read(level, x, y, 90, 80), expected)
    slide.close()


def test_with_a_downsample_of_2_001_vips_is_exact_and_openslide_within_half_a_pixel(
    slide_factory: Callable[..., Path],
) -> None:
    """Reference: the level's own JPEG tiles, decoded by PIL."""
    path = slide_factory(full=True, width=2003, height=1509, downsample=2, jpeg_tables=False)
    level_1 = decode_page(path, page=1)
    slide, other = open_slide(path), open_slide(path, reader="openslide")
    assert slide.backend == "vips"
    assert slide.levels[1].downsample == pytest.approx(2.0012, abs=1e-4)
    for x, y in ((0, 0), (100, 37), (333, 222), (850, 600)):
        window = level_1[y : y + 128, x : x + 128]
        assert np.array_equal(slide.read(1, x, y, 128, 128), window)
        # OpenSlide blends by up to a quarter of a level pixel (half a level-0 pixel)
        between = [
            shift(window.astype(float), dx, dy)
            for dx in (-0.25, 0, 0.25)
            for dy in (-0.25, 0, 0.25)
        ]
        inner = (slice(2, -2), slice(2, -2))
        got = other.read(1, x, y, 128, 128)[inner]
        assert (got >= np.min(between, axis=0)[inner] - 2).all()
        assert (got <= np.max(between, axis=0)[inner] + 2).all()
    slide.close()
    other.close()


def shift(pixels: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """Bilinear translation."""
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float64)
    return cv2.warpAffine(pixels, matrix, pixels.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)


def decode_page(path: Path, page: int) -> np.ndarray:
    """A tiled page put together from complete JPEG tiles by PIL."""
    with tifffile.TiffFile(path) as tiff:
        directory = tiff.pages[page]
        width, height, side = directory.imagewidth, directory.imagelength, directory.tilewidth
        places = zip(directory.dataoffsets, directory.databytecounts, strict=True)
        data = path.read_bytes()
        across = -(-width // side)
        canvas = np.zeros((-(-height // side) * side, across * side, 3), np.uint8)
        for index, (start, size) in enumerate(places):
            top, left = index // across * side, index % across * side
            tile = Image.open(io.BytesIO(data[start : start + size])).convert("RGB")
            canvas[top : top + side, left : left + side] = np.asarray(tile)
    return canvas[:height, :width]


@pytest.mark.parametrize("reader", READERS)
def test_outside_the_slide_is_background(
    reader: ReaderChoice, slide_factory: Callable[..., Path]
) -> None:
    path = slide_factory(full=True)
    slide = open_slide(path, reader=reader)
    assert (slide.read(0, -500, -500, 100, 100) == 255).all()
    assert (slide.read(1, 5000, 10, 40, 40) == 255).all()
    corner = slide.read(0, 1000, 700, 100, 100)
    assert (corner[68:] == 255).all()
    assert (corner[:, 24:] == 255).all()
    assert np.array_equal(corner[:68, :24], slide.read(0, 1000, 700, 24, 68))
    slide.close()


@given(
    colour=st.tuples(*[st.integers(0, 255)] * 3),
    background=st.tuples(*[st.integers(0, 255)] * 3),
    alpha=st.integers(0, 254),
)
def test_transparency_is_mixed_with_the_background(
    colour: tuple[int, int, int], background: tuple[int, int, int], alpha: int
) -> None:
    mixed = _on_background(Image.new("RGBA", (2, 2), (*colour, alpha)), background)
    exact = np.array(colour) * alpha / 255 + np.array(background) * (1 - alpha / 255)
    assert np.abs(mixed - exact).max() <= 0.5 + 1e-9


# ------------------------------------------------------------------------- thumbnails, previews


@pytest.mark.parametrize("max_px", [1, 100, 333, 5000])
def test_thumbnails_average_the_slide_and_never_enlarge(
    max_px: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_slide(tmp_path / "a.svs", SlideSpec(full=True, width=1000, height=700, levels=1))
    slide = open_slide(path)
    thumbnail = slide.thumbnail(max_px)
    scale = min(1, max_px / 1000)
    assert thumbnail.shape == (max(1, round(700 * scale)), max(1, round(1000 * scale)), 3)
    whole = slide.read(0, 0, 0, 1000, 700)
    expected = cv2.resize(whole, thumbnail.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.array_equal(thumbnail, expected)
    monkeypatch.setattr(levels, "_STRIP_PX", 100_000)
    in_strips = slide.thumbnail(max_px)
    # strips begin on whole rows, up to half a row away: as near as half a row's shift
    assert np.abs(in_strips.astype(int) - expected).mean() < 3
    slide.close()


def test_a_preview_says_how_a_slide_would_be_read(real_slide: Path, tmp_path: Path) -> None:
    found = describe(real_slide)
    assert (found.mpp, found.mpp_source, found.objective_power) == (0.499, "openslide", 20)
    assert (found.vendor, found.scanner, found.compression) == ("aperio", "CPAPERIOCS", "jpeg")
    assert (found.backend, found.has_icc, found.warning) == ("vips", False, None)
    bare = describe(write_slide(tmp_path / "a.svs", SlideSpec(mpp=None)))
    assert bare.mpp is None
    assert bare.warning == "no microns per pixel in the file"


def test_the_fake_follows_the_protocol(real_slide: Path) -> None:
    """A slide in memory gives what a slide on disk gives, edges included."""
    slide = open_slide(real_slide)
    fake: Slide = ArraySlide(slide.read(0, 0, 0, slide.width_l0, slide.height_l0))
    for x, y in ((0, 0), (-50, -60), (2200, 2900), (9000, 0), (100, 2960)):
        assert np.array_equal(fake.read(0, x, y, 90, 70), slide.read(0, x, y, 90, 70))
    assert fake.levels == slide.levels
    assert fake.thumbnail(100).shape == slide.thumbnail(100).shape
    slide.close()
