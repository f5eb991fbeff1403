"""What a slide says about itself, and the one decision that must not go wrong: its resolution."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mstar.errors import MppError

MissingMpp = Literal["error", "skip", "from-objective"]

MPP_RANGE = (0.05, 10.0)  # µm per pixel; outside lies no scanner, only wrong tags
MAX_ANISOTROPY = 0.05  # relative difference of mpp in x and y
MAX_DISAGREEMENT = 1.3  # factor between mpp and 10 / objective power before it is worth a warning
_UNIT_UM = {"inch": 25_400.0, "centimeter": 10_000.0}
_WAY_OUT = (
    "State it with --slide-mpp or the manifest's mpp column, "
    "or choose --missing-mpp skip or from-objective."
)
_SCANNER_KEYS = (
    "aperio.ScanScope ID",
    "hamamatsu.Product",
    "leica.device-model",
    "philips.DICOM_MANUFACTURER",
    "ventana.ScannerModel",
    "dicom.ManufacturerModelName",
    "tiff.Model",
    "tiff.Make",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideMetadata:
    """What the file states. `mpp` is the mean of x and y, as found, even when it is absurd."""

    vendor: str
    width_l0: int
    height_l0: int
    mpp: float | None = None
    mpp_x: float | None = None
    mpp_y: float | None = None
    mpp_source: str = "none"  # openslide | tiff-resolution | aperio-comment | none
    objective_power: float | None = None
    scanner: str | None = None
    compression: str | None = None
    icc_profile: bytes | None = None  # kept, never applied
    background: tuple[int, int, int] = (255, 255, 255)
    bounds_l0: tuple[int, int, int, int] = (0, 0, 0, 0)  # x, y, width, height of what was scanned


@dataclass(frozen=True, slots=True, kw_only=True)
class MppChoice:
    """The resolution to use; `mpp` is None when the slide is to be skipped."""

    mpp: float | None
    source: str  # stated | openslide | tiff-resolution | aperio-comment | objective | none
    warning: str | None = None


def parse_metadata(
    properties: Mapping[str, str],
    *,
    size_l0: tuple[int, int],
    icc_profile: bytes | None = None,
) -> SlideMetadata:
    """The metadata in OpenSlide's properties."""
    mpp_x, mpp_y, source = _find_mpp(properties)
    return SlideMetadata(
        vendor=properties.get("openslide.vendor", "unknown"),
        width_l0=size_l0[0],
        height_l0=size_l0[1],
        mpp=None if mpp_x is None or mpp_y is None else (mpp_x + mpp_y) / 2,
        mpp_x=mpp_x,
        mpp_y=mpp_y,
        mpp_source=source,
        objective_power=_number(properties.get("openslide.objective-power")),
        scanner=next((properties[key] for key in _SCANNER_KEYS if properties.get(key)), None),
        compression=_compression(properties),
        icc_profile=icc_profile,
        background=_colour(properties.get("openslide.background-color", "FFFFFF")),
        bounds_l0=_bounds(properties, size_l0),
    )


def choose_mpp(
    slide_id: str,
    metadata: SlideMetadata,
    *,
    stated: float | None = None,
    missing: MissingMpp = "error",
) -> MppChoice:
    """The resolution to use for a slide, or a clear refusal.

    `stated` (the manifest, --slide-mpp) always wins. A value outside 0.05-10 µm or one that
    differs between x and y by more than 5 % is treated like a missing one.

    Raises:
        MppError: nothing usable and `missing` is "error", or the stated value is absurd.
    """
    if stated is not None:
        if not _plausible(stated):
            raise MppError(f"slide {slide_id}: the stated mpp {stated:g} is not within {_range()}")
        return MppChoice(mpp=stated, source="stated", warning=_stated_warning(metadata, stated))
    problem = _problem(metadata)
    if problem is None:
        return MppChoice(
            mpp=metadata.mpp, source=metadata.mpp_source, warning=_objective_warning(metadata)
        )
    power = metadata.objective_power
    if missing == "from-objective" and power and _plausible(10 / power):
        note = f"{problem}; took 10 / objective power {power:g}"
        return MppChoice(mpp=10 / power, source="objective", warning=note)
    if missing == "skip":
        return MppChoice(mpp=None, source="none", warning=problem)
    if missing == "from-objective":
        raise MppError(
            f"slide {slide_id}: {problem}, and no usable objective power is in the file "
            f"(found {power}). State it with --slide-mpp or the manifest's mpp column."
        )
    raise MppError(f"slide {slide_id}: {problem}. {_WAY_OUT}")


def _problem(metadata: SlideMetadata) -> str | None:
    """Why the file's own mpp cannot be used."""
    mpp, x, y = metadata.mpp, metadata.mpp_x, metadata.mpp_y
    if mpp is None or x is None or y is None:
        return "no microns per pixel in the file"
    if not (_plausible(x) and _plausible(y)):
        return f"absurd mpp {mpp:g} ({metadata.mpp_source}), expected within {_range()}"
    if abs(x - y) / mpp > MAX_ANISOTROPY:
        return f"mpp differs between x ({x:g}) and y ({y:g}) by more than {MAX_ANISOTROPY:.0%}"
    return None


def _objective_warning(metadata: SlideMetadata) -> str | None:
    power, mpp = metadata.objective_power, metadata.mpp
    if not power or not mpp or power <= 0:
        return None
    if max(mpp * power / 10, 10 / (mpp * power)) <= MAX_DISAGREEMENT:
        return None
    return f"mpp {mpp:g} does not fit objective power {power:g} (expected about {10 / power:g})"


def _stated_warning(metadata: SlideMetadata, stated: float) -> str | None:
    found = metadata.mpp
    if found is None or _problem(metadata) or abs(stated - found) / found <= MAX_ANISOTROPY:
        return None
    return f"stated mpp {stated:g} overrides {found:g} in the file ({metadata.mpp_source})"


def _find_mpp(properties: Mapping[str, str]) -> tuple[float | None, float | None, str]:
    """The first plausible pair of three sources, else the first found at all."""
    generic = properties.get("openslide.vendor") == "generic-tiff"
    openslide_source = "tiff-resolution" if generic else "openslide"  # where OpenSlide has it from
    found = [
        (x, y, source)
        for source, x, y in (
            (openslide_source, *_openslide_mpp(properties)),
            ("tiff-resolution", *_resolution_mpp(properties)),
            ("aperio-comment", *_comment_mpp(properties)),
        )
        if x is not None and y is not None
    ]
    plausible = [pair for pair in found if _plausible(pair[0]) and _plausible(pair[1])]
    return (plausible or found)[0] if found else (None, None, "none")


def _compression(properties: Mapping[str, str]) -> str | None:
    """Of the formats that are no tiled TIFFs; of those, the TIFF directory says it."""
    if properties.get("openslide.vendor") == "hamamatsu":
        return "jpeg"
    image_format = properties.get("mirax.LAYER_0_LEVEL_0_SECTION.IMAGE_FORMAT")
    return image_format.lower() if image_format else None


def _openslide_mpp(properties: Mapping[str, str]) -> tuple[float | None, float | None]:
    x, y = (_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    return x if x is not None else y, y if y is not None else x


def _resolution_mpp(properties: Mapping[str, str]) -> tuple[float | None, float | None]:
    unit_um = _UNIT_UM.get(properties.get("tiff.ResolutionUnit", ""))
    x, y = (_number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY")
    if unit_um is None or not x or not y:
        return None, None
    return unit_um / x, unit_um / y


def _comment_mpp(properties: Mapping[str, str]) -> tuple[float | None, float | None]:
    text = properties.get("openslide.comment") or properties.get("tiff.ImageDescription") or ""
    match = re.search(r"\bMPP\s*=\s*([0-9.eE+-]+)", text)
    value = _number(match[1]) if match else None
    return value, value


def _number(text: str | None) -> float | None:
    """A finite number written with point or comma, else None."""
    try:
        value = float((text or "").replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _plausible(mpp: float) -> bool:
    return MPP_RANGE[0] <= mpp <= MPP_RANGE[1]


def _range() -> str:
    return f"{MPP_RANGE[0]:g}-{MPP_RANGE[1]:g} µm per pixel"


def _colour(text: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(text) if re.fullmatch("[0-9A-Fa-f]{6}", text) else b"\xff" * 3
    return red, green, blue


def _bounds(properties: Mapping[str, str], size_l0: tuple[int, int]) -> tuple[int, int, int, int]:
    """The scanned region on level 0; the whole slide where the format states none."""
    values = [
        _number(properties.get(f"openslide.bounds-{k}")) for k in ("x", "y", "width", "height")
    ]
    x, y, width, height = values
    if x is None or y is None or width is None or height is None:
        return 0, 0, *size_l0
    return int(x), int(y), int(width), int(height)
