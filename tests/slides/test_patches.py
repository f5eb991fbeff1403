"""From a grid to pixels: positions never drift, pixels are OpenSlide's, resampling is bounded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mstar.errors import PatchError
from mstar.schema import Grid
from mstar.slides.levels import level_position
from mstar.slides.patches import read_patch
from mstar.slides.reader import ReaderChoice, open_slide
from support.slides import ArraySlide, SlideSpec, spoil_tile, write_slide


def grid_of(
    coords: list[tuple[int, int]], *, level: int = 0, read_px: int = 256, output_px: int = 256
) -> Grid:
    """A grid that says where and how big; its resolutions play no part in reading."""
    return Grid(
        slide_id="case/one",
        coords=np.array(coords, np.int64).reshape(-1, 2),
        grid_mode="exact",
        patch_px=output_px,
        patch_size_l0=read_px,
        overlap_px=0,
        read_level=level,
        read_px=read_px,
        output_px=output_px,
        mpp=0.5,
        target_mpp=0.5,
        effective_mpp=0.5,
        level0_magnification=20.0,
        target_magnification=20.0,
        width_l0=1,
        height_l0=1,
    )


@given(
    downsample=st.floats(1, 64.5),
    steps=st.integers(0, 100_000),
    patch_l0=st.integers(1, 2048),
)
def test_positions_are_right_to_half_a_level_pixel_however_far(
    downsample: float, steps: int, patch_l0: int
) -> None:
    l0 = steps * patch_l0
    assert abs(level_position(l0, downsample) * downsample - l0) <= downsample / 2 * (1 + 1e-9)


def test_the_last_patch_of_a_wide_level_is_where_it_should_be() -> None:
    """Downsample 2.0005 over 80,000 px: adding up rounded strides would be 20 px off."""
    width_l0, width = 80_020, 40_000
    ramp = np.arange(width, dtype=np.int64)
    level = np.stack([ramp % 256, ramp // 256, ramp * 0], axis=-1).astype(np.uint8)[None]
    slide = ArraySlide(np.zeros((1, width_l0, 3), np.uint8), np.repeat(level, 1, axis=0))
    slide.levels = (
        slide.levels[0],
        type(slide.levels[1])(width=width, height=1, downsample=2.0005),
    )
    patches = [(x, 0) for x in range(0, width_l0 - 512, 512)]
    grid = grid_of(patches, level=1, read_px=4, output_px=4)
    for index in (0, 1, len(patches) // 2, len(patches) - 1):
        low, high, _ = read_patch(slide, grid, index)[0, 0].astype(int)
        assert abs((low + 256 * high) * 2.0005 - patches[index][0]) <= 1.01


@pytest.mark.parametrize("reader", ["openslide", "vips"])
def test_level_0_patches_are_openslides_pixels(reader: ReaderChoice, real_slide: Path) -> None:
    """Aligned, unaligned and over the edge; maximal difference 0."""
    places = [(0, 0), (240, 480), (701, 333), (1023, 2000), (2100, 2900)]
    slide = open_slide(real_slide, reader=reader)
    with openslide.OpenSlide(real_slide) as plain:
        for index, place in enumerate(places):
            expected = Image.new("RGB", (256, 256), "white")
            region = plain.read_region(place, 0, (256, 256))
            expected.paste(region, mask=region.getchannel("A"))
            got = read_patch(slide, grid_of(places), index)
            assert np.array_equal(got, np.asarray(expected))
    slide.close()


@pytest.mark.parametrize(
    ("read_px", "output_px", "bound"), [(512, 256, 0), (512, 224, 0), (506, 256, 1), (257, 256, 1)]
)
def test_resampled_patches_are_within_a_bound_of_openslide_and_pil(
    read_px: int, output_px: int, bound: int, real_slide: Path
) -> None:
    places = [(3, 5), (701, 333), (1023, 2000)]
    slide = open_slide(real_slide)
    grid = grid_of(places, read_px=read_px, output_px=output_px)
    with openslide.OpenSlide(real_slide) as plain:
        for index, place in enumerate(places):
            region = plain.read_region(place, 0, (read_px, read_px)).convert("RGB")
            expected = np.asarray(region.resize((output_px,) * 2, Image.Resampling.BILINEAR))
            got = read_patch(slide, grid, index)
            assert got.shape == (output_px, output_px, 3)
            assert np.abs(got.astype(int) - expected).max() <= bound
            neighbour = read_patch(slide, grid, (index + 1) % len(places)).astype(int)
            assert np.abs(neighbour - expected).max() > 20  # the bound can be failed
    slide.close()


def test_patches_of_an_upper_level_are_read_there(slide_factory: Callable[..., Path]) -> None:
    path = slide_factory(full=True, levels=2, downsample=2)
    slide = open_slide(path)
    grid = grid_of([(100, 60)], level=1, read_px=128, output_px=128)
    with openslide.OpenSlide(path) as plain:
        expected = np.asarray(plain.read_region((100, 60), 1, (128, 128)).convert("RGB"))
    assert np.array_equal(read_patch(slide, grid, 0), expected)
    slide.close()


@pytest.mark.parametrize("reader", ["openslide", "vips"])
def test_a_patch_that_cannot_be_decoded_is_named(reader: ReaderChoice, tmp_path: Path) -> None:
    path = spoil_tile(write_slide(tmp_path / "a.svs", SlideSpec(full=True)), tile=5)
    slide = open_slide(path, reader=reader)
    grid = grid_of([(0, 0), (256, 256), (512, 256)])
    with pytest.raises(PatchError, match=r"case/one: patch 1 of 3 at level-0 \(256, 256\)"):
        read_patch(slide, grid, 1)
    assert read_patch(slide, grid, 0).std() > 5
    assert read_patch(slide, grid, 2).std() > 5
    slide.close()
