"""Where the tissue is: saturation of a reduced picture, cleaned, outlined, filtered by area.

The picture has about 8 µm per pixel (`TissueConfig.seg_mpp`), whatever the slide's pyramid, so that
the filters below, which count in its pixels, mean the same on every slide. Only the scanned area
(`bounds_l0`) is searched.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Int64, UInt8

from mstar.errors import ConfigError, MppError
from mstar.slides.raster import Raster, read_raster
from mstar.slides.reader import Slide
from mstar.slides.regions import Region, draw_mask

REFERENCE_PX = 512  # side, on level 0, of the patch whose area is the unit of a_t and a_h
SMALL_SHARE = 0.01  # of the scanned area: what a_t can be at most


@dataclass(frozen=True, slots=True, kw_only=True)
class TissueRules:
    """The values that decide what is tissue; `TissueConfig` says what each one means."""

    sthresh: int
    mthresh: int
    close: int
    use_otsu: bool
    a_t: float
    a_h: float
    max_n_holes: int
    white_thresh: float
    black_thresh: float


PRESETS: dict[str, TissueRules] = {
    "tcga": TissueRules(
        sthresh=8, mthresh=7, close=4, use_otsu=True,
        a_t=16.0, a_h=4.0, max_n_holes=8, white_thresh=5.0, black_thresh=50.0,
    ),
    "bcnb": TissueRules(
        sthresh=10, mthresh=7, close=4, use_otsu=False,
        a_t=16.0, a_h=4.0, max_n_holes=8, white_thresh=5.0, black_thresh=50.0,
    ),
    "dhmc": TissueRules(
        sthresh=4, mthresh=6, close=4, use_otsu=False,
        a_t=16.0, a_h=2.0, max_n_holes=8, white_thresh=5.0, black_thresh=50.0,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TissueConfig:
    """How tissue is told from glass. A field left at None takes its preset's value."""

    preset: Literal["tcga", "bcnb", "dhmc"] = "tcga"
    """Row of values to start from. tcga: Otsu, for mixed scanners and stains (default).
    bcnb: fixed threshold 10. dhmc: fixed threshold 4, for pale stains."""
    sthresh: int | None = None
    """Least HSV saturation of tissue, 0-255. With Otsu: the lowest threshold it may choose, so that
    a slide without tissue is not split along its noise. Default: the preset's (8, 10, 4)."""
    mthresh: int | None = None
    """Side of the median filter on the saturation, in pixels of the picture; an even number counts
    as the next odd one. Default: the preset's (7, 7, 6)."""
    close: int | None = None
    """Side of the morphological closing, in pixels of the picture; 0 for none.
    Default: the preset's (4)."""
    use_otsu: bool | None = None
    """Choose the threshold per slide with Otsu's method. Default: the preset's (True for tcga)."""
    a_t: float | None = None
    """Least area of a piece of tissue, its holes not counted, in reference patches: squares of
    512 px on level 0, as in CLAM; on small images at most 1 % of the scanned area, and a_h shrinks
    with it. Default: the preset's (16)."""
    a_h: float | None = None
    """Least area of a hole, in the same reference patches; smaller ones are filled.
    Default: the preset's (4, 4, 2)."""
    max_n_holes: int | None = None
    """At most so many holes per piece, the largest first. Default: the preset's (8)."""
    white_thresh: float | None = None
    """A patch whose mean saturation (0-255) is below this is glass and is dropped; 0 for never.
    Default: the preset's (5)."""
    black_thresh: float | None = None
    """A patch whose mean red, green and blue (0-255) are all below this is an artefact and is
    dropped; a pixel that dark never counts as tissue; 0 for never. Default: the preset's (50)."""
    seg_mpp: float = 8.0
    """Resolution of the picture that is segmented, in µm per pixel, met within a third."""
    seg_level: int = -1
    """Pyramid level to segment instead, as it is; -1 chooses one by seg_mpp."""
    max_raster_px: int = 4096
    """Longest side of that picture, in pixels; a larger slide is segmented more coarsely."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if self.preset not in PRESETS:
            raise ConfigError(f"tissue.preset is one of {', '.join(PRESETS)}; got {self.preset!r}")
        for name, value in dataclasses.asdict(self.rules()).items():
            if value < 0:
                raise ConfigError(f"tissue.{name} is at least 0; got {value}")
        if self.seg_mpp <= 0 or self.max_raster_px < 2 or self.seg_level < -1:
            raise ConfigError(
                "tissue.seg_mpp is above 0, tissue.max_raster_px at least 2 and tissue.seg_level"
                f" at least -1; got {self.seg_mpp}, {self.max_raster_px} and {self.seg_level}"
            )

    def rules(self) -> TissueRules:
        """The preset's values with those given here in their place."""
        names = [field.name for field in dataclasses.fields(TissueRules)]
        given = {name: getattr(self, name) for name in names}
        changes = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(PRESETS[self.preset], **changes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tissue:
    """The tissue of a slide: outlines in level-0 pixels, and the same as a mask of a raster."""

    polygons: tuple[Region, ...]
    raster: Raster  # the picture that was segmented
    mask: Bool[np.ndarray, "height width"]  # the polygons, on the raster's pixels
    config: TissueConfig
    rules: TissueRules
    source: str = "found"  # found | annotation

    @property
    def box_l0(self) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom of all tissue, None where there is none."""
        if not self.polygons:
            return None
        lefts, tops, rights, bottoms = zip(*(r.box_l0 for r in self.polygons), strict=True)
        return min(lefts), min(tops), max(rights), max(bottoms)


def find_tissue(
    slide: Slide, config: TissueConfig | None = None, *, mpp: float | None = None
) -> Tissue:
    """The tissue of a slide; `mpp` states level 0's µm per pixel where the file does not.

    Saturation of the picture, median filter, threshold, closing, outlines with their holes, area
    filters. A slide without tissue gives no polygons.
    """
    config = config or TissueConfig()
    rules = config.rules()
    raster = _segmentation_raster(slide, config, mpp)
    mask = _saturated(raster.pixels, rules) & _inside_bounds(slide, raster)
    polygons = _outlines(mask, raster, rules, slide.metadata.bounds_l0)
    mask = draw_mask(polygons, raster.size_px, raster.origin_l0, raster.scale)
    return Tissue(polygons=polygons, raster=raster, mask=mask, config=config, rules=rules)


def tissue_from_regions(
    slide: Slide,
    regions: Sequence[Region],
    config: TissueConfig | None = None,
    *,
    mpp: float | None = None,
) -> Tissue:
    """Tissue as an annotation says: its regions in place of what `find_tissue` would find.

    The filters by area do not apply to what a person drew; the rules for white and black patches
    do, and can be set to 0.
    """
    config = config or TissueConfig()
    raster = _segmentation_raster(slide, config, mpp)
    return Tissue(
        polygons=tuple(regions),
        raster=raster,
        mask=draw_mask(regions, raster.size_px, raster.origin_l0, raster.scale),
        config=config,
        rules=config.rules(),
        source="annotation",
    )


def _segmentation_raster(slide: Slide, config: TissueConfig, mpp: float | None) -> Raster:
    """The picture that is segmented."""
    if config.seg_level >= 0:
        level = min(config.seg_level, len(slide.levels) - 1)
        scale = slide.levels[level].downsample
        return read_raster(slide, scale=scale, max_px=config.max_raster_px, level=level)
    mpp = mpp or slide.metadata.mpp
    if mpp is None:
        raise MppError(
            f"{slide.uri}: no microns per pixel in the file and none stated; expected a value to"
            " choose the resolution for finding tissue; state it with --slide-mpp or the mpp column"
            " of the manifest"
        )
    return read_raster(slide, scale=config.seg_mpp / mpp, max_px=config.max_raster_px)


def saturation(pixels: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width"]:
    """The saturation of HSV, 0-255."""
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[:, :, 1], dtype=np.uint8)


def _saturated(
    pixels: UInt8[np.ndarray, "height width 3"], rules: TissueRules
) -> Bool[np.ndarray, "height width"]:
    """Which pixels are coloured enough to be tissue, after filter and closing."""
    value = saturation(pixels)
    # Near black the saturation is noise of any size, which would also mislead Otsu.
    value[pixels.max(axis=2) < rules.black_thresh] = 0
    if rules.mthresh > 1:
        value = np.asarray(cv2.medianBlur(value, rules.mthresh | 1), dtype=np.uint8)
    threshold = float(rules.sthresh)
    if rules.use_otsu:
        threshold = max(threshold, cv2.threshold(value, 0, 255, cv2.THRESH_OTSU)[0])
    return _closed(value > threshold, rules.close)


def _closed(mask: Bool[np.ndarray, "height width"], side: int) -> Bool[np.ndarray, "height width"]:
    """Morphological closing with a square; the anchor is mirrored, else an even side shifts."""
    if side < 2:
        return mask
    kernel = np.ones((side, side), dtype=np.uint8)
    there, back = side // 2, side - 1 - side // 2
    grown = cv2.dilate(mask.astype(np.uint8), kernel, anchor=(there, there))
    return np.asarray(cv2.erode(grown, kernel, anchor=(back, back)), dtype=bool)


def _inside_bounds(slide: Slide, raster: Raster) -> Bool[np.ndarray, "height width"]:
    """Which pixels have their centre in the scanned area."""
    x, y, width, height = slide.metadata.bounds_l0
    columns, rows = raster.size_px
    across = raster.origin_l0[0] + (np.arange(columns) + 0.5) * raster.scale
    down = raster.origin_l0[1] + (np.arange(rows) + 0.5) * raster.scale
    inside_y, inside_x = (down >= y) & (down < y + height), (across >= x) & (across < x + width)
    inside: np.ndarray = np.outer(inside_y, inside_x)
    return inside


def _outlines(
    mask: Bool[np.ndarray, "height width"],
    raster: Raster,
    rules: TissueRules,
    bounds_l0: tuple[int, int, int, int],
) -> tuple[Region, ...]:
    """The pieces of a mask with their holes, after the filters by area."""
    rings, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if tree is None:
        return ()
    parents = np.asarray(tree).reshape(-1, 4)[:, 3]
    unit = (REFERENCE_PX / raster.scale) ** 2 * area_scale(rules, bounds_l0)
    areas = np.array([cv2.contourArea(ring) / unit for ring in rings])
    in_l0 = [_to_l0(np.asarray(ring), raster, bounds_l0) for ring in rings]
    regions = []
    for outer in np.flatnonzero(parents < 0).tolist():
        holes = np.flatnonzero(parents == outer).tolist()
        if areas[outer] - areas[holes].sum() <= rules.a_t or len(rings[outer]) < 3:
            continue
        largest = sorted(holes, key=lambda hole: -float(areas[hole]))[: rules.max_n_holes]
        kept = [hole for hole in largest if areas[hole] > rules.a_h and len(rings[hole]) > 2]
        regions.append(Region(outer=in_l0[outer], holes=tuple(in_l0[hole] for hole in kept)))
    return tuple(regions)


def area_scale(rules: TissueRules, bounds_l0: tuple[int, int, int, int]) -> float:
    """By how much the least areas shrink on a small image, at most 1.

    The presets are made for whole slides. On a cut-out, a biopsy or a test image 16 reference
    patches can be all there is; there a_t is at most 1 % of the scanned area and a_h goes with it.
    """
    small = SMALL_SHARE * bounds_l0[2] * bounds_l0[3] / REFERENCE_PX**2
    return min(1.0, small / rules.a_t) if rules.a_t > 0 else 1.0


def _to_l0(
    ring: np.ndarray, raster: Raster, bounds_l0: tuple[int, int, int, int]
) -> Int64[np.ndarray, "_ 2"]:
    """A ring of raster pixels in level-0 pixels, inside the scanned area.

    A point is its pixel's centre; halves round down, so that it stays in the pixel at scale 1 too.
    """
    points = (ring.reshape(-1, 2) + 0.5) * raster.scale + np.array(raster.origin_l0)
    low, size = np.array(bounds_l0[:2]), np.array(bounds_l0[2:])
    clipped: np.ndarray = np.clip(np.ceil(points - 0.5).astype(np.int64), low, low + size)
    return clipped
