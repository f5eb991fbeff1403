"""The nouns that several layers share, as frozen dataclasses: slide references and grids."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

RESEARCH_ONLY = "research software: not for decisions about a patient"
"""Stands in every output that a clinician could see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideRef:
    """One slide of a cohort, before it is opened.

    slide_id: unique within the cohort, may hold `/` (folders); names every output of the slide.
    uri: local path or `s3://…`.
    mpp: microns per pixel at level 0 as the manifest states it, None to read it from the file.
    size_bytes: size of the file (of the folder, for MRXS and DICOM), None when not listed.
    """

    slide_id: str
    uri: str
    mpp: float | None = None
    case_id: str | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """Where a slide's patches are, and how their pixels are read.

    The pixel path is: read `read_px` × `read_px` on level `read_level`, resize to `output_px` when
    it differs, then whatever the encoder's transform asks for. `exact` delivers `output_px ==
    patch_px`; `prepath` delivers the level-0 pixels untouched, so that the encoder's resize is the
    only one.
    """

    slide_id: str
    coords: Int64[np.ndarray, "patch 2"]  # level-0 top-left (x, y), row-major
    grid_mode: str  # exact | prepath | clam | trident | imported | none (no coordinates)
    patch_px: int  # side at target_mpp
    patch_size_l0: int  # side on level 0, rounded
    overlap_px: int  # at target_mpp
    read_level: int
    read_px: int  # side on read_level
    output_px: int  # side handed to the encoder's transform
    mpp: float  # level 0, as used
    target_mpp: float
    effective_mpp: float  # of the pixels handed on
    level0_magnification: float
    target_magnification: float
    width_l0: int
    height_l0: int
    provenance: dict[str, str] = field(default_factory=dict)  # settings that made it, as strings

    def __len__(self) -> int:
        """Number of patches."""
        return len(self.coords)

    @property
    def has_coords(self) -> bool:
        """Whether it is known where the patches are; of imported features it may not be."""
        return self.grid_mode != "none"
