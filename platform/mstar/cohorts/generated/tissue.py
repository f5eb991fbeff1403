"""Lays out a slide's tissue at about 4 µm: outline, glands, fat, folds, pen, density of nuclei.

Everything is a smooth map on one coarse raster (`SlidePlan.maps`), mostly a signed distance in µm,
which stays sharp when it is enlarged. Painting a block enlarges its part of the maps; so a slide
of any size is laid out at once, and painted block by block.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32

from mstar.cohorts.generated.architecture import Architecture
from mstar.cohorts.generated.foam import Foam, draw_foam, smooth_noise

PLAN_UM = 4.0
CROWDING = 4.0  # sites within the least distance of two nuclei, see `nuclei.py`
DENSITY = 0.135  # mean share of the sites that hold a nucleus in the end, of all types alike
EOSIN = 0.27  # optical density of eosin in tissue, roughly its mean in every type
FAR_UM = 400.0
_FAT_SPACING_UM = 52.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TissuePlan:
    """The maps of one slide, each (rows, columns) with `plan_px` level-0 pixels a pixel.

    mask: where tissue is; lumens count, tears and fat, which are as bright as glass, do not.
    edge: the outline, fat included: 0.5 on it, 1 inside, 0 on glass.
    gland: µm to the outline of the nearest gland; negative inside.
    fat: µm to the wall of the nearest fat cell; negative inside, positive in other tissue.
    density: share of the sites that would hold a nucleus if none came too near another.
    lymph: where lymphocytes gather.
    fold: by how much the tissue is thicker than one layer.
    eosin_scale: brings the mean eosin of the types together.
    """

    plan_px: int
    um: float
    architecture: Architecture
    mask: Bool[np.ndarray, "high wide"]
    edge: Float32[np.ndarray, "high wide"]
    gland: Float32[np.ndarray, "high wide"]
    fat: Float32[np.ndarray, "high wide"]
    density: Float32[np.ndarray, "high wide"]
    lymph: Float32[np.ndarray, "high wide"]
    fold: Float32[np.ndarray, "high wide"]
    eosin_scale: float


def lay_out_tissue(
    rng: np.random.Generator,
    architecture: Architecture,
    *,
    size_px: tuple[int, int],
    mpp: float,
    folded: bool,
) -> TissuePlan:
    """The tissue of a slide of `size_px` (width, height) at `mpp`."""
    plan_px = max(1, round(PLAN_UM / mpp))
    um = plan_px * mpp
    shape = -(-size_px[1] // plan_px), -(-size_px[0] // plan_px)
    outline = _outline(rng, shape, um)
    fat_region = _fat_region(rng, shape, um, architecture.fat, outline)
    mask = outline & (fat_region < 0.5)
    fat = _fat_cells(rng, shape, um, fat_region, architecture.fat)
    gland = _glands(rng, shape, um, architecture)
    gland = np.maximum(gland, fat_region * np.float32(FAR_UM + 60) - np.float32(FAR_UM))
    lymph = _gathering(rng, shape, um, architecture.lymphocytes)
    fold = _folds(rng, outline, um) if folded else np.zeros(shape, np.float32)
    parts = tissue_parts(architecture, gland, fat)
    density = _density(architecture, gland, fat, lymph, parts) * outline
    density = _to_one_mean(density, mask)
    eosin = float(parts.eosin[mask].mean())
    return TissuePlan(
        plan_px=plan_px,
        um=um,
        architecture=architecture,
        mask=mask,
        edge=cv2.GaussianBlur(outline.astype(np.float32), (0, 0), 1.2),
        gland=gland,
        fat=fat,
        density=density,
        lymph=lymph,
        fold=fold,
        eosin_scale=EOSIN * min(1.4, max(eosin, 0.1) ** -0.8),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """Of what a raster of tissue consists; shares from 0 to 1 and relative eosin."""

    epithelium: Float32[np.ndarray, "high wide"]
    lumen: Float32[np.ndarray, "high wide"]
    stroma: Float32[np.ndarray, "high wide"]
    fat: Float32[np.ndarray, "high wide"]
    eosin: Float32[np.ndarray, "high wide"]


def tissue_parts(
    architecture: Architecture,
    gland: Float32[np.ndarray, "high wide"],
    fat: Float32[np.ndarray, "high wide"],
    sharpness_um: float = 1.2,
) -> Parts:
    """Which part each pixel is, from the distances; at any resolution."""
    a, soft = architecture, sharpness_um
    inside = np.clip(0.5 - gland / soft, 0, 1)
    lumen = np.clip(0.5 - (gland + a.wall_um) / soft, 0, 1)
    in_fat = np.clip(0.5 - fat / soft, 0, 1)
    epithelium = (inside - lumen) * (1 - in_fat)
    lumen *= 1 - in_fat
    stroma = (1 - inside) * (1 - in_fat)
    eosin = stroma + a.cytoplasm_eosin * epithelium + a.lumen_eosin * lumen
    return Parts(epithelium=epithelium, lumen=lumen, stroma=stroma, fat=in_fat, eosin=eosin)


def _outline(
    rng: np.random.Generator, shape: tuple[int, int], um: float
) -> Bool[np.ndarray, "high wide"]:
    """One to three pieces of tissue with uneven edges, here and there a tear."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    x, y = (x + 0.5) / shape[1], (y + 0.5) / shape[0]
    small = min(shape)
    bumps = 0.30 * smooth_noise(rng, shape, small / 3.5) + 0.13 * smooth_noise(
        rng, shape, small / 9
    )
    bumps += 0.05 * smooth_noise(rng, shape, max(3.0, 60 / um))
    field = np.full(shape, -9.0, np.float32)
    pieces = int(rng.integers(1, 4))
    turn, centre = rng.uniform(0, 2 * np.pi), rng.normal(0.5, 0.03, 2)
    for piece in range(pieces):
        angle = turn + 2 * np.pi * piece / pieces + rng.normal(0, 0.2)
        away = 0.0 if pieces == 1 else 0.25
        dx = x - centre[0] - away * np.cos(angle)
        dy = y - centre[1] - away * np.sin(angle)
        tilt = rng.uniform(0, np.pi)
        along, across = np.cos(tilt) * dx + np.sin(tilt) * dy, np.cos(tilt) * dy - np.sin(tilt) * dx
        size = {1: 0.40, 2: 0.285, 3: 0.245}[pieces] * rng.uniform(0.95, 1.08)
        stretch = rng.uniform(1.0, 1.25)
        radius = np.sqrt((along / (size * stretch)) ** 2 + (across / (size / stretch)) ** 2)
        field = np.maximum(field, 1 - radius)
    tears = np.abs(smooth_noise(rng, shape, max(4.0, 260 / um)))
    rare = smooth_noise(rng, shape, max(4.0, 500 / um)) > 1.7
    tear = (tears < 0.06) & rare
    border = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
    field += 0.5 * bumps - np.clip(0.08 - border, 0, 0.08) * 9
    mask: np.ndarray = (field > 0) & ~tear
    return mask


def _glands(
    rng: np.random.Generator, shape: tuple[int, int], um: float, a: Architecture
) -> Float32[np.ndarray, "high wide"]:
    foam = Foam(
        spacing=a.spacing_um / um,
        radius=a.radius_um / um,
        spread=0.25,
        elongation=a.elongation,
        coverage=a.coverage,
        septum=a.septum_um / um,
        wobble=a.wobble_um / um,
        wobble_scale=a.radius_um / um,
    )
    discs = draw_foam(rng, shape, foam)
    rounding = a.septum_um / (2 * um)  # more would close the septa
    if rounding > 0.5:
        discs = np.asarray(cv2.GaussianBlur(discs, (0, 0), rounding))
    return np.clip(discs * np.float32(um), -FAR_UM, FAR_UM)


def _fat_region(
    rng: np.random.Generator,
    shape: tuple[int, int],
    um: float,
    share: float,
    mask: Bool[np.ndarray, "high wide"],
) -> Float32[np.ndarray, "high wide"]:
    """0 to 1: where fat has taken the place of everything else."""
    field = smooth_noise(rng, shape, max(3.0, 190 / um))
    if share <= 0 or not mask.any():
        return np.zeros(shape, np.float32)
    level = float(np.quantile(field[mask], 1 - share))
    return np.clip((field - level) * 4 + 0.5, 0, 1)


def _fat_cells(
    rng: np.random.Generator,
    shape: tuple[int, int],
    um: float,
    region: Float32[np.ndarray, "high wide"],
    share: float,
) -> Float32[np.ndarray, "high wide"]:
    """µm to the wall of the nearest fat cell."""
    if share <= 0:
        return np.full(shape, FAR_UM, np.float32)
    foam = Foam(
        spacing=_FAT_SPACING_UM / um, radius=34 / um, spread=0.3, elongation=1.3, coverage=1.0,
        septum=2.6 / um, wobble=2.5 / um, wobble_scale=20 / um,
    )  # fmt: skip
    cells = draw_foam(rng, shape, foam)
    walls: np.ndarray = np.clip(cells * np.float32(um), -FAR_UM, FAR_UM) + 60 * (1 - region)
    return walls


def _gathering(
    rng: np.random.Generator, shape: tuple[int, int], um: float, share: float
) -> Float32[np.ndarray, "high wide"]:
    """0 to 1: where lymphocytes gather."""
    field = smooth_noise(rng, shape, max(3.0, 80 / um))
    if share <= 0:
        return np.zeros(shape, np.float32)
    level = float(np.quantile(field, 1 - share))
    return np.clip((field - level) * 3 + 0.5, 0, 1)


def _density(
    a: Architecture,
    gland: Float32[np.ndarray, "high wide"],
    fat: Float32[np.ndarray, "high wide"],
    lymph: Float32[np.ndarray, "high wide"],
    parts: Parts,
) -> Float32[np.ndarray, "high wide"]:
    """Relative density of nuclei; brought to one mean afterwards."""
    middle = np.exp(-(((gland + 0.55 * a.wall_um) / max(3.0, 0.24 * a.wall_um)) ** 2))
    # Nuclei keep off both edges of the epithelium.
    rim = np.clip(-gland / 3 - 0.6, 0, 1) * np.clip((gland + a.wall_um) / 3 - 0.7, 0, 1)
    epithelium = parts.epithelium * rim * (1 + a.layering * (1.7 * middle - 1))
    stroma = parts.stroma * (a.stroma_density + (0.65 - a.stroma_density) * lymph)
    walls_of_fat = 0.012 * (fat < 3) * (parts.fat < 0.5)
    density: np.ndarray = a.epithelium_density * epithelium + stroma + walls_of_fat
    return density


def _to_one_mean(
    density: Float32[np.ndarray, "high wide"], mask: Bool[np.ndarray, "high wide"]
) -> Float32[np.ndarray, "high wide"]:
    """The density times a factor at which `DENSITY` of the sites keep a nucleus.

    Of sites taken with probability p, about (1 - exp(-cp)) / c are left once the crowded ones are
    gone (Matérn's second process).
    """
    sample = density[mask][::5]
    low, high = 0.05, 4.0
    for _ in range(12):
        middle = (low + high) / 2
        taken = np.minimum(middle * sample, 0.95)
        left = (1 - np.exp(-CROWDING * taken)).mean() / CROWDING if len(sample) else 1.0
        low, high = (middle, high) if left < DENSITY else (low, middle)
    return np.clip(density * np.float32(high), 0, 0.95).astype(np.float32)


def _folds(
    rng: np.random.Generator, mask: Bool[np.ndarray, "high wide"], um: float
) -> Float32[np.ndarray, "high wide"]:
    """A bent stripe or two where the tissue lies double."""
    fold = np.zeros(mask.shape, np.float32)
    inside = np.argwhere(mask)
    if not len(inside):
        return fold
    for _ in range(int(rng.integers(1, 3))):
        y, x = inside[rng.integers(len(inside))]
        turn, bend = rng.uniform(0, np.pi), rng.normal(0, 0.5)
        length = min(mask.shape) * rng.uniform(0.25, 0.5)
        steps = np.linspace(-0.5, 0.5, 24)
        points = np.stack(
            [x + length * steps * np.cos(turn + bend * steps),
             y + length * steps * np.sin(turn + bend * steps)], axis=1,
        )  # fmt: skip
        thick = max(2, round(rng.uniform(18, 40) / um))
        cv2.polylines(fold, [np.rint(points).astype(np.int32)], False, 1.0, thick, cv2.LINE_AA)
    return cv2.GaussianBlur(fold, (0, 0), 1.2) * mask.astype(np.float32)
