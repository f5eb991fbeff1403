"""The reader for every format, through OpenSlide; also the judge of what the pixels are."""

import threading
from pathlib import Path

import cv2
import numpy as np
import openslide
from PIL import Image, ImageCms

from mstar.errors import PatchError, SlideError
from mstar.slides.levels import Level, Pixels, draw_thumbnail, read_clipped
from mstar.slides.metadata import SlideMetadata, parse_metadata


class OpenSlideSlide:
    """A slide read through OpenSlide. Reads are thread-safe.

    OpenSlide addresses every level in level-0 pixels. Level pixel x lies at `x * downsample`,
    rounded to a whole level-0 pixel, so at levels above 0 the position is off by at most half a
    level-0 pixel, and OpenSlide blends neighbouring level pixels by that fraction. With whole
    downsamples, and always on level 0, the pixels are exact.
    """

    backend = "openslide"

    def __init__(self, path: Path) -> None:
        self.uri = str(path)
        self._path = path
        self._lock = threading.Lock()
        handle = self._open()
        self._handle: openslide.OpenSlide | None = handle
        self.width_l0, self.height_l0 = handle.dimensions
        self.levels: tuple[Level, ...] = tuple(
            Level(width=width, height=height, downsample=float(downsample))
            for (width, height), downsample in zip(
                handle.level_dimensions, handle.level_downsamples, strict=True
            )
        )
        self.metadata: SlideMetadata = parse_metadata(
            handle.properties,
            size_l0=handle.dimensions,
            icc_profile=_icc_profile(handle),
        )

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """The window in the level's own pixels; outside the level is background."""
        return read_clipped(
            self.levels[level],
            (x, y, width, height),
            self.metadata.background,
            lambda *inside: self._fetch(level, *inside),
        )

    def thumbnail(self, max_px: int) -> Pixels:
        """The whole slide, its longer side at most `max_px`."""
        return draw_thumbnail(self.levels, max_px, self.read)

    def close(self) -> None:
        """Closes the file; reading afterwards is an error."""
        with self._lock:
            if self._handle is not None:
                self._handle.close()
            self._handle = None

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self._path)
        except (openslide.OpenSlideError, OSError) as error:
            raise SlideError(
                f"slide {self._path}: OpenSlide cannot open it: {error}. "
                f"{_look_at(self._path)} Fetch it again or leave it out."
            ) from error

    def _fetch(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        downsample = self.levels[level].downsample
        place = (round(x * downsample), round(y * downsample))
        handle = self._handle
        if handle is None:
            raise SlideError(f"slide {self.uri}: read after it was closed")
        try:
            image = handle.read_region(place, level, (width, height))
        except openslide.OpenSlideError:
            image = self._read_alone(place, level, (width, height))
        return _on_background(image, self.metadata.background)

    def _read_alone(self, place: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """Reads again with a handle of its own, which becomes everyone's if it survives.

        An OpenSlide handle is dead after its first error, for all threads, with that error: so an
        error says nothing about this window until a fresh handle has failed at it, too.
        """
        with self._lock:
            fresh = self._open()
            try:
                image = fresh.read_region(place, level, size)
            except openslide.OpenSlideError as error:
                fresh.close()
                self._handle = self._open()
                raise PatchError(
                    f"slide {self.uri}: {size[0]} × {size[1]} px of level {level} at level-0 "
                    f"{place} cannot be decoded: {error}"
                ) from error
            self._handle = fresh  # the old one closes itself when its last reader lets go
            return image


def _on_background(image: Image.Image, background: tuple[int, int, int]) -> Pixels:
    """RGBA on an opaque background; opaque pixels, the rule, come through untouched."""
    rgba = np.asarray(image)
    if rgba[..., 3].min() == 255:
        return cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB)
    alpha = rgba[..., 3:].astype(np.uint32)
    mixed = rgba[..., :3] * alpha + np.array(background, np.uint32) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _icc_profile(handle: openslide.OpenSlide) -> bytes | None:
    if "openslide.icc-size" not in handle.properties:
        return None
    try:
        profile = handle.color_profile
    except (openslide.OpenSlideError, ImageCms.PyCMSError, OSError):
        return None  # a damaged profile must not cost the slide: it is never applied
    return profile.tobytes() if profile is not None else None


def _look_at(path: Path) -> str:
    """What can be said about a file that does not open."""
    if not path.exists():
        return "There is no such file."
    if path.is_file() and path.stat().st_size == 0:
        return "The file is empty (0 bytes)."
    if path.is_dir():
        return "It is a folder; give the .mrxs file or one .dcm file of it."
    with path.open("rb") as file:
        start = file.read(4)
    tiff = start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    kind = "a TIFF, perhaps cut short" if tiff else f"no TIFF (starts with {start!r})"
    return f"The file has {path.stat().st_size:,} bytes and is {kind}."
