"""Opens slides: one protocol over every format, and the choice between the two readers."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from mstar.errors import MstarError, SlideError
from mstar.slides.levels import Level, Pixels
from mstar.slides.metadata import SlideMetadata, choose_mpp
from mstar.slides.openslide_reader import OpenSlideSlide
from mstar.slides.tiff_pages import TiffPage, read_tiff_pages
from mstar.slides.vips_proof import disprove, match_pages
from mstar.slides.vips_reader import VipsSlide

__all__ = ["Level", "ReaderChoice", "Slide", "SlideDescription", "describe", "open_slide"]

ReaderChoice = Literal["auto", "openslide", "vips"]

_log = logging.getLogger(__name__)


@runtime_checkable  # the shape checks of the tests ask for it
class Slide(Protocol):
    """An open slide. Only its pyramid is read, never its label or macro image."""

    @property
    def uri(self) -> str:
        """Where it was opened from."""
        ...

    @property
    def width_l0(self) -> int:
        """Width of level 0 in pixels."""
        ...

    @property
    def height_l0(self) -> int:
        """Height of level 0 in pixels."""
        ...

    @property
    def levels(self) -> tuple[Level, ...]:
        """The pyramid, largest first."""
        ...

    @property
    def metadata(self) -> SlideMetadata:
        """What the file states about itself."""
        ...

    @property
    def backend(self) -> str:
        """Which reader gives the pixels: openslide or vips."""
        ...

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """A window in the level's own pixels, background outside the level; thread-safe.

        Raises:
            PatchError: the pixels cannot be decoded.
        """
        ...

    def thumbnail(self, max_px: int) -> Pixels:
        """The whole slide, its longer side at most `max_px`."""
        ...

    def close(self) -> None:
        """Gives the file back; not while another thread reads."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideDescription:
    """What `mstar doctor --slides` shows of a slide before a long run."""

    uri: str
    vendor: str
    scanner: str | None
    width_l0: int
    height_l0: int
    downsamples: tuple[float, ...]
    mpp: float | None
    mpp_source: str
    objective_power: float | None
    compression: str | None
    has_icc: bool
    backend: str
    size_bytes: int
    warning: str | None


def open_slide(path: str | Path, *, reader: ReaderChoice = "auto") -> Slide:
    """Opens a local slide: with libvips where that gives OpenSlide's pixels, else with OpenSlide.

    `path` is a file, or the folder of a DICOM or MRXS slide. The choice costs a few small windows
    per level, read with both (5-20 ms per level, once per opened slide).

    Raises:
        SlideError: the file cannot be opened, or `reader="vips"` does not fit it.
    """
    file = _entry_file(Path(path))
    judge = OpenSlideSlide(file)
    pages = read_tiff_pages(file)
    if pages:
        judge.metadata = replace(judge.metadata, compression=pages[0].compression.lower())
    if reader == "openslide":
        return judge
    outcome = _try_vips(judge, file, pages)
    if isinstance(outcome, VipsSlide):
        return outcome
    if reader == "vips":
        judge.close()
        raise SlideError(f"slide {file}: the vips reader does not fit: {outcome}. Use auto.")
    _log.debug("%s: read with OpenSlide: %s", file, outcome)
    return judge


def describe(path: str | Path) -> SlideDescription:
    """What a slide is and how it would be read.

    Raises:
        SlideError: it cannot be opened.
    """
    slide = open_slide(path)
    try:
        return _describe(slide, Path(path))
    finally:
        slide.close()


def _try_vips(judge: OpenSlideSlide, file: Path, pages: list[TiffPage]) -> VipsSlide | str:
    """The fast reader, proven on this file, or why not."""
    matched = match_pages(judge.metadata.vendor, judge.levels, pages)
    if isinstance(matched, str):
        return matched
    fast = VipsSlide(judge, file, matched)
    try:
        problem = disprove(fast, judge)
    except MstarError as error:
        problem = str(error)
    if problem is None:
        return fast
    fast.release()
    return problem


def _entry_file(path: Path) -> Path:
    """The file that OpenSlide wants: of a DICOM or MRXS folder, the one that names the rest."""
    if not path.is_dir():
        return path
    beside = path.with_name(f"{path.name}.mrxs")
    if beside.is_file():
        return beside
    for pattern in ("*.mrxs", "*.dcm"):
        found = sorted(path.glob(pattern))
        if found:
            return found[0]
    raise SlideError(f"slide {path}: a folder without .mrxs or .dcm files. Give the slide's file.")


def _describe(slide: Slide, path: Path) -> SlideDescription:
    metadata = slide.metadata
    choice = choose_mpp(str(path), metadata, missing="skip")  # a preview refuses nothing
    files = path.rglob("*") if path.is_dir() else [path]
    return SlideDescription(
        uri=str(path),
        vendor=metadata.vendor,
        scanner=metadata.scanner,
        width_l0=slide.width_l0,
        height_l0=slide.height_l0,
        downsamples=tuple(level.downsample for level in slide.levels),
        mpp=choice.mpp,
        mpp_source=choice.source,
        objective_power=metadata.objective_power,
        compression=metadata.compression,
        has_icc=metadata.icc_profile is not None,
        backend=slide.backend,
        size_bytes=sum(file.stat().st_size for file in files if file.is_file()),
        warning=choice.warning,
    )
