"""Painted slides: equal seeds, the planted signal where it belongs, nothing to be had elsewhere.

The oracles look at pixels only. Each knows which hand-made feature a factor shows in; the truth
cells say where to look.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mstar.cohorts.generated.cells import LEAST_TISSUE, cell_step_px, draw_cells, truth_of_patches
from mstar.cohorts.generated.config import CANCER_TYPES, GenerateConfig
from mstar.cohorts.generated.factors import SlideFactors, draw_case, slides_of
from mstar.cohorts.generated.paint import SlidePlan, paint_region, paint_slide, plan_slide
from mstar.cohorts.generated.svs import write_svs
from mstar.slides.grid import make_grid
from mstar.slides.reader import open_slide
from mstar.slides.tissue import find_tissue

CONFIG = GenerateConfig(out="unused", num_cancer_types=8, slide_px=800, pen_fraction=0.0)
SMALL = replace(CONFIG, slide_px=600)
NUM_CASES = 40
LEAST_AUC = 0.9
SHORTCUTS = ("red", "green", "blue", "jpeg_bytes", "num_nuclei")


def job_of(index: int, config: GenerateConfig = CONFIG, **factors: object) -> SlideFactors:
    """The first slide of a case, some of its factors replaced."""
    case = replace(draw_case(config, index, 0.0), num_slides=1, **factors)  # type: ignore[arg-type]
    return slides_of(config, case)[0]


def paint_all(plan: SlidePlan) -> np.ndarray:
    """The whole slide."""
    return paint_region(plan, 0, 0, plan.width_px, plan.height_px)


# ------------------------------------------------------------------------------ same and other


def test_equal_jobs_give_equal_slides() -> None:
    first, again = paint_slide(job_of(3), CONFIG), paint_slide(job_of(3), CONFIG)
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.cells.mutation, again.cells.mutation)
    assert np.array_equal(first.cells.tissue, again.cells.tissue)


def test_another_seed_gives_another_slide() -> None:
    job = job_of(3)
    other = paint_slide(replace(job, seed=(*job.seed[:-1], 99)), CONFIG)
    assert not np.array_equal(paint_slide(job, CONFIG).pixels, other.pixels)


@pytest.mark.parametrize("extras", [0.0, 1.0])
def test_pixels_do_not_depend_on_how_the_slide_is_cut_up(extras: float) -> None:
    config = replace(CONFIG, pen_fraction=extras, fold_fraction=extras)
    plan = plan_slide(job_of(5, config), config)
    whole = paint_all(plan)
    for x, y, width, height in ((0, 0, 100, 90), (301, 263, 257, 201), (511, 7, 37, 613)):
        part = paint_region(plan, x, y, width, height)
        assert np.array_equal(part, whole[y : y + height, x : x + width])


def test_pen_and_fold_change_the_slide() -> None:
    plain = replace(CONFIG, fold_fraction=0.0)
    for name in ("pen_fraction", "fold_fraction"):
        config = replace(plain, **{name: 1.0})
        changed = (paint_all(plan_slide(job_of(5), config)) != paint_all(
            plan_slide(job_of(5), plain))).any(axis=2)  # fmt: skip
        assert 0.005 < changed.mean() < 0.4


# ----------------------------------------------------------------- each factor where it belongs


@pytest.mark.parametrize(
    ("factor", "low", "high"), [("mutation", False, True), ("pathway", 0.0, 1.0)]
)
def test_a_factor_changes_its_signal_cells_and_no_other_pixel(
    factor: str, low: object, high: object
) -> None:
    plans = [plan_slide(job_of(7, **{factor: value}), CONFIG) for value in (low, high)]
    flags = [getattr(plan.cells, factor) for plan in plans]
    assert np.array_equal(*flags)
    changed = np.any(paint_all(plans[0]) != paint_all(plans[1]), axis=2)
    near = np.zeros(changed.shape, np.uint8)
    cells = plans[0].cells
    for x, y in zip(cells.x_l0[flags[0]], cells.y_l0[flags[0]], strict=True):
        near[y : y + cells.size_px, x : x + cells.size_px] = 1
        assert changed[y : y + cells.size_px, x : x + cells.size_px].mean() > 0.03
    reach = cv2.dilate(near, np.ones((101, 101), np.uint8))  # nuclei on the edge of a cell
    assert not changed[reach == 0].any()
    assert (reach == 0).mean() > 0.1


def test_without_strength_no_factor_shows() -> None:
    config = replace(CONFIG, signal_strength=0.0)
    low = job_of(7, config, mutation=False, pathway=0.1, grade=1, cancer_type="BRCA")
    high = job_of(7, config, mutation=True, pathway=0.9, grade=3, cancer_type="LUAD")
    assert np.array_equal(paint_slide(low, config).pixels, paint_slide(high, config).pixels)


def test_signal_cells_are_the_stated_share_of_the_tissue_cells() -> None:
    for index in range(4):
        cells = plan_slide(job_of(index), CONFIG).cells
        candidates = cells.tissue >= LEAST_TISSUE
        for flag in (cells.mutation, cells.pathway):
            assert not flag[~candidates].any()
            assert flag.sum() == max(1, round(CONFIG.signal_fraction * candidates.sum()))


# -------------------------------------------------------------------------------------- oracles


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenCell:
    """One cell as an oracle sees it, and what is true of its slide."""

    case: int
    kind: str  # mutation, pathway: a signal cell of that factor; quiet: of neither
    mutation: bool
    pathway: bool
    coherence: float
    openness: float
    red: float
    green: float
    blue: float
    jpeg_bytes: float
    num_nuclei: float


def density_of(pixels: np.ndarray) -> np.ndarray:
    """Optical density of red light: haematoxylin, hardly any eosin."""
    return -np.log10(np.maximum(pixels[..., 0], 1) / 244).astype(np.float32)


def coherence_of(pixels: np.ndarray) -> float:
    """How far edges of the nuclei have one direction (structure tensor of the whole cell)."""
    soft = cv2.GaussianBlur(density_of(pixels), (0, 0), 1.5)
    x, y = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
    xx, yy, xy = (x * x).mean(), (y * y).mean(), (x * y).mean()
    return float(np.hypot(xx - yy, 2 * xy) / (xx + yy))


def openness_of(pixels: np.ndarray) -> float:
    """How much the inside of nuclei varies: rims and nucleoli against even chromatin."""
    soft = cv2.GaussianBlur(density_of(pixels), (0, 0), 0.8)
    dark = (soft > np.quantile(soft, 0.7)).astype(np.uint8)
    small, disc, large = (
        cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)) for side in (3, 7, 9)
    )
    nuclei = cv2.morphologyEx(cv2.morphologyEx(dark, cv2.MORPH_CLOSE, large), cv2.MORPH_OPEN, disc)
    inner = cv2.erode(nuclei, small) > 0
    peaks = soft - cv2.morphologyEx(soft, cv2.MORPH_OPEN, small)
    return float(peaks[inner].mean() / soft[inner].mean()) if inner.any() else 0.0


def seen_cell(plan: SlidePlan, place: int, kind: str, job: SlideFactors) -> SeenCell:
    """Paint one cell and look at it."""
    cells, nuclei = plan.cells, plan.nuclei
    x, y, side = int(cells.x_l0[place]), int(cells.y_l0[place]), cells.size_px
    pixels = paint_region(plan, x, y, side, side)
    red, green, blue = pixels.reshape(-1, 3).mean(axis=0).tolist()
    inside = (abs(nuclei.x - x - side / 2) < side / 2) & (abs(nuclei.y - y - side / 2) < side / 2)
    return SeenCell(
        case=job.case.index,
        kind=kind,
        mutation=job.case.mutation,
        pathway=job.case.pathway > 0.5,
        coherence=coherence_of(pixels),
        openness=openness_of(pixels),
        red=red,
        green=green,
        blue=blue,
        jpeg_bytes=float(len(cv2.imencode(".jpg", pixels)[1])),
        num_nuclei=float(inside.sum()),
    )


@pytest.fixture(scope="module")
def seen() -> list[SeenCell]:
    """Up to two cells of each kind of 40 small slides."""
    result = []
    for index in range(NUM_CASES):
        job = job_of(index)
        plan = plan_slide(job, CONFIG)
        cells = plan.cells
        full = cells.tissue > 0.6
        for kind, flag in (
            ("mutation", cells.mutation),
            ("pathway", cells.pathway),
            ("quiet", ~cells.mutation & ~cells.pathway),
        ):
            places = np.flatnonzero(flag & full)[:2].tolist()
            result += [seen_cell(plan, place, kind, job) for place in places]
    return result


def auc_over_cases(cells: list[SeenCell], feature: str, label: str) -> tuple[float, float]:
    """AUC of a feature's mean over each case's cells, and its standard error under no effect."""
    cases = sorted({cell.case for cell in cells})
    own = [[cell for cell in cells if cell.case == case] for case in cases]
    truth = [getattr(group[0], label) for group in own]
    values = [np.mean([getattr(cell, feature) for cell in group]) for group in own]
    ones, zeros = sum(truth), len(truth) - sum(truth)
    assert min(ones, zeros) >= 10
    error = np.sqrt((ones + zeros + 1) / (12 * ones * zeros))
    return float(roc_auc_score(truth, values)), float(error)


ORACLES = [("mutation", "coherence"), ("pathway", "openness")]


@pytest.mark.parametrize(("factor", "feature"), ORACLES)
def test_an_oracle_finds_the_factor_in_its_signal_cells(
    seen: list[SeenCell], factor: str, feature: str
) -> None:
    auc, _ = auc_over_cases([cell for cell in seen if cell.kind == factor], feature, factor)
    assert auc > LEAST_AUC


@pytest.mark.parametrize(("factor", "feature"), ORACLES)
def test_the_oracle_is_at_chance_on_other_cells(
    seen: list[SeenCell], factor: str, feature: str
) -> None:
    auc, error = auc_over_cases([cell for cell in seen if cell.kind == "quiet"], feature, factor)
    assert abs(auc - 0.5) < 1.96 * error


@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("factor", ["mutation", "pathway"])
def test_shortcuts_are_at_chance_in_signal_cells(
    seen: list[SeenCell], factor: str, shortcut: str
) -> None:
    auc, error = auc_over_cases([cell for cell in seen if cell.kind == factor], shortcut, factor)
    assert abs(auc - 0.5) < 1.96 * error


def test_strong_factors_shift_the_colour_by_less_than_a_tenth_of_what_cells_differ() -> None:
    """Paired: the same cell with and without both factors, so that a small leak would show."""
    means = {high: [] for high in (False, True)}  # type: dict[bool, list[np.ndarray]]
    for index in range(8):
        for high in (False, True):
            plan = plan_slide(job_of(index, mutation=high, pathway=float(high)), CONFIG)
            cells = plan.cells
            flags = (cells.mutation | cells.pathway) & (cells.tissue > 0.6)
            for place in np.flatnonzero(flags)[:4].tolist():
                x, y = int(cells.x_l0[place]), int(cells.y_l0[place])
                pixels = paint_region(plan, x, y, cells.size_px, cells.size_px)
                means[high].append(pixels.reshape(-1, 3).mean(axis=0))
    low, high = np.array(means[False]), np.array(means[True])
    assert (abs((high - low).mean(axis=0)) < 0.1 * low.std(axis=0)).all()


def test_grade_is_the_spread_of_nuclear_sizes() -> None:
    """Granulometry: grade 3 has more very large nuclei than grade 1, and no more stain."""
    large, stain, truth = [], [], []
    for index in range(28):
        plan = plan_slide(job_of(index, SMALL, grade=1 + 2 * (index % 2)), SMALL)
        cells = plan.cells
        places = np.argsort(cells.tissue)[-3:].tolist()
        views = [
            paint_region(plan, int(cells.x_l0[p]), int(cells.y_l0[p]), 256, 256) for p in places
        ]
        large.append(large_share_of(views))
        stain.append(np.mean([density_of(view).mean() for view in views]))
        truth.append(index % 2 == 1)
    assert roc_auc_score(truth, large) > LEAST_AUC
    assert abs(roc_auc_score(truth, stain) - 0.5) < 1.96 * np.sqrt(29 / (12 * 14 * 14))


def large_share_of(views: list[np.ndarray]) -> float:
    """How much of the dark area holds a disc of 10 µm, as a share of what holds one of 4 µm."""
    areas = np.zeros(2)
    for view in views:
        soft = cv2.GaussianBlur(density_of(view), (0, 0), 1.0)
        dark = (soft > 0.45 * np.quantile(soft, 0.98)).astype(np.uint8)
        for number, side in enumerate((9, 19)):
            disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
            areas[number] += cv2.morphologyEx(dark, cv2.MORPH_OPEN, disc).sum()
    return float(areas[1] / areas[0])


def test_cancer_types_differ_in_architecture_more_than_in_colour() -> None:
    """A linear model on band energies and lumens finds the type, one on mean colour hardly."""
    shapes, colours, types = [], [], []
    for index in range(48):
        kind = index % 4
        plan = plan_slide(job_of(index, SMALL, cancer_type=CANCER_TYPES[kind]), SMALL)
        shape, mean = _architecture(plan)
        shapes.append(shape)
        colours.append(mean)
        types.append(kind)
    found = {}
    for name, features in (("shape", shapes), ("colour", colours)):
        model = make_pipeline(StandardScaler(), LogisticRegression())
        found[name] = float(np.mean(
            cross_val_predict(model, np.array(features), types, cv=6) == np.array(types)
        ))  # fmt: skip
    assert found["shape"] > 0.85
    assert found["colour"] < 0.65
    assert found["colour"] < found["shape"] - 0.2


def _architecture(plan: SlidePlan) -> tuple[list[float], np.ndarray]:
    """Lumen share and energy by scale at 4 µm, and the mean density of each colour."""
    px, mask = plan.tissue.plan_px, plan.tissue.mask
    pixels = paint_region(plan, 0, 0, mask.shape[1] * px, mask.shape[0] * px)
    reduced = cv2.resize(pixels, mask.shape[::-1], interpolation=cv2.INTER_AREA)
    small = -np.log10(np.maximum(reduced, 1) / 244).astype(np.float32)
    features = [float((small.mean(axis=2)[mask] < 0.08).mean())]
    for picture in (small.mean(axis=2), small[..., 0] - 0.3 * small[..., 1]):
        for scale in (1, 2, 4, 8):
            band = cv2.GaussianBlur(picture, (0, 0), scale)
            band -= cv2.GaussianBlur(picture, (0, 0), 2 * scale)
            features.append(float(band[mask].std() / picture[mask].std()))
    return features, small[mask].mean(axis=0)


# ---------------------------------------------------------------------------- tissue and cells


@pytest.mark.parametrize("cancer_type", CANCER_TYPES)
def test_found_tissue_is_the_painted_tissue(cancer_type: str, tmp_path: Path) -> None:
    job = job_of(11, cancer_type=cancer_type)
    plan = plan_slide(job, CONFIG)
    path = tmp_path / "slide.svs"
    write_svs(path, paint_all(plan), mpp=job.mpp, objective=20.0, quality=plan.quality)
    slide = open_slide(path)
    tissue = find_tissue(slide)
    size = tissue.mask.shape[1], tissue.mask.shape[0]
    painted = cv2.resize(plan.tissue.mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    union, both = (painted > 0.5) | tissue.mask, (painted > 0.5) & tissue.mask
    assert both.sum() / union.sum() > 0.75  # lumens can count as holes, fat as tissue
    grid = make_grid("slide", slide, job.mpp, tissue)
    cells = {
        (x, y) for x, y in zip(plan.cells.x_l0.tolist(), plan.cells.y_l0.tolist(), strict=True)
    }
    assert len(grid) >= 2
    assert {tuple(row) for row in grid.coords.tolist()} <= cells
    assert grid.patch_size_l0 == plan.cells.size_px


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    mpp=st.floats(0.2, 1.0),
    width=st.integers(300, 2500),
    height=st.integers(300, 2500),
)
def test_truth_of_patches_is_overlap_with_signal_cells(
    seed: int, mpp: float, width: int, height: int
) -> None:
    rng = np.random.default_rng(seed)
    plan_px = max(1, round(4 / mpp))
    mask = rng.uniform(size=(-(-height // plan_px), -(-width // plan_px))) < 0.7
    step = cell_step_px(mpp, 128)
    cells = draw_cells(
        rng, mask, plan_px=plan_px, size_px=(width, height), step_px=step, signal_fraction=0.4
    )
    if not len(cells):
        return
    own = np.stack([cells.x_l0, cells.y_l0], axis=1)
    shares = truth_of_patches(own, cells.size_px, cells)
    for name in ("mutation", "pathway"):
        flags = getattr(cells, name)
        assert (abs(shares[name] - flags) < 0.05).all()  # a cell is its own truth, but for rounding
    picture = np.zeros((height, width))
    for (x, y), flag in zip(own, cells.mutation, strict=True):
        picture[y : y + cells.size_px, x : x + cells.size_px] = flag
    patches = rng.integers(0, (width - 128, height - 128), (20, 2))
    expected = [picture[y : y + 128, x : x + 128].mean() for x, y in patches]
    assert np.allclose(truth_of_patches(patches, 128, cells)["mutation"], expected, atol=0.04)
    assert (own + cells.size_px <= (width, height)).all()
