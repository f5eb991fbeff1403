"""Finding tissue: known shapes, blank and noisy glass, filters by area, annotations."""

import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.errors import ConfigError, MppError
from mstar.slides.reader import open_slide
from mstar.slides.regions import Region
from mstar.slides.tissue import (
    PRESETS,
    Tissue,
    TissueConfig,
    area_scale,
    find_tissue,
    tissue_from_regions,
)
from support.fake_slide import FakeSlide, plain_slide
from support.slides import SlideSpec, slide_pixels, tissue_truth

PINK, GLASS = (200, 120, 170), (245, 244, 245)
# Nothing but the threshold, on level-0 pixels: what is coloured is tissue.
BARE = TissueConfig(
    preset="bcnb", mthresh=0, close=0, a_t=0.0, a_h=0.0, max_n_holes=10_000, seg_level=0
)


def painted(mask: np.ndarray, scale: int, **options: object) -> FakeSlide:
    """A slide that is pink where the mask, enlarged, is True."""
    large = np.kron(mask, np.ones((scale, scale), dtype=bool))
    pixels = np.where(large[:, :, None], np.uint8(PINK), np.uint8(GLASS))
    return FakeSlide(pixels.astype(np.uint8), **options)  # type: ignore[arg-type]


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union."""
    return float((found & truth).sum() / max(1, (found | truth).sum()))


def test_presets_are_the_published_rows() -> None:
    rows = {
        name: dataclasses.astuple(rules)
        # sthresh, mthresh, close, use_otsu, a_t, a_h, max_n_holes, white_thresh, black_thresh
        for name, rules in PRESETS.items()
    }
    assert rows == {
        "tcga": (8, 7, 4, True, 16, 4, 8, 5, 50),
        "bcnb": (10, 7, 4, False, 16, 4, 8, 5, 50),
        "dhmc": (4, 6, 4, False, 16, 2, 8, 5, 50),
    }


def test_a_field_replaces_its_presets_value_and_no_other() -> None:
    rules = TissueConfig(preset="dhmc", sthresh=0, use_otsu=True).rules()
    assert rules == dataclasses.replace(PRESETS["dhmc"], sthresh=0, use_otsu=True)


@pytest.mark.parametrize(
    "wrong", [{"preset": "nosuch"}, {"sthresh": -1}, {"a_t": -2.0}, {"seg_mpp": 0.0}]
)
def test_values_without_meaning_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises((ConfigError, TypeError), match=next(iter(wrong))):  # or the type check
        TissueConfig(**wrong)  # type: ignore[arg-type]


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_outlines_drawn_again_are_the_mask_they_were_traced_on(seed: int) -> None:
    blob = np.random.default_rng(seed).random((20, 20)) > 0.5
    tissue = find_tissue(painted(blob, 3), BARE)
    assert np.array_equal(tissue.mask, np.kron(blob, np.ones((3, 3), dtype=bool)))


@given(seed=st.integers(0, 10_000), side=st.integers(2, 7))
@settings(max_examples=30, deadline=None)
def test_closing_only_adds_and_only_between(seed: int, side: int) -> None:
    blob = np.random.default_rng(seed).random((14, 14)) > 0.7
    blob[[0, 1, -1, -2]] = blob[:, [0, 1, -1, -2]] = False
    slide = painted(blob, 3)
    before = find_tissue(slide, BARE).mask
    after = find_tissue(slide, dataclasses.replace(BARE, close=side)).mask
    assert (after >= before).all()
    kernel = np.ones((2 * side - 1, 2 * side - 1), dtype=np.uint8)
    assert (after <= cv2.dilate(before.astype(np.uint8), kernel).astype(bool)).all()
    gap = blob.copy()
    gap[:] = False
    gap[5, 4] = gap[5, 6] = True  # 3 px apart: closed by a square of more than 3
    bridged = find_tissue(painted(gap, 3), dataclasses.replace(BARE, close=side)).mask
    assert bridged[16, 16] == (side > 3)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_known_tissue_is_found_at_every_preset(preset: str) -> None:
    spec = SlideSpec(width=4096, height=3072)
    slide = FakeSlide(slide_pixels(spec), downsamples=(1.0, 4.0))
    tissue = find_tissue(slide, TissueConfig(preset=preset))  # type: ignore[arg-type]
    columns, rows = tissue.raster.size_px
    truth = cv2.resize(tissue_truth(spec).astype(np.float32), (columns, rows)) > 0.5
    assert len(tissue.polygons) == 2
    assert overlap(tissue.mask, truth) > 0.93


def test_a_piece_of_the_default_small_generated_slide_is_not_filtered_away() -> None:
    tissue = find_tissue(FakeSlide(slide_pixels(SlideSpec())))
    assert len(tissue.polygons) == 2


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("spread", [0, 1, 3])
def test_glass_with_or_without_noise_is_no_tissue(preset: str, spread: int) -> None:
    noise = np.random.default_rng(0).integers(-spread, spread + 1, (2000, 3000, 3))
    slide = FakeSlide((242 + noise).astype(np.uint8))
    tissue = find_tissue(slide, TissueConfig(preset=preset))  # type: ignore[arg-type]
    assert tissue.polygons == ()
    assert tissue.box_l0 is None
    assert not tissue.mask.any()


def test_a_noisy_black_frame_is_no_tissue_and_hides_none() -> None:
    spec = SlideSpec(width=4096, height=3072)
    clean = slide_pixels(spec)
    frame = np.random.default_rng(0).integers(0, 12, clean.shape, dtype=np.uint8)
    framed = clean.copy()
    for part in (np.s_[:300], np.s_[-300:], np.s_[:, :300], np.s_[:, -300:]):
        framed[part] = frame[part]
    found = find_tissue(FakeSlide(framed)).mask
    assert overlap(found, find_tissue(FakeSlide(clean)).mask) > 0.95


def test_holes_are_kept_by_size_and_number() -> None:
    mask = np.ones((40, 40), dtype=bool)
    mask[5:15, 5:15] = mask[25:31, 5:11] = mask[5:9, 25:29] = False  # 100, 36 and 16 squares
    mask[[0, -1]] = mask[:, [0, -1]] = False
    slide = painted(mask, 64)  # a reference patch is 8 x 8 squares = 64

    def holes(**changes: float) -> list[int]:
        config = dataclasses.replace(BARE, seg_level=-1, **changes)
        return [len(region.holes) for region in find_tissue(slide, config).polygons]

    assert holes() == [3]
    assert holes(a_h=0.4) == [2]
    assert holes(a_h=1.0) == [1]
    assert holes(max_n_holes=1) == [1]
    assert holes(a_h=4.0) == [0]
    largest = find_tissue(slide, dataclasses.replace(BARE, max_n_holes=1)).polygons[0].holes[0]
    assert np.ptp(largest, axis=0) == pytest.approx(640, abs=4)


def test_pieces_below_a_t_are_left_out() -> None:
    mask = np.zeros((1000, 1000), dtype=bool)
    mask[100:196, 100:196] = True  # 0.92 % of the image
    mask[500:606, 500:606] = True  # 1.12 %

    def kept(a_t: float) -> int:
        return len(find_tissue(painted(mask, 1), dataclasses.replace(BARE, a_t=a_t)).polygons)

    assert [kept(0.0), kept(0.01), kept(0.038), kept(0.045)] == [2, 2, 1, 1]  # 0.034 and 0.042
    assert kept(16.0) == 1  # a small image: at most 1 % of it


def test_the_least_area_is_the_published_one_on_a_whole_slide() -> None:
    rules = PRESETS["tcga"]
    assert area_scale(rules, (0, 0, 80_000, 60_000)) == 1.0
    assert area_scale(rules, (0, 0, 20_480, 20_480)) == 1.0
    assert area_scale(rules, (0, 0, 2_048, 2_048)) == pytest.approx(0.01)


def test_only_the_scanned_area_is_searched() -> None:
    slide = painted(np.ones((40, 40), dtype=bool), 64, bounds_l0=(640, 320, 1000, 900))
    tissue = find_tissue(slide)
    left, top, right, bottom = tissue.box_l0 or (0, 0, 0, 0)
    assert (left, top) >= (640, 320)
    assert right <= 1640
    assert bottom <= 1220
    assert tissue.mask.mean() > 0.9


def test_the_pyramid_hardly_matters() -> None:
    pixels = slide_pixels(SlideSpec(width=4096, height=3072))
    masks = [
        find_tissue(FakeSlide(pixels, downsamples=ds)).mask
        for ds in ((1.0,), (1.0, 4.0), (1.0, 4.0, 16.0))
    ]
    assert all(overlap(masks[0], other) > 0.97 for other in masks[1:])


def test_a_large_slide_gives_a_small_picture() -> None:
    slide = plain_slide(90_000, 60_000, mpp=0.25, downsamples=(1.0, 4.0, 16.0, 64.0))
    tissue = find_tissue(slide, TissueConfig(max_raster_px=1000))
    assert max(tissue.raster.size_px) <= 1000
    assert sum(width * height for *_, width, height in slide.reads) < 3e6


def test_without_a_resolution_the_flag_is_named_and_a_stated_one_helps() -> None:
    slide = painted(np.eye(30, dtype=bool), 64, mpp=None)
    with pytest.raises(MppError, match=r"fake\.svs.*--slide-mpp"):
        find_tissue(slide)
    assert find_tissue(slide, mpp=0.5).raster.scale == 16


def test_an_annotation_replaces_what_would_be_found() -> None:
    slide = painted(np.eye(30, dtype=bool), 64)
    corner = np.array([(0, 0), (480, 0), (480, 480), (0, 480)], dtype=np.int64)
    tissue = tissue_from_regions(slide, [Region(outer=corner)])
    assert tissue.source == "annotation"
    assert tissue.box_l0 == (0, 0, 480, 480)
    assert tissue.mask[:28, :28].all()
    assert not tissue.mask[32:].any()


def test_the_real_slide_is_one_piece(real_slide) -> None:  # type: ignore[no-untyped-def]
    slide = open_slide(real_slide)
    found: dict[str, Tissue] = {
        name: find_tissue(slide, TissueConfig(preset=name))  # type: ignore[arg-type]
        for name in PRESETS
    }
    slide.close()
    for tissue in found.values():
        assert len(tissue.polygons) == 1
        assert 0.25 < tissue.mask.mean() < 0.45
    assert overlap(found["tcga"].mask, found["dhmc"].mask) > 0.8
