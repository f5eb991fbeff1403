"""Readers give OpenSlide's pixels, refuse damaged tiles, and hold nothing after closing."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mstar.errors import PatchError, SlideError
from mstar.slides import levels
from mstar.slides.openslide_reader import OpenSlideSlide, _on_background
from mstar.slides.reader import ReaderChoice, Slide, describe, open_slide
from mstar.slides.tiff_pages import TileCheck, looks_decodable, read_tiff_pages
from mstar.slides.vips_proof import disprove, match_pages
from mstar.slides.vips_reader import VipsSlide
from support.slides import (
    ArraySlide,
    SlideSpec,
    drop_tile,
    slide_pixels,
    spoil_tile,
    write_non_image,
    write_slide,
    write_truncated,
    write_zero_byte,
)

READERS: tuple[ReaderChoice, ...] = ("openslide", "vips")
SHAPES = (
    SlideSpec(full=True),
    SlideSpec(full=True, jpeg_tables=False),
    SlideSpec(full=True, photometric="rgb", tile_px=240, width=1003, height=777),
    SlideSpec(full=True, vendor="generic", width=999, height=1001, levels=3, downsample=2),
)


def expected_pixels(
    path: Path, level: int, place_l0: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """OpenSlide's pixels on white, by OpenSlide and PIL alone."""
    with openslide.OpenSlide(path) as slide:
        image = slide.read_region(place_l0, level, size)
    white = Image.new("RGBA", size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


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


def test_tiles_without_data_are_left_to_openslide_and_are_background(tmp_path: Path) -> None:
    path = drop_tile(write_slide(tmp_path / "glass.svs", SlideSpec(full=True)), tile=5)
    slide = open_slide(path)
    assert slide.backend == "openslide"
    assert (slide.read(0, 256, 256, 256, 256) == 255).all()
    assert (slide.read(0, 0, 0, 256, 256) != 255).any()
    slide.close()


# ------------------------------------------------------------------------- which reader


def test_what_is_not_tiled_jpeg_is_left_to_openslide(tmp_path: Path) -> None:
    path = tmp_path / "raw.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb")
    slide = open_slide(path)
    assert slide.backend == "openslide"
    assert np.array_equal(slide.read(0, 11, 22, 300, 200), pixels[22:222, 11:311])
    slide.close()
    with pytest.raises(SlideError, match="compression NONE, not JPEG"):
        open_slide(path, reader="vips")


def test_a_file_with_other_pixels_is_disproved(tmp_path: Path) -> None:
    """The same layout with other content must not pass as the slide."""
    one, two = (
        write_slide(tmp_path / f"{seed}.svs", SlideSpec(full=True, seed=seed)) for seed in (1, 2)
    )
    judge = OpenSlideSlide(one)
    pages = match_pages("aperio", judge.levels, read_tiff_pages(two))
    assert not isinstance(pages, str)
    impostor = VipsSlide(judge, two, pages)
    assert "pixels differ" in (disprove(impostor, judge) or "")
    impostor.close()


def test_levels_that_share_a_size_with_two_pages_are_refused(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.svs", SlideSpec())
    judge = OpenSlideSlide(path)
    pages = read_tiff_pages(path)
    assert "size of 2 TIFF pages" in str(match_pages("aperio", judge.levels, [*pages, pages[0]]))
    assert "vendor leica" in str(match_pages("leica", judge.levels, pages))
    judge.close()


def test_label_and_macro_are_no_levels(tmp_path: Path) -> None:
    """The file has them; nothing that a slide offers reaches them."""
    path = write_slide(tmp_path / "patient.svs", SlideSpec(extras=True, full=True))
    with openslide.OpenSlide(path) as plain:
        assert {"label", "macro", "thumbnail"} <= set(plain.associated_images)
    slide = open_slide(path)
    assert isinstance(slide, VipsSlide)
    assert [page.index for page in slide.pages] == [0, 2]
    slide.close()


@pytest.mark.parametrize("name", ["größe 日本.svs", "with space.svs", "a[page=1].svs", "q?*.svs"])
def test_names_are_taken_literally(name: str, tmp_path: Path) -> None:
    path = write_slide(tmp_path / name, SlideSpec(full=True))
    slide = open_slide(str(path))
    assert slide.backend == "vips"
    assert np.array_equal(slide.read(0, 3, 4, 64, 64), expected_pixels(path, 0, (3, 4), (64, 64)))
    slide.close()


# ------------------------------------------------------------------------- broken files


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_truncated, "perhaps cut short"),
        (write_non_image, "no TIFF"),
        (write_zero_byte, "empty"),
        (lambda path: path, "no such file"),
        (lambda path: path.mkdir() or path, "folder without"),
    ],
)
def test_what_cannot_be_opened_is_named_with_the_reason(
    write: Callable[[Path], Path], reason: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "bad slide.svs")
    with pytest.raises(SlideError, match=reason) as caught:
        open_slide(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("damage", ["garbage", "cut", "overwritten"])
def test_a_damaged_tile_is_refused_every_time_and_costs_only_itself(
    damage: str, reader: ReaderChoice, tmp_path: Path
) -> None:
    """Libvips alone would give grey or, the second time, black: both are worse than an error."""
    path = write_slide(tmp_path / "a.svs", SlideSpec(full=True))
    sound = expected_pixels(path, 0, (512, 256), (256, 256))
    spoil_tile(path, tile=5, damage=damage)
    slide = open_slide(path, reader=reader)
    for _ in range(3):
        with pytest.raises(PatchError, match="cannot be decoded"):
            slide.read(0, 200, 200, 100, 100)
        assert np.array_equal(slide.read(0, 512, 256, 256, 256), sound)
    slide.close()


@pytest.mark.parametrize("trusting", [False, True])
@pytest.mark.parametrize("reader", READERS)
def test_no_thread_gets_a_made_up_pixel_beside_a_damaged_tile(
    reader: ReaderChoice, trusting: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight threads over all patches, many at the bad tile: an error there, right pixels elsewhere.

    `trusting` lets libvips run into the tile, as if its bytes had looked sound.
    """
    path = write_slide(tmp_path / "a.svs", SlideSpec(full=True))
    whole = expected_pixels(path, 0, (0, 0), (1024, 768))
    spoil_tile(path, tile=5)
    if trusting:
        monkeypatch.setattr(TileCheck, "sound", lambda *_: True)
    slide = open_slide(path, reader=reader)

    def right(place: tuple[int, int]) -> bool:
        x, y = place
        bad = x + 128 > 256 and x < 512 and y + 128 > 256 and y < 512
        try:
            pixels = slide.read(0, x, y, 128, 128)
        except PatchError:
            return bad
        return not bad and np.array_equal(pixels, whole[y : y + 128, x : x + 128])

    places = [(x, y) for y in range(0, 640, 96) for x in range(0, 896, 96)] * 3
    np.random.default_rng(0).shuffle(places)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, places))
    slide.close()


def test_truly_black_tiles_are_black(tmp_path: Path) -> None:
    """Black is how libvips shows a failed tile; a sound black tile must still be read."""
    pixels = slide_pixels(SlideSpec(full=True))
    pixels[256:512, 256:512] = 0
    slide = open_slide(write_slide(tmp_path / "a.svs", SlideSpec(full=True), pixels))
    assert slide.backend == "vips"
    assert slide.read(0, 256, 256, 256, 256).max() == 0
    slide.close()


def test_the_look_at_tile_bytes_knows_damage_from_soundness() -> None:
    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = jpeg[1].tobytes()
    assert looks_decodable(data)
    assert looks_decodable(data + b"\0")  # padded to an even size
    middle = len(data) // 2
    for bad in (
        b"",
        data[:middle],
        data[:middle] + bytes(len(data) - middle),
        data[:middle] + bytes(600) + data[middle:],
        data[:middle] + b"\xff\xc4" + data[middle:],
        b"garbage!" * 100,
    ):
        assert not looks_decodable(bad)


# ------------------------------------------------------------------------- threads and memory


@pytest.mark.parametrize("reader", READERS)
def test_many_threads_read_what_one_reads(reader: ReaderChoice, real_slide: Path) -> None:
    places = np.random.default_rng(1).integers(-100, 2200, (120, 2)).tolist()
    slide = open_slide(real_slide, reader=reader)
    alone = [slide.read(0, x, y, 256, 256) for x, y in places]
    slide.close()
    slide = open_slide(real_slide, reader=reader)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda place: slide.read(0, *place, 256, 256), places))
    slide.close()
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_opening_and_closing_leaves_no_handle_and_no_memory(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.svs", SlideSpec(full=True, levels=3, downsample=2))

    def use() -> None:
        slide = open_slide(path)
        worker = threading.Thread(target=lambda: slide.read(1, 0, 0, 256, 256))
        worker.start()
        worker.join()
        slide.read(0, 10, 10, 600, 700)
        slide.thumbnail(128)
        slide.close()

    for _ in range(10):
        use()
    handles, memory = open_handles(), resident_bytes()
    for _ in range(60):
        use()
    assert open_handles() <= handles
    assert resident_bytes() - memory < 20e6  # one leaked slide a round would be over 100 MB


def open_handles() -> int:
    """File descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("reader", READERS)
def test_reading_after_close_is_an_error(reader: ReaderChoice, tmp_path: Path) -> None:
    slide = open_slide(write_slide(tmp_path / "a.svs"), reader=reader)
    slide.close()
    slide.close()  # twice is fine
    with pytest.raises(SlideError, match="closed"):
        slide.read(0, 0, 0, 10, 10)


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
