"""The grid of a slide: level-0 coordinates of its patches, row-major, and how they are read.

`exact` and `trident` lay one lattice over the slide and keep a patch by its share of tissue. `clam`
and `prepath` start a lattice at each outline's bounding box and keep a patch when one of four
points around its centre lies in the outline and the centre in none of its holes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from mstar.errors import ConfigError
from mstar.schema import Grid
from mstar.slides.pixel_plan import (
    PixelPlan,
    Wanted,
    plan_clam,
    plan_exact,
    plan_prepath,
    plan_trident,
)
from mstar.slides.raster import box_means
from mstar.slides.reader import Level, Slide
from mstar.slides.regions import Region, ring_contains
from mstar.slides.tissue import Tissue, area_scale, saturation

PLANS: dict[str, Callable[[Wanted, Sequence[Level]], PixelPlan]] = {
    "exact": plan_exact,
    "prepath": plan_prepath,
    "clam": plan_clam,
    "trident": plan_trident,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GridConfig:
    """Where patches lie and at which resolution they are read."""

    target_mpp: float = 0.5
    """Resolution of the patches, in µm per pixel; 0.5 is about 20x."""
    patch_px: int = 256
    """Side of a patch, in pixels at target_mpp."""
    overlap_px: int = 0
    """How far neighbouring patches overlap, in pixels at target_mpp."""
    grid_mode: Literal["exact", "prepath", "clam", "trident"] = "exact"
    """exact: any target_mpp, one drift-free lattice. prepath: the mSTAR authors' pixels (256, 512
    or 1024 of level 0), for features comparable with published ones. clam, trident: the grids of
    these tools. See docs/grids.md."""
    min_tissue: float = 0.25
    """Least share of a patch that is tissue, 0-1 (exact and trident); at 0 any tissue will do."""
    mpp_tolerance: float = 0.01
    """A pyramid level this close to target_mpp, as a fraction, is taken without resampling."""
    max_upsampling: float = 1.2
    """A slide coarser than target_mpp by more than this factor is an error."""
    padding: bool = False
    """clam and prepath: keep patches that reach over the right and lower edge of the slide, filled
    with its background colour (PrePATH's presets tcga and dhmc do)."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if self.grid_mode not in PLANS:
            raise ConfigError(f"grid_mode is one of {', '.join(PLANS)}; got {self.grid_mode!r}")
        wrong = [
            f"{name} {rule}; got {getattr(self, name)}"
            for name, rule, holds in (
                ("target_mpp", "is above 0", self.target_mpp > 0),
                ("patch_px", "is at least 1", self.patch_px >= 1),
                (
                    "overlap_px",
                    "is at least 0, below patch_px",
                    0 <= self.overlap_px < self.patch_px,
                ),
                ("min_tissue", "is from 0 to 1", 0 <= self.min_tissue <= 1),
                ("mpp_tolerance", "is from 0 to below 0.5", 0 <= self.mpp_tolerance < 0.5),
                ("max_upsampling", "is at least 1", self.max_upsampling >= 1),
            )
            if not holds
        ]
        if wrong:
            raise ConfigError(". ".join(wrong))


def make_grid(
    slide_id: str,
    slide: Slide,
    mpp: float,
    tissue: Tissue,
    config: GridConfig | None = None,
    *,
    kernel: str = "",
    provenance: Mapping[str, str] | None = None,
) -> Grid:
    """The grid of one slide; without tissue, or without room for a patch, it has no rows.

    `mpp` is level 0's as used. `kernel` names the resize that the reader applies; `provenance`
    adds entries of the caller's, such as where the mpp comes from.
    """
    config = config or GridConfig()
    plan = plan_pixels(slide_id, slide, mpp, config)
    if config.grid_mode in ("exact", "trident"):
        coords = _one_lattice(slide, tissue, plan, config)
    else:
        coords = _lattice_per_outline(slide, tissue, plan, config)
    coords = coords[~_artefacts(coords, tissue, plan)]
    return Grid(
        slide_id=slide_id,
        coords=coords,
        grid_mode=config.grid_mode,
        patch_px=config.patch_px,
        patch_size_l0=plan.patch_size_l0,
        overlap_px=config.overlap_px,
        read_level=plan.read_level,
        read_px=plan.read_px,
        output_px=plan.output_px,
        mpp=mpp,
        target_mpp=config.target_mpp,
        effective_mpp=plan.effective_mpp,
        level0_magnification=plan.level0_magnification,
        target_magnification=plan.target_magnification,
        width_l0=slide.width_l0,
        height_l0=slide.height_l0,
        provenance=_provenance(slide, tissue, config, kernel) | dict(provenance or {}),
    )


def plan_pixels(slide_id: str, slide: Slide, mpp: float, config: GridConfig) -> PixelPlan:
    """How the patches of a slide would be read, before any tissue is looked for."""
    wanted = Wanted(
        slide_id=slide_id,
        mpp=mpp,
        target_mpp=config.target_mpp,
        patch_px=config.patch_px,
        overlap_px=config.overlap_px,
        mpp_tolerance=config.mpp_tolerance,
        max_upsampling=config.max_upsampling,
    )
    plan = PLANS[config.grid_mode](wanted, slide.levels)
    if plan.step_l0 < 1 or plan.read_px < 1:
        raise ConfigError(
            f"slide {slide_id}: patches of {config.patch_px} px at {config.target_mpp:g} µm per"
            f" pixel with {config.overlap_px} px overlap are {plan.step_l0:.3g} level-0 pixels"
            " apart; expected at least 1; raise --patch-px or lower the overlap"
        )
    return plan


def _one_lattice(
    slide: Slide, tissue: Tissue, plan: PixelPlan, config: GridConfig
) -> Int64[np.ndarray, "patch 2"]:
    """Patches of one lattice, whole inside the scanned area, with enough tissue."""
    box = tissue.box_l0
    if box is None:
        return np.zeros((0, 2), dtype=np.int64)
    bounds = slide.metadata.bounds_l0
    axes = []
    for axis in (0, 1):
        low, end = bounds[axis], bounds[axis] + bounds[axis + 2]
        if config.grid_mode == "trident":
            origin = float(box[axis])
        else:  # on whole pixels of the level that is read, so that every read is aligned with it
            downsample = slide.levels[plan.read_level].downsample
            origin = float(np.ceil(low / downsample - 1e-9) * downsample)
        starts = _starts(origin, plan, box[axis], box[axis + 2])
        axes.append(starts[(starts >= low) & (starts + plan.patch_size_l0 <= end)])
    coords = _row_major(axes[0], axes[1])
    share = box_means(tissue.mask, _boxes_px(coords, plan, tissue))
    return coords[(share > 0) & (share >= config.min_tissue - 1e-9)]


def _starts(origin: float, plan: PixelPlan, first: int, last: int) -> Int64[np.ndarray, " start"]:
    """Starts origin + i · step of the patches that meet first..last.

    Each is rounded on its own from the exact position: nothing adds up along the lattice.
    """
    low = max(0, int(np.floor((first - origin - plan.footprint_l0) / plan.step_l0)))
    high = int(np.floor((last - origin) / plan.step_l0)) + 1
    index = np.arange(low, max(low, high))
    return np.asarray(np.floor(origin + index * plan.step_l0 + 0.5), dtype=np.int64)


def _lattice_per_outline(
    slide: Slide, tissue: Tissue, plan: PixelPlan, config: GridConfig
) -> Int64[np.ndarray, "patch 2"]:
    """Patches of a lattice per outline, merged: row-major, each once."""
    x, y, width, height = slide.metadata.bounds_l0
    kept = [np.zeros((0, 2), dtype=np.int64)]
    for region in tissue.polygons:
        left, top, right, bottom = region.box_l0
        room = 0 if config.padding else plan.patch_size_l0 - 1
        xs = np.arange(max(left, x), min(right + 1, x + width - room), int(plan.step_l0))
        ys = np.arange(max(top, y), min(bottom + 1, y + height - room), int(plan.step_l0))
        if len(xs) and len(ys):
            chosen = _four_points(region, xs, ys, plan.patch_size_l0)
            kept.append(_row_major(xs, ys)[chosen.ravel()])
    # One key per patch, ordered by y, then x: sorting and dropping repeats in one pass.
    keys = np.unique(np.concatenate([(coords[:, 1] << 32) | coords[:, 0] for coords in kept]))
    merged: np.ndarray = np.stack([keys & 0xFFFFFFFF, keys >> 32], axis=1)
    return merged


def _four_points(
    region: Region,
    xs: Int64[np.ndarray, " column"],
    ys: Int64[np.ndarray, " row"],
    side: int,
) -> Bool[np.ndarray, "row column"]:
    """CLAM's four_pt rule on a lattice of patches.

    The points are the centre moved by a quarter of the side along both axes. One of the four in or
    on the outline is enough; a centre strictly inside a hole is too much.
    """
    near, far = side // 2 - side // 4, side // 2 + side // 4
    across = np.concatenate([xs + near, xs + far]).astype(np.float64)
    down = np.concatenate([ys + near, ys + far]).astype(np.float64)
    inside = ring_contains(region.outer, across, down, edge=True)
    kept = np.asarray(inside.reshape(2, len(ys), 2, len(xs)).any(axis=(0, 2)))
    middle_x, middle_y = (xs + side // 2).astype(float), (ys + side // 2).astype(float)
    for hole in region.holes:
        kept &= ~ring_contains(hole, middle_x, middle_y, edge=False)
    return kept


def _row_major(
    xs: Int64[np.ndarray, " column"], ys: Int64[np.ndarray, " row"]
) -> Int64[np.ndarray, "patch 2"]:
    """All (x, y) of a lattice, y outer and x inner."""
    return np.stack([np.tile(xs, len(ys)), np.repeat(ys, len(xs))], axis=1).astype(np.int64)


def _boxes_px(
    coords: Int64[np.ndarray, "patch 2"], plan: PixelPlan, tissue: Tissue
) -> Float64[np.ndarray, "patch 4"]:
    """Footprints on the tissue's raster: left, top, right, bottom."""
    start = (coords - np.array(tissue.raster.origin_l0)) / tissue.raster.scale
    return np.hstack([start, start + plan.footprint_l0 / tissue.raster.scale])


def _artefacts(
    coords: Int64[np.ndarray, "patch 2"], tissue: Tissue, plan: PixelPlan
) -> Bool[np.ndarray, " patch"]:
    """Which patches are glass (hardly any saturation) or black, judged on the tissue's raster."""
    rules, pixels = tissue.rules, tissue.raster.pixels
    boxes = _boxes_px(coords, plan, tissue)
    boxes = np.clip(boxes, 0, np.tile(tissue.raster.size_px, 2))  # what lies on the slide
    wrong = np.zeros(len(coords), dtype=bool)
    if rules.white_thresh > 0 and len(coords):
        wrong |= box_means(saturation(pixels), boxes) < rules.white_thresh
    if rules.black_thresh > 0 and len(coords):
        dark = [box_means(pixels[:, :, c], boxes) < rules.black_thresh for c in range(3)]
        wrong |= np.logical_and.reduce(dark)
    return wrong


def _provenance(slide: Slide, tissue: Tissue, config: GridConfig, kernel: str) -> dict[str, str]:
    """The settings that decide which patches there are and what their pixels look like."""
    icc = "none" if slide.metadata.icc_profile is None else "present, ignored"
    settings: dict[str, object] = {
        "grid.min_tissue": config.min_tissue,
        "grid.mpp_tolerance": config.mpp_tolerance,
        "grid.padding": config.padding,
        "tissue.source": tissue.source,
        "tissue.preset": tissue.config.preset,
        "tissue.raster_scale": tissue.raster.scale,
        "tissue.area_scale": area_scale(tissue.rules, slide.metadata.bounds_l0),
        "pixels.kernel": kernel,
        "pixels.icc_profile": icc,
        "pixels.background": ",".join(str(value) for value in slide.metadata.background),
    }
    settings |= {f"tissue.{k}": v for k, v in dataclasses.asdict(tissue.rules).items()}
    return {name: str(value) for name, value in settings.items()}
