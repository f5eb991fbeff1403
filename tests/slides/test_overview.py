"""Overview pictures: what is drawn lies where it is on the slide."""

import numpy as np
import pytest
from PIL import Image

from mstar.slides.grid import GridConfig, make_grid
from mstar.slides.overview import GRID_RGB, HOLE_RGB, TISSUE_RGB, contact_sheet, draw_overview
from mstar.slides.reader import open_slide
from mstar.slides.regions import Region
from mstar.slides.tissue import TissueConfig, find_tissue, tissue_from_regions
from support.fake_slide import FakeSlide, plain_slide

PINK = (200, 120, 170)


def ring(low: int, high: int) -> np.ndarray:
    return np.array([(low, low), (high, low), (high, high), (low, high)], dtype=np.int64)


def near(picture: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """Where the picture has a colour."""
    return np.asarray(np.abs(np.asarray(picture).astype(int) - color).max(axis=2) < 12)


@pytest.mark.parametrize("bounds", [None, (4_096, 1_024, 4_096, 3_072)])
def test_outlines_and_patches_lie_where_they_are(bounds: tuple[int, int, int, int] | None) -> None:
    slide = plain_slide(10_240, 5_120, color=PINK, bounds_l0=bounds, downsamples=(1.0, 4.0))
    x, y, width, height = slide.metadata.bounds_l0
    corner = np.array((x, y))
    region = Region(outer=ring(512, 2_560) + corner, holes=(ring(1_024, 1_536) + corner,))
    tissue = tissue_from_regions(slide, [region])
    grid = make_grid("s1", slide, 0.5, tissue, GridConfig(patch_px=512))
    picture = draw_overview(slide, tissue, grid)
    shrink = max(width, height) / 1_024
    assert picture.size == (round(width / shrink), round(height / shrink))
    for color, low, high in ((TISSUE_RGB, 512, 2_560), (HOLE_RGB, 1_024, 1_536)):
        rows, columns = np.nonzero(near(picture, color))
        found = [columns.min(), columns.max(), rows.min(), rows.max()]
        assert found == pytest.approx([low / shrink, high / shrink] * 2, abs=3)
    pixels = np.asarray(picture).astype(int)

    def at(x_l0: float, y_l0: float) -> np.ndarray:
        return pixels[int(y_l0 / shrink), int(x_l0 / shrink)]

    assert at(768 + 64, 768 + 64).tolist() == list(PINK)  # inside a patch: the slide's colour
    assert (at(2_900, 2_900) > 190).all()  # no patch: pale
    assert (at(1_280, 1_280) > 190).all()  # in the hole: pale
    line = at(2_048, 2_300)  # between two patches
    assert line == pytest.approx((np.array(PINK) + GRID_RGB) // 2, abs=3)


def test_a_slide_without_tissue_is_pale_and_undrawn() -> None:
    slide = plain_slide(5_000, 3_000)
    tissue = find_tissue(slide)
    picture = draw_overview(slide, tissue, make_grid("s1", slide, 0.5, tissue))
    assert picture.size == (1_024, 614)
    assert np.asarray(picture).min() > 200


def test_a_tiny_slide_is_not_enlarged() -> None:
    slide = plain_slide(90, 31, color=PINK)
    tissue = find_tissue(slide, TissueConfig(a_t=0.0))
    picture = draw_overview(slide, tissue, make_grid("s1", slide, 0.5, tissue))
    assert picture.size == (90, 31)


def test_a_large_slide_is_never_held_whole() -> None:
    slide = plain_slide(60_000, 40_000, mpp=0.25, downsamples=(1.0, 4.0, 16.0, 64.0))
    tissue = find_tissue(slide)
    slide.reads.clear()
    draw_overview(slide, tissue, make_grid("s1", slide, 0.25, tissue))
    assert sum(width * height for *_, width, height in slide.reads) < 2e7


def test_the_real_slides_picture_is_the_slide(real_slide) -> None:  # type: ignore[no-untyped-def]
    slide = open_slide(real_slide)
    tissue = find_tissue(slide)
    grid = make_grid("cmu", slide, slide.metadata.mpp or 0, tissue)
    picture = draw_overview(slide, tissue, grid)
    small = Image.fromarray(slide.read(0, 0, 0, slide.width_l0, slide.height_l0))
    slide.close()
    assert max(picture.size) == 1_024
    small = small.resize(picture.size, Image.Resampling.BOX)
    drawn, plain = (np.asarray(image).astype(int) for image in (picture, small))
    shrink = grid.height_l0 / 1_024
    inner = np.zeros(drawn.shape[:2], dtype=bool)
    for x, y in (grid.coords / shrink).round().astype(int):
        inner[y + 8 : y + 80, x + 8 : x + 80] = True
    inner &= ~near(picture, TISSUE_RGB)
    assert np.median(np.abs(drawn - plain)[inner].max(axis=1)) <= 6
    assert near(picture, TISSUE_RGB).sum() > 1_000


def test_a_contact_sheet_holds_every_picture_in_order() -> None:
    colors = [(255, 0, 0), (0, 180, 0), (0, 0, 255), (250, 160, 0), (120, 0, 200)]
    pictures = [
        (f"a/very/long/folder/name/of/a/cohort/slide {i}", Image.new("RGB", (300, 200 + 99 * i), c))
        for i, c in enumerate(colors)
    ]
    sheet = contact_sheet(pictures, columns=3, cell_px=120)
    centres = []
    for color in colors:
        rows, columns = np.nonzero(near(sheet, color))
        assert len(rows) > 2_000
        centres.append((rows.mean() // 130, columns.mean() // 125))
    assert centres == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert pictures[0][1].size == (300, 200)  # the caller's pictures are not touched


def test_a_contact_sheet_of_nothing_says_so() -> None:
    assert np.asarray(contact_sheet([])).min() < 100


def test_patches_too_small_to_outline_still_show_by_colour() -> None:
    pixels = np.full((2_000, 2_000, 3), 244, dtype=np.uint8)
    pixels[:1_000] = PINK
    slide = FakeSlide(pixels)
    tissue = find_tissue(slide)
    grid = make_grid("s1", slide, 0.5, tissue, GridConfig(patch_px=4))
    picture = draw_overview(slide, tissue, grid)
    assert np.asarray(picture)[100, 100].tolist() == list(PINK)
