"""How each grid mode reads its pixels: level, sides, resolution, and what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.errors import ConfigError, MppError
from mstar.slides.grid import GridConfig, plan_pixels
from mstar.slides.pixel_plan import PixelPlan, magnification, prepath_magnification
from support.fake_slide import plain_slide

PYRAMIDS = [(1.0,), (1.0, 4.0, 16.0), (1.0, 2.0, 4.0, 8.0), (1.0, 2.0005, 4.001, 15.9994)]


def planned(mpp: float, downsamples: tuple[float, ...] = (1.0,), **fields: object) -> PixelPlan:
    slide = plain_slide(50_000, 50_000, downsamples=downsamples)
    return plan_pixels("s1", slide, mpp, GridConfig(**fields))  # type: ignore[arg-type]


@given(
    mpp=st.floats(0.1, 1.1),
    target_mpp=st.floats(0.1, 8),
    patch_px=st.integers(32, 1024),
    downsamples=st.sampled_from(PYRAMIDS),
)
@settings(max_examples=300, deadline=None)
def test_exact_meets_the_resolution_it_states(
    mpp: float, target_mpp: float, patch_px: int, downsamples: tuple[float, ...]
) -> None:
    config = {"target_mpp": target_mpp, "patch_px": patch_px}
    if mpp > 1.2 * target_mpp:
        with pytest.raises(MppError, match="s1"):
            planned(mpp, downsamples, **config)
        return
    plan = planned(mpp, downsamples, **config)
    level_mpp = mpp * downsamples[plan.read_level]
    assert plan.output_px == patch_px
    assert abs(plan.effective_mpp / target_mpp - 1) <= 0.01 + 1e-9
    assert plan.footprint_l0 * mpp == pytest.approx(patch_px * plan.effective_mpp)
    # What is read covers the footprint to half a pixel of its level on each of its sides.
    assert abs(plan.read_px - plan.footprint_l0 * mpp / level_mpp) <= 0.5 + 1e-6
    coarser = [d for d in downsamples if d > downsamples[plan.read_level]]
    assert all(mpp * d > target_mpp * 1.0099 for d in coarser)
    assert level_mpp <= target_mpp * 1.01 + 1e-9 or plan.read_level == 0
    native = abs(level_mpp / target_mpp - 1) <= 0.01
    assert (plan.read_px == patch_px and plan.effective_mpp == level_mpp) or not native


@pytest.mark.parametrize(
    ("mpp", "downsamples", "expected"),
    [
        # level, read, footprint, effective mpp
        (0.25, (1.0, 4.0, 16.0), (0, 512, 512.0, 0.5)),  # 40x, 4-fold pyramid: resampled 2:1
        (0.25, (1.0, 2.0, 4.0), (1, 256, 512.0, 0.5)),  # 40x, 2-fold: level 1 as it is
        (0.25, (1.0, 2.0005), (1, 256, 512.128, 0.500125)),  # within 1 %: as it is
        (0.499, (1.0,), (0, 256, 256.0, 0.499)),  # 20x: as it is
        (0.2527, (1.0, 4.0), (0, 507, 506.529, 0.5)),
        (0.55, (1.0,), (0, 233, 232.727, 0.5)),  # a little too coarse: enlarged
        (0.125, (1.0, 4.0, 16.0), (1, 256, 1024.0, 0.5)),  # 80x
    ],
)
def test_exact_examples(
    mpp: float, downsamples: tuple[float, ...], expected: tuple[int, int, float, float]
) -> None:
    plan = planned(mpp, downsamples)
    found = (plan.read_level, plan.read_px, plan.footprint_l0, plan.effective_mpp)
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("mpp", "side", "nominal"),
    [
        (0.5, 256, 20), (0.499, 256, 20), (0.454, 256, 20), (0.36, 256, 20), (0.65, 256, 20),
        (0.25, 512, 40), (0.2325, 512, 40), (0.2738, 512, 40), (0.33, 512, 40), (0.1803, 512, 40),
        (0.125, 1024, 80), (0.1625, 1024, 80),
    ],
)  # fmt: skip
def test_prepath_takes_level_0_as_it_is(mpp: float, side: int, nominal: int) -> None:
    plan = planned(mpp, (1.0, 2.0, 4.0), grid_mode="prepath")
    assert (plan.read_level, plan.read_px, plan.output_px) == (0, side, side)
    assert (plan.footprint_l0, plan.step_l0, plan.effective_mpp) == (side, side, mpp)
    assert (plan.level0_magnification, plan.target_magnification) == (nominal, 20)


@pytest.mark.parametrize("mpp", [1.0, 2.0, 0.72, 10.0, 0.05])
def test_prepath_refuses_other_magnifications(mpp: float) -> None:
    with pytest.raises(MppError, match=r"slide s1.*20x, 40x or 80x"):
        prepath_magnification("s1", mpp)


@pytest.mark.parametrize("fields", [{"patch_px": 224}, {"target_mpp": 1.0}])
def test_prepath_refuses_what_it_would_ignore(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"prepath.*--grid-mode exact"):
        planned(0.25, grid_mode="prepath", **fields)


@pytest.mark.parametrize(
    ("mpp", "downsamples", "expected"),
    [
        # level, read, footprint, effective mpp
        (0.25, (1.0, 4.0), (0, 512, 512, 0.5)),
        (0.2527, (1.0, 4.0), (0, 512, 512, 0.5054)),
        (0.25, (1.0, 2.0005, 4.001), (1, 256, 512, 0.500125)),
        (0.499, (1.0, 4.0), (0, 256, 256, 0.499)),
        (0.17, (1.0,), (0, 768, 768, 0.51)),
    ],
)
def test_clam_reads_whole_multiples_of_the_patch(
    mpp: float, downsamples: tuple[float, ...], expected: tuple[int, int, int, float]
) -> None:
    plan = planned(mpp, downsamples, grid_mode="clam")
    found = (plan.read_level, plan.read_px, plan.patch_size_l0, plan.effective_mpp)
    assert found == pytest.approx(expected)
    assert plan.output_px == 256


@pytest.mark.parametrize(
    ("mpp", "target_mpp", "overlap_px", "side", "step"),
    [
        # patch_size * src_mag // target_mag, magnifications by the table in formats.md
        (0.25, 0.5, 0, 256 * 40 // 20, 512),
        (0.2527, 0.5, 64, 256 * 40 // 20, 384),
        (0.499, 0.5, 0, 256 * 20 // 20, 256),
        (0.19, 0.5, 0, 256 * 60 // 20, 768),
        (0.13, 0.25, 0, 256 * 80 // 40, 512),
        (0.25, 1.0, 0, 256 * 40 // 10, 1024),
        (0.5, 2.0, 128, 256 * 20 // 5, 512),
    ],
)
def test_trident_footprint(
    mpp: float, target_mpp: float, overlap_px: int, side: int, step: int
) -> None:
    plan = planned(mpp, grid_mode="trident", target_mpp=target_mpp, overlap_px=overlap_px)
    assert (plan.patch_size_l0, plan.step_l0) == (side, step)
    assert (plan.read_px, plan.output_px) == (side, 256)
    assert plan.effective_mpp == pytest.approx(side * mpp / 256)


def test_trident_reads_the_best_level() -> None:
    plan = planned(0.2527, (1.0, 2.0005, 4.001), grid_mode="trident")
    assert (plan.read_level, plan.read_px) == (1, 256)
    plan = planned(0.25, (1.0, 4.0), grid_mode="trident", target_mpp=1.9, patch_px=224)
    assert (plan.read_level, plan.read_px, plan.patch_size_l0) == (1, 448, 1792)


@pytest.mark.parametrize(
    ("mpp", "expected"),
    [(0.1, 80), (0.16, 60), (0.2, 40), (0.29, 40), (0.3, 20), (0.6, 10), (1.2, 5), (4.0, 2.5)],
)
def test_magnification_table(mpp: float, expected: float) -> None:
    assert magnification(mpp) == expected


@pytest.mark.parametrize("mode", ["exact", "clam", "trident"])
def test_pixels_are_not_enlarged_much(mode: str) -> None:
    with pytest.raises(MppError, match=r"slide s1: 1 µm per pixel is 2 times coarser"):
        planned(1.0, grid_mode=mode)
    assert planned(1.0, grid_mode=mode, max_upsampling=2.0).read_px >= 1


def test_trident_ends_at_5x() -> None:
    with pytest.raises(MppError, match=r"the target 3.*--grid-mode exact"):
        planned(0.5, grid_mode="trident", target_mpp=3.0)


def test_patches_that_would_not_move_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"s1.*overlap"):
        planned(1.0, patch_px=8, overlap_px=7, max_upsampling=9.0)
