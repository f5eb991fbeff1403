"""DeepZoom tiles: geometry against OpenSlide's own generator, pixels at every level and edge."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import openslide
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from openslide.deepzoom import DeepZoomGenerator

from mstar.evidence.viewer import deepzoom
from mstar.evidence.viewer.deepzoom import DeepZoom, tile_pixels
from mstar.evidence.viewer.tiles import TileMaker
from mstar.slides.reader import open_slide
from support.slides import ArraySlide, SlideSpec, write_slide, write_undecodable_tile


def generator_of(
    width: int, height: int, tile_px: int = 254, overlap: int = 1
) -> DeepZoomGenerator:
    """OpenSlide's generator on a slide of one level that is never read."""
    slide = SimpleNamespace(
        dimensions=(width, height),
        level_dimensions=((width, height),),
        level_downsamples=(1.0,),
        properties={},
        get_best_level_for_downsample=lambda _: 0,
    )
    return DeepZoomGenerator(slide, tile_px, overlap)


def whole(zoom: DeepZoom, level: int, pixels: np.ndarray) -> np.ndarray:
    """A level as one picture: means of blocks of level 0, of their part at the far edges."""
    step = zoom.scale(level)
    width, height = zoom.size(level)
    missing = ((0, height * step - len(pixels)), (0, width * step - pixels.shape[1]), (0, 0))
    padded = np.pad(pixels.astype(np.float64), missing, constant_values=np.nan)
    return np.nanmean(padded.reshape(height, step, width, step, 3), axis=(1, 3))


def cut(picture: np.ndarray, zoom: DeepZoom, address: tuple[int, int, int]) -> np.ndarray:
    """A tile's part of a level."""
    left, top, width, height = zoom.box(*address)
    return picture[top : top + height, left : left + width]


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    tile_px=st.sampled_from([254, 256, 100, 7]),
    overlap=st.sampled_from([0, 1, 2]),
)
def test_geometry_is_that_of_openslides_generator(
    width: int, height: int, tile_px: int, overlap: int
) -> None:
    zoom = DeepZoom(width_l0=width, height_l0=height, tile_px=tile_px, overlap_px=overlap)
    expected = generator_of(width, height, tile_px, overlap)
    assert zoom.max_level + 1 == expected.level_count
    levels = range(zoom.max_level + 1)
    assert [zoom.size(level) for level in levels] == list(expected.level_dimensions)
    assert [zoom.tiles(level) for level in levels] == list(expected.level_tiles)
    assert len(zoom) == expected.tile_count
    if overlap > 1:  # there its last tiles reach beyond the image
        return
    for level in levels:
        columns, rows = zoom.tiles(level)
        for column in {0, columns // 2, columns - 1}:
            for row in {0, rows // 2, rows - 1}:
                size = expected.get_tile_dimensions(level, (column, row))
                assert zoom.box(level, column, row)[2:] == size
        assert not zoom.has(level, columns, 0)
        assert not zoom.has(level, 0, rows)
    assert not zoom.has(zoom.max_level + 1, 0, 0)


@settings(max_examples=12, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    tile_px=st.sampled_from([24, 40]),
    shrunk=st.sampled_from([(), (2,), (3,), (4,), (4, 16)]),
    seed=st.integers(0, 99),
)
def test_every_pixel_of_every_tile_is_the_mean_of_what_it_covers(
    width: int, height: int, tile_px: int, shrunk: tuple[int, ...], seed: int
) -> None:
    """Blocks of 48 × 48 pixels of level 0 are plain, so that levels hold exactly the same slide."""
    rng = np.random.default_rng(seed)
    side = 48
    blocks = rng.integers(0, 256, (height // side + 1, width // side + 1, 3), np.uint8)
    pixels = np.repeat(np.repeat(blocks, side, 0), side, 1)  # whole multiples of every factor
    slide = ArraySlide(pixels, *(pixels[::factor, ::factor] for factor in shrunk))
    zoom = DeepZoom(width_l0=slide.width_l0, height_l0=slide.height_l0, tile_px=tile_px)
    for level in range(zoom.max_level + 1):
        expected = whole(zoom, level, pixels)
        for address in [one for one in zoom.addresses() if one[0] == level]:
            made = tile_pixels(slide, zoom, *address)
            # levels were cut off, not averaged: at most a share of an edge is another's
            slack = 1.01 if not shrunk else 1.01 + 255 * edge_share(zoom, level, shrunk)
            assert np.abs(made - cut(expected, zoom, address)).max() <= slack


def edge_share(zoom: DeepZoom, level: int, shrunk: tuple[int, ...]) -> float:
    """How much of a pixel may straddle two pixels of the slide's level."""
    source = max((f for f in (1, *shrunk) if f <= zoom.scale(level) * 1.01), default=1)
    return 0.0 if zoom.scale(level) % source == 0 else source / zoom.scale(level)


def test_noise_without_levels_is_averaged_exactly_at_every_level() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (333, 517, 3), np.uint8)
    zoom = DeepZoom(width_l0=517, height_l0=333, tile_px=64)
    levels = [whole(zoom, level, pixels) for level in range(zoom.max_level + 1)]
    for address in zoom.addresses():
        made = tile_pixels(ArraySlide(pixels), zoom, *address)
        assert np.abs(made - cut(levels[address[0]], zoom, address)).max() <= 1.01


@pytest.mark.parametrize(("factor", "scale_of_level"), [(3, 4), (5, 8), (3, 2)])
def test_levels_between_powers_of_two_are_weighted_by_area(
    factor: int, scale_of_level: int
) -> None:
    """A level of a third, asked for quarters: each pixel is 4/3 of it, seen here by repeating."""
    rng = np.random.default_rng(1)
    small = rng.integers(0, 256, (64, 80, 3), np.uint8)
    fine = np.repeat(np.repeat(small, factor, 0), factor, 1)
    slide = ArraySlide(fine, small)
    zoom = DeepZoom(width_l0=fine.shape[1], height_l0=len(fine), tile_px=32)
    level = zoom.max_level - scale_of_level.bit_length() + 1
    expected = whole(zoom, level, fine)
    for address in [one for one in zoom.addresses() if one[0] == level]:
        made, wanted = tile_pixels(slide, zoom, *address), cut(expected, zoom, address)
        assert np.abs(made - wanted)[:-1, :-1].max() <= 1


def test_a_real_file_agrees_with_openslide_at_every_level(tmp_path: Path) -> None:
    """Full resolution to the bit; below, nearer to means of level 0 than one pixel off."""
    spec = SlideSpec(width=1301, height=790, full=True)
    path = write_slide(tmp_path / "a.svs", spec)
    slide = open_slide(path)
    zoom = DeepZoom(width_l0=spec.width, height_l0=spec.height)
    with openslide.OpenSlide(path) as judge:
        expected = DeepZoomGenerator(judge, 254, 1)
        pixels = np.asarray(judge.read_region((0, 0), 0, judge.dimensions))[..., :3]
        levels = [whole(zoom, level, pixels) for level in range(zoom.max_level + 1)]
        for level, column, row in zoom.addresses():
            made = tile_pixels(slide, zoom, level, column, row)
            if level == zoom.max_level:
                theirs = np.asarray(expected.get_tile(level, (column, row)))
                np.testing.assert_array_equal(made, theirs)
                continue
            level_picture = cv2.GaussianBlur(levels[level], (3, 3), 0.6)
            blurred = cv2.GaussianBlur(made.astype(np.float64), (3, 3), 0.6)
            near = np.abs(blurred - cut(level_picture, zoom, (level, column, row))).mean()
            assert near < 4, (level, column, row)
            if min(made.shape[:2]) > 30:
                moved = np.roll(cut(level_picture, zoom, (level, column, row)), 1, axis=(0, 1))
                assert near < 0.7 * np.abs(blurred - moved).mean(), (level, column, row)
    slide.close()


def test_large_windows_are_read_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    zoom, sizes = DeepZoom(width_l0=400, height_l0=300), []

    class Counted(ArraySlide):
        def read(self, *window: int) -> np.ndarray:
            sizes.append(window[3] * window[4])
            return super().read(*window)

    level = zoom.max_level - 3
    at_once = tile_pixels(Counted(pixels), zoom, level, 0, 0)
    monkeypatch.setattr(deepzoom, "_WINDOW_PX", 10_000)
    in_strips = tile_pixels(Counted(pixels), zoom, level, 0, 0)
    np.testing.assert_array_equal(in_strips, at_once)
    assert sizes[0] == 120_000
    assert max(sizes[1:]) <= 12_800


def test_a_downsampled_finest_level_is_that_level_of_the_whole() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (203, 301, 3), np.uint8)
    every = DeepZoom(width_l0=301, height_l0=203, tile_px=64)
    quarter = DeepZoom(width_l0=301, height_l0=203, tile_px=64, downsample=4)
    assert quarter.size(quarter.max_level) == (76, 51) == every.size(every.max_level - 2)
    slide, shift = ArraySlide(pixels), every.max_level - quarter.max_level
    assert shift == 2
    for level, column, row in quarter.addresses():
        made = tile_pixels(slide, quarter, level, column, row)
        np.testing.assert_array_equal(made, tile_pixels(slide, every, level, column, row))


def test_tiles_are_jpeg_kept_within_bounds_and_equal_from_threads(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.svs", SlideSpec(width=1000, height=700))
    slide = open_slide(path)
    zoom = DeepZoom(width_l0=1000, height_l0=700)
    tiles = TileMaker(slide, zoom, quality=90, threads=2, cache_bytes=60_000)
    addresses = list(zoom.addresses())
    alone = {one: tiles.tile(*one) for one in addresses}
    assert 0 < tiles.kept_bytes <= 60_000
    assert tiles.tile(zoom.max_level, 99, 0) is None
    found: list[dict[tuple[int, int, int], bytes | None]] = [{} for _ in range(4)]

    def work(mine: dict[tuple[int, int, int], bytes | None]) -> None:
        mine.update({one: tiles.tile(*one) for one in addresses})

    threads = [threading.Thread(target=work, args=(mine,)) for mine in found]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert all(mine == alone for mine in found)
    address = (zoom.max_level, 1, 1)
    seen = simplejpeg.decode_jpeg(alone[address])
    assert np.abs(seen.astype(int) - tile_pixels(slide, zoom, *address)).mean() < 6
    made = tiles.num_made
    tiles.tile(*addresses[-1])  # the last one made is kept
    assert tiles.num_made == made
    tiles.close()


def test_what_cannot_be_decoded_is_grey_and_named(tmp_path: Path) -> None:
    path = write_undecodable_tile(tmp_path / "a.svs", SlideSpec(width=900, height=600))
    zoom = DeepZoom(width_l0=900, height_l0=600)
    tiles = TileMaker(open_slide(path), zoom)
    grey = simplejpeg.decode_jpeg(tiles.tile(zoom.max_level, 0, 0))
    assert np.ptp(grey) == 0
    good = simplejpeg.decode_jpeg(tiles.tile(zoom.max_level, 2, 1))
    assert np.ptp(good) > 0
    assert list(tiles.unreadable) == [(zoom.max_level, 0, 0)]
    tiles.close()
