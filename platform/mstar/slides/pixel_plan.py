"""How a patch's pixels are read, for each grid mode: level, side to read, side to hand on, step.

`docs/grids.md` tells the four modes for users; `GridConfig` in grid.py chooses among them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mstar.errors import ConfigError, MppError
from mstar.slides.reader import Level

# TRIDENT's table: below this mpp, this magnification.
MAGNIFICATIONS = ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5))

# The authors' pixel path: side on level 0 by nominal magnification.
PREPATH_PX = {20: 256, 40: 512, 80: 1024}
PREPATH_TARGET_MPP = 0.5
PREPATH_PATCH_PX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the caller asks of a patch, and the slide's resolution."""

    slide_id: str
    mpp: float
    target_mpp: float
    patch_px: int
    overlap_px: int
    mpp_tolerance: float
    max_upsampling: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelPlan:
    """How every patch of a grid is read; lengths on level 0 may be fractions of a pixel."""

    read_level: int
    read_px: int
    output_px: int
    footprint_l0: float
    step_l0: float
    effective_mpp: float
    level0_magnification: float
    target_magnification: float

    @property
    def patch_size_l0(self) -> int:
        """The footprint in whole level-0 pixels."""
        return math.floor(self.footprint_l0 + 0.5)


def plan_exact(wanted: Wanted, levels: Sequence[Level]) -> PixelPlan:
    """Any target mpp: the level's own pixels where it fits within the tolerance, else resampled."""
    level = _level_for(wanted, levels)
    level_mpp = wanted.mpp * levels[level].downsample
    native = abs(level_mpp / wanted.target_mpp - 1) <= wanted.mpp_tolerance
    effective_mpp = level_mpp if native else wanted.target_mpp
    footprint = wanted.patch_px * effective_mpp / wanted.mpp
    read_px = wanted.patch_px if native else _whole(footprint / levels[level].downsample)
    return PixelPlan(
        read_level=level,
        read_px=read_px,
        output_px=wanted.patch_px,
        footprint_l0=footprint,
        step_l0=footprint * (wanted.patch_px - wanted.overlap_px) / wanted.patch_px,
        effective_mpp=effective_mpp,
        level0_magnification=magnification(wanted.mpp),
        target_magnification=magnification(wanted.target_mpp),
    )


def plan_clam(wanted: Wanted, levels: Sequence[Level]) -> PixelPlan:
    """Whole level pixels: a whole multiple of the patch side on one level, reduced by that."""
    level = _level_for(wanted, levels)
    downsample = levels[level].downsample
    multiple = max(1, _whole(wanted.target_mpp / (wanted.mpp * downsample)))
    side = _whole(wanted.patch_px * multiple * downsample)
    return PixelPlan(
        read_level=level,
        read_px=wanted.patch_px * multiple,
        output_px=wanted.patch_px,
        footprint_l0=float(side),
        step_l0=float(side - _whole(wanted.overlap_px * side / wanted.patch_px)),
        effective_mpp=wanted.mpp * downsample * multiple,
        level0_magnification=magnification(wanted.mpp),
        target_magnification=magnification(wanted.target_mpp),
    )


def plan_prepath(wanted: Wanted, levels: Sequence[Level]) -> PixelPlan:
    """The authors' pixels: 256, 512 or 1024 of level 0, handed on as they are."""
    asked = (wanted.target_mpp, wanted.patch_px)
    if asked != (PREPATH_TARGET_MPP, PREPATH_PATCH_PX):
        raise ConfigError(
            f"grid mode prepath has fixed patches of {PREPATH_PATCH_PX} px at {PREPATH_TARGET_MPP}"
            f" µm per pixel; got --patch-px {wanted.patch_px} --target-mpp {wanted.target_mpp:g};"
            " leave both out, or use --grid-mode exact"
        )
    nominal = prepath_magnification(wanted.slide_id, wanted.mpp)
    side = PREPATH_PX[nominal]
    return PixelPlan(
        read_level=0,
        read_px=side,
        output_px=side,
        footprint_l0=float(side),
        step_l0=float(side - _whole(wanted.overlap_px * side / PREPATH_PATCH_PX)),
        effective_mpp=wanted.mpp,
        level0_magnification=float(nominal),
        target_magnification=20.0,
    )


def plan_trident(wanted: Wanted, levels: Sequence[Level]) -> PixelPlan:
    """TRIDENT's footprint: `patch_px · source // target` magnification, both by its table."""
    source, target = (magnification(mpp) for mpp in (wanted.mpp, wanted.target_mpp))
    for name, mpp in (("the slide's", wanted.mpp), ("the target", wanted.target_mpp)):
        if mpp >= MAGNIFICATIONS[-1][0]:
            raise MppError(
                f"slide {wanted.slide_id}: grid mode trident knows magnifications down to 5x, below"
                f" {MAGNIFICATIONS[-1][0]} µm per pixel; got {name} {mpp:g}; use --grid-mode exact"
            )
    _refuse_upsampling(wanted, source_mpp=10 / source, target_mpp=10 / target)
    side = int(wanted.patch_px * source // target)
    factor = side / wanted.patch_px
    level = _coarsest(levels, factor * (1 + wanted.mpp_tolerance))
    native = abs(levels[level].downsample / factor - 1) <= wanted.mpp_tolerance
    return PixelPlan(
        read_level=level,
        read_px=wanted.patch_px if native else _whole(side / levels[level].downsample),
        output_px=wanted.patch_px,
        footprint_l0=float(side),
        step_l0=float((wanted.patch_px - wanted.overlap_px) * source // target),
        effective_mpp=wanted.mpp * factor,
        level0_magnification=source,
        target_magnification=target,
    )


def magnification(mpp: float) -> float:
    """Nominal magnification of a resolution by TRIDENT's table; 10 / mpp beyond its end."""
    return float(next((mag for limit, mag in MAGNIFICATIONS if mpp < limit), 10 / mpp))


def prepath_magnification(slide_id: str, mpp: float) -> int:
    """20, 40 or 80, whichever round(10 / mpp) is nearest to in ratio, at most a factor √2 away."""
    own = round(10 / mpp)
    nearest = min(PREPATH_PX, key=lambda nominal: abs(math.log(max(own, 1) / nominal)))
    if not 1 / math.sqrt(2) <= own / nearest <= math.sqrt(2):
        raise MppError(
            f"slide {slide_id}: grid mode prepath takes slides of 20x, 40x or 80x (0.09 to 0.7 µm"
            f" per pixel); got {mpp:g} µm per pixel, about {own}x; use --grid-mode exact, or"
            " exclude the slide"
        )
    return nearest


def _level_for(wanted: Wanted, levels: Sequence[Level]) -> int:
    """The coarsest level no coarser than the target; level 0 where the slide itself is coarser."""
    _refuse_upsampling(wanted, source_mpp=wanted.mpp, target_mpp=wanted.target_mpp)
    return _coarsest(levels, wanted.target_mpp / wanted.mpp * (1 + wanted.mpp_tolerance))


def _coarsest(levels: Sequence[Level], downsample: float) -> int:
    """The level with the largest downsample up to the one given, 0 when there is none."""
    fitting = [i for i, level in enumerate(levels) if level.downsample <= downsample]
    return max(fitting, key=lambda i: levels[i].downsample, default=0)


def _refuse_upsampling(wanted: Wanted, *, source_mpp: float, target_mpp: float) -> None:
    """Enlarging pixels much would pass blur for detail."""
    factor = source_mpp / target_mpp
    if factor > max(wanted.max_upsampling, 1 + wanted.mpp_tolerance):
        raise MppError(
            f"slide {wanted.slide_id}: {wanted.mpp:g} µm per pixel is {factor:.2g} times coarser"
            f" than the target of {wanted.target_mpp:g}; pixels are enlarged at most"
            f" {wanted.max_upsampling:g} times; exclude the slide, ask for a coarser --target-mpp,"
            " or raise the limit (max_upsampling)"
        )


def _whole(value: float) -> int:
    """The nearest whole number, halves upwards."""
    return math.floor(value + 0.5)
