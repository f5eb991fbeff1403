"""What a run has to do: slides, patches, cases, bytes, and how unequal slides are."""

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float64

from mstar.errors import ConfigError
from mstar.planning.strict import check_positive, check_range
from mstar.storage.manifest import BadRow, read_slides
from mstar.storage.objects import is_local, local_path

SLIDE_BYTES_PER_PATCH = 111_000.0
"""Bytes of a slide's file per patch on tissue: 1.1 GB and 9,892 patches a slide, as with TCGA's
diagnostic slides at 40x. An assumption."""
SIZE_SPREAD = 0.8
"""Standard deviation of the logarithm of slides' patch counts. An assumption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The counts that everything follows from.

    size_spread: standard deviation of the logarithm of slides' patch counts.
    source: where the counts are from. sizes: patches of each slide, where they are known.
    """

    num_slides: int
    num_patches: int
    num_cases: int
    slide_bytes: float
    size_spread: float = SIZE_SPREAD
    source: str = "counts"
    sizes: "Float64[np.ndarray, ' slide'] | None" = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Refuses cohorts that cannot be."""
        check_range(self, 1, "num_slides", "num_patches", "num_cases")
        check_positive(self, "slide_bytes")
        check_range(self, 0.0, "size_spread", most=3.0)
        if self.num_patches < self.num_slides:
            raise ConfigError(
                f"num_patches: expected at least one a slide ({self.num_slides:,}), got "
                f"{self.num_patches:,}. Correct --patches-per-slide."
            )

    @property
    def patches_per_slide(self) -> float:
        """On average."""
        return self.num_patches / self.num_slides

    @property
    def bytes_per_slide(self) -> float:
        """On average."""
        return self.slide_bytes / self.num_slides


def preset(name: str) -> Workload:
    """A cohort of the table.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"--preset {name}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def counted(
    *, num_slides: int, patches_per_slide: float, num_cases: int, slide_mb: float | None
) -> Workload:
    """A cohort by its counts."""
    patches = round(num_slides * patches_per_slide)
    each = SLIDE_BYTES_PER_PATCH * patches_per_slide if slide_mb is None else slide_mb * 1e6
    return Workload(
        num_slides=num_slides,
        num_patches=patches,
        num_cases=num_cases or num_slides,
        slide_bytes=num_slides * each,
    )


def from_manifest(spec: str, *, patches_per_slide: float, slide_mb: float | None) -> Workload:
    """A cohort by its manifest or listing; sizes come from the files where asking costs nothing.

    A slide without known size counts with `patches_per_slide`.

    Raises:
        ConfigError: no slide can be used.
    """
    sizes, cases, known, unnamed = [], set(), 0, 0
    for row in read_slides(spec):
        if isinstance(row, BadRow):
            continue
        size = _size_bytes(row.uri, row.size_bytes)
        known += size is not None
        each = SLIDE_BYTES_PER_PATCH * patches_per_slide if slide_mb is None else slide_mb * 1e6
        sizes.append(each if size is None else size)
        unnamed += row.case_id is None
        cases.add(row.case_id)
    if not sizes:
        raise ConfigError(
            f"{spec}: expected slides, got none that can be used. See `mstar doctor`."
        )
    return _of_sizes(np.array(sizes), len(cases - {None}) + unnamed, spec, known, patches_per_slide)


def _of_sizes(
    sizes: "Float64[np.ndarray, ' slide']", num_cases: int, spec: str, known: int, mean: float
) -> Workload:
    patches = np.maximum(1.0, sizes / SLIDE_BYTES_PER_PATCH)
    if not known:
        patches = np.full(len(sizes), mean)
    how = "patches told from the sizes of files" if known else f"{mean:g} patches a slide assumed"
    return Workload(
        num_slides=len(sizes),
        num_patches=int(patches.sum()),
        num_cases=num_cases,
        slide_bytes=float(sizes.sum()),
        size_spread=float(np.log(patches).std()) if known else SIZE_SPREAD,
        source=f"{spec} ({how})",
        sizes=patches,
    )


def _size_bytes(uri: str, listed: int | None) -> float | None:
    if listed is not None or not is_local(uri):
        return listed
    path = local_path(uri)
    return float(path.stat().st_size) if path.is_file() else None


PAPER = replace(
    counted(num_slides=11_727, patches_per_slide=9_892, num_cases=9_608, slide_mb=None),
    num_patches=116_000_000,
    source="preset paper: mSTAR's pretraining cohort; bytes of slides assumed",
)

PRESETS: dict[str, Workload] = {
    "paper": PAPER,
    "hospital": replace(
        counted(num_slides=100_000, patches_per_slide=9_892, num_cases=40_000, slide_mb=None),
        source="preset hospital: 100,000 slides like the paper's; made up",
    ),
    "pilot": replace(
        counted(num_slides=200, patches_per_slide=5_000, num_cases=200, slide_mb=None),
        source="preset pilot: 200 slides; made up",
    ),
}
