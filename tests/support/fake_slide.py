"""A slide in memory: the smallest thing that fulfils the `Slide` protocol."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from mstar.slides.levels import Level, read_clipped
from mstar.slides.metadata import SlideMetadata


class FakeSlide:
    """Level 0 is the array; each further level is its area average at the downsample asked for.

    `downsamples` may be fractions, such as 2.0005. `reads` lists what was read as
    (level, x, y, width, height).
    """

    backend = "fake"

    def __init__(
        self,
        pixels: UInt8[np.ndarray, "height width 3"],
        *,
        downsamples: Sequence[float] = (1.0,),
        mpp: float | None = 0.5,
        bounds_l0: tuple[int, int, int, int] | None = None,
        background: tuple[int, int, int] = (255, 255, 255),
        icc_profile: bytes | None = None,
        uri: str = "fake.svs",
    ) -> None:
        self.uri = uri
        self.height_l0, self.width_l0 = pixels.shape[:2]
        self.metadata = SlideMetadata(
            vendor="fake",
            width_l0=self.width_l0,
            height_l0=self.height_l0,
            mpp=mpp,
            background=background,
            icc_profile=icc_profile,
            bounds_l0=bounds_l0 or (0, 0, self.width_l0, self.height_l0),
        )
        self.levels = tuple(
            Level(
                width=max(1, int(self.width_l0 / by)),
                height=max(1, int(self.height_l0 / by)),
                downsample=float(by),
            )
            for by in downsamples
        )
        self.reads: list[tuple[int, int, int, int, int]] = []
        self._base = pixels
        self._planes: dict[int, np.ndarray] = {}

    def read(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        """A window of a level; what lies outside it is the background colour."""
        self.reads.append((level, x, y, width, height))
        plane = self._plane(level)

        def fetch(left: int, top: int, wide: int, high: int) -> np.ndarray:
            return plane[top : top + high, left : left + wide].copy()

        return read_clipped(
            self.levels[level], (x, y, width, height), self.metadata.background, fetch
        )

    def thumbnail(self, max_px: int) -> UInt8[np.ndarray, "height width 3"]:
        """The whole slide, its longer side at most `max_px`."""
        scale = min(1.0, max_px / max(self.width_l0, self.height_l0))
        size = (max(1, round(self.width_l0 * scale)), max(1, round(self.height_l0 * scale)))
        return np.asarray(cv2.resize(self._base, size, interpolation=cv2.INTER_AREA))

    def close(self) -> None:
        """Nothing to give back."""

    def _plane(self, level: int) -> np.ndarray:
        """The pixels of a level, made when first wanted."""
        own = self.levels[level]
        if own.downsample == 1:
            return self._base
        if level not in self._planes:
            size = (own.width, own.height)
            if self._base.strides[:2] == (0, 0):  # one colour, see plain_slide
                return np.broadcast_to(self._base[:1, :1], (own.height, own.width, 3))
            self._planes[level] = cv2.resize(self._base, size, interpolation=cv2.INTER_AREA)
        return self._planes[level]


def plain_slide(
    width: int, height: int, *, color: tuple[int, int, int] = (255, 255, 255), **options: object
) -> FakeSlide:
    """A slide of one colour and any size; its level 0 takes no memory."""
    pixels = np.broadcast_to(np.array(color, dtype=np.uint8), (height, width, 3))
    return FakeSlide(pixels, **options)  # type: ignore[arg-type]
