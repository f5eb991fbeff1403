"""Paints slides: lay out (`plan_slide`), then any block of level 0 on its own (`paint_region`).

A block depends on the plan and its place alone, so the pixels of a slide do not depend on how it
is cut up. Laying out 20,000 × 20,000 pixels takes 0.6 GB of memory at its peak, painting its blocks
of at most 512 px square less; the pixels themselves then lie in a temporary file of 1.2 GB.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import cv2
import numpy as np
from jaxtyping import Float32, Int64, UInt8

from mstar.cohorts.generated import textures
from mstar.cohorts.generated.architecture import architecture_of
from mstar.cohorts.generated.artefacts import draw_pen
from mstar.cohorts.generated.cells import TruthCells, cell_step_px, draw_cells
from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.factors import SlideFactors
from mstar.cohorts.generated.nuclei import Nuclei, draw_nuclei, draw_show, place_nuclei
from mstar.cohorts.generated.stain import Stain, colour, draw_stain
from mstar.cohorts.generated.svs import write_svs
from mstar.cohorts.generated.tissue import TissuePlan, lay_out_tissue, tissue_parts

BLOCK_PX = 512
_MARGIN_PX = 16  # painted around a block and cut off, for what looks at neighbours
_QUALITIES = (80, 84, 88)
_CELL_UM = 8.0
_IN_MEMORY_BYTES = 256 * 2**20  # larger slides are painted into a temporary file


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlidePlan:
    """All that is decided of a slide before its first pixel."""

    width_px: int
    height_px: int
    mpp: float
    quality: int
    tissue: TissuePlan
    cells: TruthCells
    nuclei: Nuclei
    stain: Stain
    ink: Float32[np.ndarray, "high wide"] | None
    ink_rgb: tuple[int, int, int]
    offsets: Int64[np.ndarray, "texture 2"]  # where this slide cuts the endless textures


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PaintedSlide:
    """The pixels of a slide and where its signal is."""

    pixels: UInt8[np.ndarray, "height width 3"]
    cells: TruthCells
    quality: int


def plan_slide(job: SlideFactors, config: GenerateConfig) -> SlidePlan:
    """Decide a slide; parts draw from streams of their own, so that none disturbs another."""
    look, layout, choice, placing, show_rng, extras = (
        np.random.default_rng((*job.seed, 1, part)) for part in range(6)
    )
    size_px = job.width_px, job.height_px
    has_pen, has_fold = extras.uniform(size=2) < (config.pen_fraction, config.fold_fraction)
    architecture = architecture_of(job.case.cancer_type, float(config.signal_strength))
    tissue = lay_out_tissue(
        layout, architecture, size_px=size_px, mpp=job.mpp, folded=bool(has_fold)
    )
    cells = draw_cells(
        choice,
        tissue.mask,
        plan_px=tissue.plan_px,
        size_px=size_px,
        step_px=cell_step_px(job.mpp, config.patch_px),
        signal_fraction=float(config.signal_fraction),
    )
    show = draw_show(
        show_rng, job.case, strength=float(config.signal_strength), noise=float(config.noise)
    )
    pen = draw_pen(extras, tissue.mask.shape, tissue.um) if has_pen else (None, (0, 0, 0))
    return SlidePlan(
        width_px=job.width_px,
        height_px=job.height_px,
        mpp=job.mpp,
        quality=int(extras.choice(_QUALITIES)),
        tissue=tissue,
        cells=cells,
        nuclei=place_nuclei(placing, tissue, cells, show, job.mpp),
        stain=draw_stain(look, job.case.site, float(config.site_effect)),
        ink=pen[0],
        ink_rgb=pen[1],
        offsets=look.integers(0, textures.PERIOD_PX, (4, 2)),
    )


def paint_region(
    plan: SlidePlan, left: int, top: int, width: int, height: int
) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of any rectangle of level 0."""
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for y in range(0, height, BLOCK_PX):
        for x in range(0, width, BLOCK_PX):
            target = pixels[y : y + BLOCK_PX, x : x + BLOCK_PX]
            target[:] = _paint_block(plan, left + x, top + y, target.shape[1], target.shape[0])
    return pixels


def paint_slide(job: SlideFactors, config: GenerateConfig) -> PaintedSlide:
    """A whole slide in memory; for large ones use `write_slide`."""
    plan = plan_slide(job, config)
    pixels = paint_region(plan, 0, 0, plan.width_px, plan.height_px)
    return PaintedSlide(pixels=pixels, cells=plan.cells, quality=plan.quality)


def write_slide(path: Path, job: SlideFactors, config: GenerateConfig) -> TruthCells:
    """Paint a slide of any size into an SVS file and return its truth.

    Above 256 MiB of pixels they go through a temporary file, so that memory stays bounded.
    """
    plan = plan_slide(job, config)
    shape = plan.height_px, plan.width_px, 3
    objective = 40.0 if plan.mpp < 0.3 else 20.0 if plan.mpp < 0.7 else 10.0
    with TemporaryFile() as scratch:
        if int(np.prod(shape)) > _IN_MEMORY_BYTES:
            pixels: np.ndarray = np.memmap(scratch, dtype=np.uint8, mode="w+", shape=shape)
            for top in range(0, plan.height_px, BLOCK_PX):
                high = min(BLOCK_PX, plan.height_px - top)
                pixels[top : top + high] = paint_region(plan, 0, top, plan.width_px, high)
        else:
            pixels = paint_region(plan, 0, 0, plan.width_px, plan.height_px)
        write_svs(path, pixels, mpp=plan.mpp, objective=objective, quality=plan.quality)
        del pixels
    return plan.cells


def _paint_block(
    plan: SlidePlan, left: int, top: int, width: int, height: int
) -> UInt8[np.ndarray, "height width 3"]:
    """One block; glass needs no painting."""
    window = _Window(plan, left - _MARGIN_PX, top - _MARGIN_PX,
                     width + 2 * _MARGIN_PX, height + 2 * _MARGIN_PX)  # fmt: skip
    edge = window.enlarge(plan.tissue.edge)
    if edge.any():
        amounts = _amounts(plan, window, edge)
        soft = [cv2.GaussianBlur(amount, (3, 3), 0.6) for amount in amounts]
        inner = slice(_MARGIN_PX, -_MARGIN_PX)
        pixels = colour(plan.stain, *(np.asarray(amount[inner, inner]) for amount in soft))
    else:
        pixels = np.full((height, width, 3), plan.stain.glass, dtype=np.uint8)
    if plan.ink is None:
        return pixels
    ink = window.enlarge(plan.ink)[_MARGIN_PX:-_MARGIN_PX, _MARGIN_PX:-_MARGIN_PX, None]
    through = 1 - ink * (1 - np.array(plan.ink_rgb, np.float32) / 255)
    inked: np.ndarray = np.rint(pixels * through).astype(np.uint8)
    return inked


class _Window:
    """A rectangle of level 0: cuts it from the textures, enlarges it from the plan's maps."""

    def __init__(self, plan: SlidePlan, left: int, top: int, width: int, height: int) -> None:
        self.left, self.top, self.width, self.height = left, top, width, height
        self._plan = plan

    def texture(
        self, texture: Float32[np.ndarray, "high wide"], number: int
    ) -> Float32[np.ndarray, "height width"]:
        """A texture at this slide's own place."""
        x, y = self._plan.offsets[number].tolist()
        return textures.cut(texture, self.left + x, self.top + y, self.width, self.height)

    def enlarge(
        self, values: Float32[np.ndarray, "high wide"]
    ) -> Float32[np.ndarray, "height width"]:
        """A map of the plan, interpolated; the same values however the slide is cut up."""
        px = self._plan.tissue.plan_px
        first_x, first_y = self.left // px - 1, self.top // px - 1
        columns = np.arange(first_x, (self.left + self.width) // px + 3)
        rows = np.arange(first_y, (self.top + self.height) // px + 3)
        part = values[np.ix_(np.clip(rows, 0, values.shape[0] - 1),
                             np.clip(columns, 0, values.shape[1] - 1))]  # fmt: skip
        size = part.shape[1] * px, part.shape[0] * px
        big = cv2.resize(part, size, interpolation=cv2.INTER_LINEAR)
        x, y = self.left - first_x * px, self.top - first_y * px
        cut: np.ndarray = big[y : y + self.height, x : x + self.width]
        return cut


def _amounts(
    plan: SlidePlan, window: _Window, edge: Float32[np.ndarray, "height width"]
) -> tuple[Float32[np.ndarray, "height width"], Float32[np.ndarray, "height width"]]:
    """Haematoxylin and eosin of a window, as optical density."""
    tissue = plan.tissue
    a = tissue.architecture
    grain, mottle = window.texture(textures.grain(), 0), window.texture(textures.mottle(), 1)
    fibres = window.texture(textures.fibres(), 2)
    edge = np.clip((edge - 0.5 + 0.05 * mottle + 0.03 * grain) * 4 + 0.5, 0, 1)
    gland, fat = window.enlarge(tissue.gland), window.enlarge(tissue.fat)
    parts = tissue_parts(a, gland + 0.5 * mottle, fat)
    strands = np.clip(1 + (0.14 + 0.18 * a.fibre) * fibres, 0.3, 2.0)
    nuclei = draw_nuclei(plan.nuclei, window.left, window.top, window.width, window.height)
    side = 2 * int(_CELL_UM / 2 / plan.mpp) + 1
    # Pale around nuclei leaves the borders between cells.
    border = 1 + a.membrane * (0.7 - 4.8 * cv2.blur(nuclei, (side, side)))
    eosin = parts.stroma * strands
    eosin += parts.epithelium * (
        a.cytoplasm_eosin * (1 + 0.16 * grain) * np.clip(border, 0.25, 1.9)
    )
    eosin += parts.lumen * (a.lumen_eosin * (1 + 0.15 * mottle + 0.1 * fibres))
    eosin *= (tissue.eosin_scale) * (1 + 0.09 * mottle + 0.05 * grain)
    cover = np.minimum(nuclei * 1.6, 1)
    haematoxylin = 0.10 * parts.epithelium + 0.025 * parts.stroma
    haematoxylin *= 1 + 0.4 * mottle
    haematoxylin += nuclei * (1 + 0.08 * grain) - haematoxylin * cover
    eosin *= 1 - 0.25 * cover
    layers = edge * (1 + 0.75 * window.enlarge(tissue.fold))
    return np.maximum(haematoxylin, 0) * layers, np.maximum(eosin, 0) * layers
