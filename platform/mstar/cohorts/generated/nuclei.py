"""Nuclei: where they lie, how large and how turned they are, and their pictures.

Three factors show here and nowhere else:

    grade      spread of the nuclear size, everywhere; the mean area is the same for all grades
    mutation   in its signal cells nuclei point in one direction; elsewhere in any
    pathway    in its signal cells the share of open nuclei (pale, with a rim and a nucleolus)
               against dense ones is the activity; elsewhere it is one half

Open and dense nuclei let the same light through. So none of the three changes the number of nuclei,
their area, or the mean colour.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from mstar.cohorts.generated.cells import TruthCells
from mstar.cohorts.generated.factors import CaseFactors
from mstar.cohorts.generated.tissue import TissuePlan

_SITE_UM = 5.6
_APART_UM = 6.3
_NUM_TURNS = 16
_SIZE_STEP = 1.09  # neighbouring sizes of the pictures
_SHAPES = (1.12, 1.4, 1.75, 2.3)  # length over width
_NUM_VARIANTS = 3
_DENSITY = 0.62  # optical density of a nucleus, on average
_EPITHELIUM_UM, _STROMA_UM, _LYMPH_UM = 3.7, 3.0, 2.7  # radius
_BASE_SPREAD, _GRADE_SPREAD = 0.20, 0.11  # standard deviation of the log radius


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nuclei:
    """The nuclei of a slide, by row of their sites, so that a block's are found quickly."""

    x: Float32[np.ndarray, " nucleus"]  # level-0 pixels
    y: Float32[np.ndarray, " nucleus"]
    radius_px: Float32[np.ndarray, " nucleus"]
    shape: Int64[np.ndarray, " nucleus"]  # index of _SHAPES
    angle: Float32[np.ndarray, " nucleus"]  # of the long axis, 0 to π
    open: Bool[np.ndarray, " nucleus"]
    dark: Float32[np.ndarray, " nucleus"]  # times the usual density


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """How strongly a case's factors show in its nuclei.

    spread: standard deviation of the log radius.
    streaming: share of a signal cell's nuclei that follow its direction; 0 without the mutation.
    jitter: how far those stray from it, radians.
    open_share: of the nuclei in the pathway's signal cells.
    """

    spread: float
    streaming: float
    jitter: float
    open_share: float


def draw_show(
    rng: np.random.Generator, case: CaseFactors, *, strength: float, noise: float
) -> Show:
    """The factors of a case as morphology; at strength 0 nothing shows."""
    seen, astray = min(1.0, strength), min(0.9, 0.12 * noise)
    grade = _GRADE_SPREAD * strength * (case.grade - 2) + rng.normal(0, 0.012) * noise
    activity = 0.5 + (case.pathway - 0.5) * seen * (1 - astray)
    return Show(
        spread=float(np.clip(_BASE_SPREAD + grade, 0.05, 0.45)),
        streaming=seen * (1 - astray) if case.mutation else 0.0,
        jitter=0.17 * noise,
        open_share=float(np.clip(activity, 0, 1)),
    )


def place_nuclei(
    rng: np.random.Generator, plan: TissuePlan, cells: TruthCells, show: Show, mpp: float
) -> Nuclei:
    """All nuclei of a slide; what a block shows does not depend on how the slide is cut up."""
    x, y = _sites(rng, plan, mpp)
    column, row = (np.minimum((v / plan.plan_px).astype(np.int64), n - 1)
                   for v, n in ((x, plan.mask.shape[1]), (y, plan.mask.shape[0])))  # fmt: skip
    count = len(x)
    in_gland = plan.gland[row, column] < 0
    is_lymph = ~in_gland & (rng.uniform(size=count) < 0.9 * plan.lymph[row, column])
    size_um = np.where(in_gland, _EPITHELIUM_UM, np.where(is_lymph, _LYMPH_UM, _STROMA_UM))
    deviation = np.clip(rng.standard_normal(count), -2.5, 2.5)
    # E[r²] stays the same: a wider spread does not make more nuclear area.
    radius_um = size_um * np.exp(show.spread * deviation - show.spread**2)
    shape = np.where(in_gland, rng.choice(4, count, p=(0.1, 0.4, 0.4, 0.1)),
                     np.where(is_lymph, 0, rng.choice(4, count, p=(0, 0.1, 0.4, 0.5))))  # fmt: skip
    cell = cells.index_of(x, y)
    angle, share = _signals(rng, cell, cells, show)
    return Nuclei(
        x=x.astype(np.float32),
        y=y.astype(np.float32),
        radius_px=np.clip(radius_um / mpp, 1.5, 40.0).astype(np.float32),
        shape=shape.astype(np.int64),
        angle=angle.astype(np.float32),
        open=(rng.uniform(size=count) < share) & ~is_lymph,
        dark=(rng.normal(1, 0.12, count).clip(0.7, 1.3) * np.where(is_lymph, 1.25, 1)).astype(
            np.float32
        ),
    )


def _signals(
    rng: np.random.Generator, cell: Int64[np.ndarray, " nucleus"], cells: TruthCells, show: Show
) -> tuple[Float64[np.ndarray, " nucleus"], Float64[np.ndarray, " nucleus"]]:
    """Angle of each nucleus, and its chance to be open; the same draws whatever the factors."""
    count = len(cell)
    stream = rng.uniform(0, np.pi, len(cells) + 1)  # -1, outside every cell, is the last
    free, follows = rng.uniform(0, np.pi, count), rng.uniform(size=count) < show.streaming
    stray = rng.normal(0, 1, count) * show.jitter
    streams, active = np.append(cells.mutation, False)[cell], np.append(cells.pathway, False)[cell]
    angle = np.where(streams & follows, stream[cell] + stray, free) % np.pi
    return angle, np.where(active, show.open_share, 0.5)


def _sites(
    rng: np.random.Generator, plan: TissuePlan, mpp: float
) -> tuple[Float64[np.ndarray, " nucleus"], Float64[np.ndarray, " nucleus"]]:
    """Centres of nuclei: a shaken lattice, thinned by density, none too near another."""
    step = _SITE_UM / mpp
    high, wide = plan.mask.shape[0] * plan.plan_px, plan.mask.shape[1] * plan.plan_px
    shape = int(high / step), int(wide / step)
    shake = rng.uniform(0.02, 0.98, (2, *shape))
    x = (np.arange(shape[1])[None, :] + shake[0]) * step
    y = (np.arange(shape[0])[:, None] + shake[1]) * step
    density = plan.density[(y / plan.plan_px).astype(int), (x / plan.plan_px).astype(int)]
    rank = rng.uniform(size=shape)
    rank[rng.uniform(size=shape) >= density] = 2.0  # no nucleus here
    keep = (rank < 2) & ~_crowded(x, y, rank, _APART_UM / mpp)
    nudge = rng.uniform(-0.3, 0.3, (2, int(keep.sum()))) * step  # hides the lattice
    limit = high - 1, wide - 1
    return np.clip(x[keep] + nudge[0], 0, limit[1]), np.clip(y[keep] + nudge[1], 0, limit[0])


def _crowded(
    x: Float64[np.ndarray, "row column"],
    y: Float64[np.ndarray, "row column"],
    rank: Float64[np.ndarray, "row column"],
    apart: float,
) -> Bool[np.ndarray, "row column"]:
    """Which sites have a nearer neighbour of lower rank than `apart`."""
    crowded = np.zeros(x.shape, dtype=bool)
    for down, right in ((0, 1), (1, -1), (1, 0), (1, 1)):
        here = slice(0, x.shape[0] - down), slice(max(0, -right), x.shape[1] - max(0, right))
        there = slice(down, None), slice(max(0, right), x.shape[1] + min(0, right))
        near = (x[here] - x[there]) ** 2 + (y[here] - y[there]) ** 2 < apart**2
        crowded[here] |= near & (rank[there] < rank[here])
        crowded[there] |= near & (rank[here] < rank[there])
    return crowded


def draw_nuclei(
    nuclei: Nuclei, left: int, top: int, width: int, height: int
) -> Float32[np.ndarray, "height width"]:
    """The nuclei of one block as optical density; pictures that overlap do not add up."""
    rim = 2 * _reach_px(float(nuclei.radius_px.max(initial=1.0)) * _SIZE_STEP, max(_SHAPES))
    field = np.zeros((height + 2 * rim, width + 2 * rim), np.float32)
    x, y = np.rint(nuclei.x).astype(int) - left, np.rint(nuclei.y).astype(int) - top
    near = (abs(2 * x - width) < width + rim) & (abs(2 * y - height) < height + rim)
    chosen = np.flatnonzero(near)
    size = np.rint(np.log(nuclei.radius_px[chosen]) / np.log(_SIZE_STEP)).astype(int)
    turn = np.rint(nuclei.angle[chosen] / np.pi * _NUM_TURNS).astype(int) % _NUM_TURNS
    rows = zip(
        (y[chosen] + rim).tolist(), (x[chosen] + rim).tolist(), size.tolist(),
        nuclei.shape[chosen].tolist(), turn.tolist(), nuclei.open[chosen].tolist(),
        nuclei.dark[chosen].tolist(), strict=True,
    )  # fmt: skip
    for row, column, size_index, shape, turn_index, is_open, dark in rows:
        # The variant follows from the place, so that equal blocks are equal.
        variant = (row + top + column + left - 2 * rim) % _NUM_VARIANTS
        picture = _picture(size_index, shape, turn_index, is_open, variant)
        reach = picture.shape[0] // 2
        window = field[row - reach : row + reach + 1, column - reach : column + reach + 1]
        np.maximum(window, picture * np.float32(dark), out=window)
    return field[rim : rim + height, rim : rim + width]


def _reach_px(radius_px: float, shape: float) -> int:
    """How far the picture of a nucleus reaches from its centre."""
    return int(radius_px * float(np.sqrt(shape)) + 3)


@lru_cache(maxsize=16_384)
def _picture(
    size: int, shape: int, turn: int, is_open: bool, variant: int
) -> Float32[np.ndarray, "side side"]:
    """One nucleus as optical density."""
    radius, ratio = _SIZE_STEP**size, float(np.sqrt(_SHAPES[shape]))
    long, short = radius * ratio, radius / ratio
    rng = np.random.default_rng((size, shape, turn, variant, 31))
    reach = _reach_px(radius, _SHAPES[shape])
    v, u = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    angle = np.pi * turn / _NUM_TURNS
    along, across = np.cos(angle) * u + np.sin(angle) * v, np.cos(angle) * v - np.sin(angle) * u
    around = np.arctan2(across / short, along / long)
    wave = rng.normal(0, 0.035, 4)
    bumps = sum(wave[k] * np.cos((k + 2) * around + 6 * wave[k - 1] * 30) for k in range(4))
    distance = np.sqrt((along / long) ** 2 + (across / short) ** 2) + bumps
    inside = np.clip((1 - distance) * short / 1.5 + 0.5, 0, 1)
    chromatin = cv2.GaussianBlur(rng.standard_normal(u.shape).astype(np.float32), (0, 0), 1.15)
    chromatin /= max(float(chromatin.std()), 1e-6)
    if is_open:
        rim = np.exp(-(((distance - 0.84) / 0.2) ** 2))
        spot = along - long * rng.uniform(-0.3, 0.3), across - short * rng.uniform(-0.25, 0.25)
        nucleolus = np.exp(-(spot[0] ** 2 + spot[1] ** 2) / (2 * max(0.9, 0.2 * radius) ** 2))
        inner = 0.42 + 0.7 * rim + 1.0 * nucleolus
    else:
        inner = 1.0 - 0.12 * distance + 0.19 * chromatin
    return _of_equal_light(np.clip(inner, 0.05, 2) * inside, inside)


def _of_equal_light(
    density: Float32[np.ndarray, "side side"], inside: Float32[np.ndarray, "side side"]
) -> Float32[np.ndarray, "side side"]:
    """Scaled to let through as much light as an even nucleus of the same outline."""
    wanted = float((10.0 ** -(_DENSITY * inside)).sum())
    low, high = 0.1, 3.0
    for _ in range(14):
        middle = (low + high) / 2
        if float((10.0 ** -(middle * density)).sum()) > wanted:
            low = middle
        else:
            high = middle
    return (density * np.float32((low + high) / 2)).astype(np.float32)
