"""Grids: positions that do not drift, shares of tissue, CLAM's rule, artefacts, empty slides."""

import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.errors import ConfigError
from mstar.schema import Grid
from mstar.slides.grid import GridConfig, make_grid
from mstar.slides.levels import level_position
from mstar.slides.patches import read_patch
from mstar.slides.reader import open_slide
from mstar.slides.regions import Region
from mstar.slides.tissue import Tissue, TissueConfig, find_tissue, tissue_from_regions
from support.fake_slide import FakeSlide, plain_slide

PINK = (200, 120, 170)
ALL_OF_IT = TissueConfig(white_thresh=0.0, black_thresh=0.0)
MODES = ["exact", "prepath", "clam", "trident"]


def box(left: int, top: int, right: int, bottom: int, *holes: np.ndarray) -> Region:
    ring = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=np.int64)
    return Region(outer=ring, holes=holes)


def everywhere(slide: FakeSlide) -> Tissue:
    """Tissue over the whole scanned area."""
    x, y, width, height = slide.metadata.bounds_l0
    region = box(x - 99, y - 99, x + width + 99, y + height + 99)
    return tissue_from_regions(slide, [region], ALL_OF_IT, mpp=0.5)


def gridded(slide: FakeSlide, tissue: Tissue, mpp: float, **fields: object) -> Grid:
    return make_grid("s1", slide, mpp, tissue, GridConfig(**fields))  # type: ignore[arg-type]


def is_row_major(coords: np.ndarray) -> bool:
    """Ascending in y, then in x, nothing twice."""
    steps = np.diff(coords, axis=0)
    return bool(((steps[:, 1] > 0) | ((steps[:, 1] == 0) & (steps[:, 0] > 0))).all())


@given(
    mpp=st.sampled_from([0.25, 0.2527, 0.2201, 0.4987, 0.125]),
    target_mpp=st.sampled_from([0.5, 1.0, 0.8333]),
    downsamples=st.sampled_from([(1.0,), (1.0, 4.0), (1.0, 2.0005, 4.001), (1.0, 3.9998)]),
    overlap_px=st.sampled_from([0, 1, 64]),
    bounds=st.sampled_from([(0, 0, 150_000, 2_200), (7_001, 333, 120_000, 2_600)]),
)
@settings(max_examples=60, deadline=None)
def test_exact_positions_never_drift(
    mpp: float,
    target_mpp: float,
    downsamples: tuple[float, ...],
    overlap_px: int,
    bounds: tuple[int, int, int, int],
) -> None:
    # The level of 32 is for the tissue's raster only: too coarse for any of these patches.
    slide = plain_slide(150_000, 4_000, downsamples=(*downsamples, 32.0), bounds_l0=bounds)
    config = {"target_mpp": target_mpp, "overlap_px": overlap_px}
    grid = gridded(slide, everywhere(slide), mpp, **config)
    downsample = downsamples[grid.read_level]
    step = (256 - overlap_px) * grid.effective_mpp / mpp
    for axis in (0, 1):
        starts = np.unique(grid.coords[:, axis])
        exact = starts[0] + np.arange(len(starts)) * step
        assert 0 <= starts[0] - bounds[axis] <= downsample
        assert np.abs(starts - exact).max() <= 1  # 0.5 for its own rounding, 0.5 for the first's
        end = bounds[axis] + bounds[axis + 2]
        assert starts[-1] + grid.patch_size_l0 <= end
        assert starts[-1] + 2 * step + 256 * grid.effective_mpp / mpp > end  # no column is missing
    if grid.read_px == 256:  # native: neighbours are the same number of level pixels apart
        columns = [level_position(int(x), downsample) for x in np.unique(grid.coords[:, 0])]
        assert set(np.diff(columns)) <= {256 - overlap_px}
    assert is_row_major(grid.coords)


@given(
    seed=st.integers(0, 1000),
    min_tissue=st.floats(0, 1),
    mode=st.sampled_from(["exact", "trident"]),
)
@settings(max_examples=40, deadline=None)
def test_a_patch_is_kept_by_its_share_of_the_mask(seed: int, min_tissue: float, mode: str) -> None:
    rng = np.random.default_rng(seed)
    slide = plain_slide(2_400, 1_800)
    corners = rng.integers(-200, 2_000, (3, 2))
    sizes = rng.integers(40, 900, (3, 2))
    regions = [box(*low, *high) for low, high in zip(corners, corners + sizes, strict=True)]
    tissue = tissue_from_regions(slide, regions, ALL_OF_IT)
    grid = gridded(slide, tissue, 0.5, min_tissue=min_tissue, patch_px=200, grid_mode=mode)
    scale = round(tissue.raster.scale)
    mask_l0 = np.kron(tissue.mask, np.ones((scale, scale), dtype=bool))[:1_800, :2_400]
    x0, y0 = (0, 0) if mode == "exact" else (tissue.box_l0 or (0, 0))[:2]
    x0, y0 = (range(start, 2_400, 200) for start in (x0, y0))
    expected = [
        (x, y)
        for y in y0
        for x in x0
        if 0 <= x <= 2_200 and 0 <= y <= 1_600
        and mask_l0[y : y + 200, x : x + 200].mean() >= max(min_tissue - 1e-9, 1e-9)
    ]  # fmt: skip
    assert [tuple(point) for point in grid.coords.tolist()] == expected


def reference_four_points(regions: list[Region], side: int, end: tuple[int, int]) -> set:
    """CLAM's grid as formats.md describes it, one patch after another, with OpenCV."""
    kept = set()
    for region in regions:
        contour = region.outer.astype(np.int32)
        left, top, width, height = cv2.boundingRect(contour)
        for x in range(left, min(left + width, end[0] - side + 1), side):
            for y in range(top, min(top + height, end[1] - side + 1), side):
                cx, cy = x + side // 2, y + side // 2
                shift = side // 4
                near = any(
                    cv2.pointPolygonTest(contour, (cx + a, cy + b), False) >= 0
                    for a in (-shift, shift)
                    for b in (-shift, shift)
                )
                in_hole = any(
                    cv2.pointPolygonTest(hole.astype(np.int32), (cx, cy), False) > 0
                    for hole in region.holes
                )
                if near and not in_hole:
                    kept.add((y, x))
    return kept


@given(seed=st.integers(0, 1000), mode=st.sampled_from(["clam", "prepath"]))
@settings(max_examples=30, deadline=None)
def test_clam_and_prepath_keep_what_the_four_points_say(seed: int, mode: str) -> None:
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.random(12)) * 2 * np.pi
    regions = []
    for centre in ((1500, 1500), (3600, 2200), (2600, 3500)):
        radius = rng.uniform(500, 1500, (12, 1))
        ring = np.array(centre) + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        hole = np.array(centre) + 0.35 * (ring - np.array(centre))
        regions.append(
            Region(outer=np.maximum(ring, 0).astype(np.int64), holes=(hole.astype(np.int64),))
        )
    slide = plain_slide(5_000, 4_500)
    tissue = tissue_from_regions(slide, regions, ALL_OF_IT, mpp=0.25)
    grid = gridded(slide, tissue, 0.25, grid_mode=mode)
    expected = sorted(reference_four_points(regions, 512, (5_000, 4_500)))
    assert [(y, x) for x, y in grid.coords.tolist()] == expected


def test_the_same_patch_of_two_outlines_is_kept_once() -> None:
    slide = plain_slide(2_000, 2_000)
    tissue = tissue_from_regions(slide, [box(0, 0, 800, 800), box(256, 0, 900, 500)], ALL_OF_IT)
    grid = gridded(slide, tissue, 0.5, grid_mode="clam")
    assert is_row_major(grid.coords)
    assert len(grid) == 9 + 6 - 4


def test_padding_lets_patches_reach_over_the_edge() -> None:
    slide = plain_slide(1_000, 600)
    tissue = everywhere(slide)
    inside = gridded(slide, tissue, 0.5, grid_mode="prepath")
    padded = gridded(slide, tissue, 0.5, grid_mode="prepath", padding=True)
    assert inside.coords.max(axis=0).tolist() == [512, 256]
    assert padded.coords.max(axis=0).tolist() == [768, 512]
    assert (len(inside), len(padded)) == (6, 12)
    assert read_patch(slide, padded, 11).shape == (256, 256, 3)


@pytest.mark.parametrize("mode", MODES)
def test_no_tissue_gives_an_explicit_empty_grid(mode: str) -> None:
    slide = plain_slide(3_000, 2_000, downsamples=(1.0, 4.0))
    grid = gridded(slide, find_tissue(slide), 0.25, grid_mode=mode)
    assert grid.coords.shape == (0, 2)
    assert grid.coords.dtype == np.int64
    assert (grid.width_l0, grid.height_l0, grid.mpp) == (3_000, 2_000, 0.25)
    assert grid.output_px == (512 if mode == "prepath" else 256)


@pytest.mark.parametrize("mode", MODES)
def test_a_slide_smaller_than_a_patch_has_no_patch(mode: str) -> None:
    slide = plain_slide(200, 200, color=PINK)
    assert len(gridded(slide, everywhere(slide), 0.5, grid_mode=mode)) == 0


@pytest.mark.parametrize("mode", MODES)
def test_white_and_black_patches_are_dropped(mode: str) -> None:
    pixels = np.full((1_024, 1_024, 3), PINK, dtype=np.uint8)
    pixels[:256, :256] = 244  # glass
    pixels[256:512, :256] = (12, 20, 9)  # marker or fold
    pixels[768:, 768:] = (20, 10, 90)  # dark, but blue: one channel is above
    slide = FakeSlide(pixels)
    whole = [box(0, 0, 1_024, 1_024)]
    kept = gridded(slide, tissue_from_regions(slide, whole), 0.5, grid_mode=mode)
    everything = gridded(slide, tissue_from_regions(slide, whole, ALL_OF_IT), 0.5, grid_mode=mode)
    assert len(everything) == 16
    dropped = {tuple(c) for c in everything.coords} - {tuple(c) for c in kept.coords}
    assert dropped == {(0, 0), (0, 256)}


@pytest.mark.parametrize("mode", MODES)
def test_patches_lie_in_the_scanned_area(mode: str) -> None:
    bounds = (3_001, 1_003, 4_000, 3_000)
    slide = plain_slide(9_000, 7_000, bounds_l0=bounds, downsamples=(1.0, 4.0))
    grid = gridded(slide, everywhere(slide), 0.25, grid_mode=mode)
    assert len(grid) > 20
    assert (grid.coords >= (3_001, 1_003)).all()
    assert (grid.coords + grid.patch_size_l0 <= (7_001, 4_003)).all()


def test_settings_are_in_the_provenance() -> None:
    slide = plain_slide(2_000, 2_000, icc_profile=b"x", background=(250, 249, 248))
    tissue = find_tissue(slide, TissueConfig(preset="dhmc", sthresh=3))
    grid = make_grid("s1", slide, 0.5, tissue, kernel="k-7", provenance={"mpp_source": "stated"})
    assert all(isinstance(value, str) for value in grid.provenance.values())
    expected = {
        "tissue.preset": "dhmc",
        "tissue.sthresh": "3",
        "tissue.mthresh": "6",
        "tissue.source": "found",
        "grid.min_tissue": "0.25",
        "pixels.kernel": "k-7",
        "pixels.icc_profile": "present, ignored",
        "pixels.background": "250,249,248",
        "mpp_source": "stated",
    }
    assert expected.items() <= grid.provenance.items()


@pytest.mark.parametrize(
    "wrong",
    [{"overlap_px": 256}, {"overlap_px": -1}, {"patch_px": 0}, {"target_mpp": 0.0},
     {"min_tissue": 1.5}, {"grid_mode": "nosuch"}, {"mpp_tolerance": -0.1},
     {"max_upsampling": 0.5}],
)  # fmt: skip
def test_settings_without_meaning_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises((ConfigError, TypeError), match=next(iter(wrong))):  # or the type check
        GridConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
def test_a_hundred_thousand_patches_are_quick(mode: str) -> None:
    slide = plain_slide(100_000, 80_000, mpp=0.25, downsamples=(1.0, 4.0, 16.0, 32.0))
    angle = np.linspace(0, 2 * np.pi, 8_000, endpoint=False)
    ring = np.stack([50_000 + 52_000 * np.cos(angle), 40_000 + 41_000 * np.sin(angle)], axis=1)
    region = Region(outer=np.clip(ring, 0, (100_000, 80_000)).astype(np.int64))
    tissue = tissue_from_regions(slide, [region], ALL_OF_IT, mpp=0.25)
    start = time.process_time()
    grid = gridded(slide, tissue, 0.25, grid_mode=mode, overlap_px=128)
    seconds = time.process_time() - start
    assert len(grid) > 80_000
    assert seconds < 2  # 0.1 to 0.3 s when nothing else runs


@pytest.mark.parametrize("mode", MODES)
def test_the_real_slide_is_covered(mode: str, real_slide) -> None:  # type: ignore[no-untyped-def]
    slide = open_slide(real_slide)
    tissue = find_tissue(slide)
    mpp = slide.metadata.mpp or 0
    grid = make_grid("cmu", slide, mpp, tissue, GridConfig(grid_mode=mode))  # type: ignore[arg-type]
    slide.close()
    assert 30 <= len(grid) <= 50
    assert (grid.read_level, grid.read_px, grid.output_px) == (0, 256, 256)
    covered = np.zeros((grid.height_l0, grid.width_l0), dtype=bool)
    for x, y in grid.coords:
        covered[y : y + 256, x : x + 256] = True
    scale = int(tissue.raster.scale)
    on_l0 = np.kron(tissue.mask, np.ones((scale, scale), dtype=bool))[: len(covered)]
    on_l0 = on_l0[:, : covered.shape[1]]
    assert (covered & on_l0).sum() / on_l0.sum() > 0.85
