"""A slide's grid: read back when it was made before, otherwise made and kept.

Grids that a caller brings (`--grids`, ours or another tool's) come first; a slide without one gets
its grid on the fly, stored under `_grids/` of the output, so that a resumed run cuts the same
patches.
"""

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mstar.embed.config import EmbedConfig, GridJobConfig, grid_settings
from mstar.errors import SkippedSlideError
from mstar.features.foreign_grids import read_foreign_grid
from mstar.features.store import GridStore
from mstar.schema import Grid, SlideRef
from mstar.slides.geojson import read_regions
from mstar.slides.grid import make_grid
from mstar.slides.kernels import RESIZE_KERNEL
from mstar.slides.metadata import MppChoice, choose_mpp
from mstar.slides.overview import draw_overview
from mstar.slides.reader import Slide
from mstar.slides.tissue import Tissue, find_tissue, tissue_from_regions
from mstar.storage.objects import exists, join, read_bytes, write_whole

# Where tools put the coordinates of a slide below the folder that `--grids` names: ours and
# STAMP's; CLAM's; TRIDENT's (name its 20x_256px_0px_overlap folder).
BROUGHT_NAMES = ("{}.h5", "patches/{}.h5", "patches/{}_patches.h5", "{}_patches.h5")
KEPT_SUFFIX = ".hdf5"  # no other .h5 than the features' lies in a feature store


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeGrid:
    """A grid and the tissue it lies on."""

    grid: Grid
    tissue: Tissue


def mpp_of(slide: SlideRef, opened: Slide, config: EmbedConfig | GridJobConfig) -> MppChoice:
    """The microns per pixel to use at level 0; the manifest goes before --slide-mpp.

    Raises:
        MppError: nothing usable is known. SkippedSlideError: and such slides are to be skipped.
    """
    stated = slide.mpp if slide.mpp is not None else config.slide_mpp
    choice = choose_mpp(slide.slide_id, opened.metadata, stated=stated, missing=config.missing_mpp)
    if choice.mpp is None:
        raise SkippedSlideError(f"slide {slide.slide_id}: {choice.warning}")
    return choice


def build_grid(slide: SlideRef, opened: Slide, config: EmbedConfig | GridJobConfig) -> MadeGrid:
    """Find the tissue, or take its annotation, and lay the grid."""
    choice = mpp_of(slide, opened, config)
    assert choice.mpp is not None
    tissue = _tissue(slide, opened, choice.mpp, config)
    notes = {"mpp_source": choice.source} | (
        {"mpp_warning": choice.warning} if choice.warning else {}
    )
    grid = make_grid(
        slide.slide_id,
        opened,
        choice.mpp,
        tissue,
        config.grid,
        kernel=RESIZE_KERNEL,
        provenance=notes,
    )
    return MadeGrid(grid=grid, tissue=tissue)


def _tissue(
    slide: SlideRef, opened: Slide, mpp: float, config: EmbedConfig | GridJobConfig
) -> Tissue:
    if config.annotations is not None:
        uri = join(config.annotations, f"{slide.slide_id}.geojson")
        if exists(uri):
            in_bounds = config.annotation_origin == "bounds"
            offset_l0 = opened.metadata.bounds_l0[:2] if in_bounds else (0, 0)
            regions = read_regions(uri, offset_l0=offset_l0)
            return tissue_from_regions(opened, regions, config.tissue, mpp=mpp)
    return find_tissue(opened, config.tissue, mpp=mpp)


class GridSource:
    """Hands out the grid of a slide to be embedded."""

    def __init__(self, config: EmbedConfig) -> None:
        """Look in `config.grids` first, then in `_grids/` of the output."""
        self._config = config
        root = join(config.out, "_grids")
        self._kept = GridStore.open_or_create(root, grid_settings(config), suffix=KEPT_SUFFIX)

    def grid_of(self, slide: SlideRef, opened: Slide) -> Grid:
        """The slide's grid. Raises MppError when its resolution cannot be told."""
        return self._brought(slide, opened) or self._kept_grid(slide) or self._new(slide, opened)

    def _brought(self, slide: SlideRef, opened: Slide) -> Grid | None:
        if self._config.grids is None:
            return None
        for pattern in BROUGHT_NAMES:
            uri = join(self._config.grids, pattern.format(slide.slide_id))
            if exists(uri):
                return self._read_brought(uri, slide, opened)
        return None

    def _read_brought(self, uri: str, slide: SlideRef, opened: Slide) -> Grid:
        """A grid file of ours or of another tool; its mpp is this slide's where it has none."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "grid.h5"
            path.write_bytes(read_bytes(uri))
            mpp = mpp_of(slide, opened, self._config).mpp
            return read_foreign_grid(path, slide_id=slide.slide_id, mpp=mpp)

    def _kept_grid(self, slide: SlideRef) -> Grid | None:
        kept = self._kept
        return kept.read(slide.slide_id) if kept.has(slide.slide_id) else None

    def _new(self, slide: SlideRef, opened: Slide) -> Grid:
        made = build_grid(slide, opened, self._config)
        write_overview(self._kept.root, slide.slide_id, opened, made)
        self._kept.write(slide.slide_id, made.grid)
        return made.grid


def write_overview(root: str, slide_id: str, opened: Slide, made: MadeGrid) -> None:
    """A picture of the slide with its tissue and patches."""
    picture = io.BytesIO()
    draw_overview(opened, made.tissue, made.grid).save(picture, "JPEG", quality=85)
    write_whole(join(root, f"{slide_id}.jpg"), picture.getvalue())
