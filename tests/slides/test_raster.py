"""The reduced picture of a slide, and means over boxes, against plain numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.errors import PatchError
from mstar.slides.raster import BLOCK_PX, box_means, read_raster
from support.fake_slide import FakeSlide, plain_slide


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_pixel_is_the_mean_of_its_square() -> None:
    pixels = noise(4096 + 320, 2048 + 160)
    raster = read_raster(FakeSlide(pixels), scale=16.0, max_px=4096)
    means = pixels.reshape(276, 16, 138, 16, 3).mean(axis=(1, 3))
    assert raster.scale == 16
    assert raster.origin_l0 == (0, 0)
    assert np.abs(raster.pixels - means).max() <= 0.5 + 1e-6


@given(
    scale=st.floats(1, 80),
    extra=st.sampled_from([(), (4.0,), (4.0, 16.0), (2.0005, 4.001, 8.002), (3.9998, 16.003)]),
    max_px=st.integers(10, 500),
)
@settings(max_examples=60, deadline=None)
def test_scale_is_near_the_one_asked_for_and_the_size_is_bounded(
    scale: float, extra: tuple[float, ...], max_px: int
) -> None:
    slide = plain_slide(3001, 1999, downsamples=(1.0, *extra))
    raster = read_raster(slide, scale=scale, max_px=max_px)
    assert max(raster.size_px) <= max_px
    least = 3001 / (max_px - 1)
    assert raster.scale >= max(scale, least) / 1.5
    if scale > 1.5 * least:  # the bound is not what decides
        assert raster.scale <= scale * 1.5
    else:
        assert raster.scale <= 2.5 * max(scale, least)
    covered = np.array(raster.size_px) * raster.scale
    assert (covered >= (3001, 1999)).all()


def test_a_slide_without_a_pyramid_is_read_in_blocks() -> None:
    slide = plain_slide(9000, 7000)
    read_raster(slide, scale=32.0, max_px=4096)
    assert max(max(width, height) for *_, width, height in slide.reads) <= BLOCK_PX
    assert sum(width * height for *_, width, height in slide.reads) < 1.02 * 9000 * 7000


def test_only_the_scanned_area_is_read() -> None:
    slide = plain_slide(9000, 7000, bounds_l0=(4000, 3000, 1000, 800), downsamples=(1.0, 4.0))
    raster = read_raster(slide, scale=16.0, max_px=4096)
    assert raster.size_px == (63, 50)
    assert raster.origin_l0 == (4000, 3000)
    for level, x, y, width, height in slide.reads:
        by = slide.levels[level].downsample
        assert x * by >= 4000 - by
        assert y * by >= 3000 - by
        assert (x + width) * by <= 5000 + 16
        assert (y + height) * by <= 3800 + 16


def test_every_pyramid_gives_the_same_picture_of_smooth_content() -> None:
    y, x = np.mgrid[0:1600, 0:1600] / 1600
    pixels = np.stack([200 * x, 200 * y, 100 * (x + y)], axis=2).astype(np.uint8)
    pictures = [
        read_raster(FakeSlide(pixels, downsamples=ds), scale=16.0, max_px=4096).pixels.astype(int)
        for ds in ((1.0,), (1.0, 4.0), (1.0, 4.0, 16.0))
    ]
    for other in pictures[1:]:
        assert np.abs(pictures[0] - other).max() <= 2


def test_what_cannot_be_decoded_is_background_and_costs_no_more() -> None:
    class Broken(FakeSlide):
        def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
            if x < 640 and x + width > 512 and y < 384 and y + height > 256:
                raise PatchError("tile cannot be decoded")
            return super().read(level, x, y, width, height)

    pixels = np.full((1024, 1024, 3), 100, dtype=np.uint8)
    raster = read_raster(Broken(pixels), scale=16.0, max_px=4096)
    expected = np.full((64, 64, 3), 100)
    expected[16:24, 32:40] = 255
    assert np.array_equal(raster.pixels, expected)


@given(
    seed=st.integers(0, 1000),
    corner=st.tuples(st.integers(-16, 60), st.integers(-16, 60)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
)
@settings(max_examples=80, deadline=None)
def test_box_means_count_fractions_of_pixels(
    seed: int, corner: tuple[int, int], size: tuple[int, int]
) -> None:
    channel = np.random.default_rng(seed).integers(0, 256, (9, 13), dtype=np.uint8)
    fine = np.zeros((250, 250))  # quarters of a pixel, 16 pixels of nothing around
    fine[64 : 64 + 36, 64 : 64 + 52] = np.kron(channel, np.ones((4, 4)))
    left, top = 64 + corner[0], 64 + corner[1]
    expected = fine[top : top + size[1], left : left + size[0]].mean()
    box = np.array([[*corner, corner[0] + size[0], corner[1] + size[1]]]) / 4
    assert box_means(channel, box)[0] == pytest.approx(expected, abs=1e-9)
