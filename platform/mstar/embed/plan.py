"""What is left to do, cut into bundles: a pure function of the pending slides.

A bundle is the work item that Ray Data moves: whole slides worth about `bundle_batches` encoder
batches. A slide is never shared by two bundles, so that its bytes are fetched by one node only; a
giant slide is a bundle of its own, and its worker cuts it into chunks. Bundles are written to
Parquet and streamed from there: neither the driver nor Ray holds the manifest.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mstar.schema import SlideRef

# Measured on Aperio slides at 40x: about 30 kB of file per tissue patch of 512 px, background
# included. It only balances bundles; the true count is known once the grid is.
BYTES_PER_PATCH = 30_000
PATCHES_OF_UNKNOWN_SIZE = 10_000
ROWS_PER_GROUP = 512

_SLIDE = pa.struct(
    [
        ("slide_id", pa.string()),
        ("uri", pa.string()),
        ("mpp", pa.float64()),
        ("case_id", pa.string()),
        ("size_bytes", pa.int64()),
    ]
)
PLAN_SCHEMA = pa.schema([("bundle", pa.int64()), ("slides", pa.list_(_SLIDE))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """The slides that one call of a worker takes on."""

    number: int
    slides: tuple[SlideRef, ...]


def estimated_patches(slide: SlideRef) -> int:
    """A guess from the file's size, for balance only."""
    if slide.size_bytes is None:
        return PATCHES_OF_UNKNOWN_SIZE
    return max(1, slide.size_bytes // BYTES_PER_PATCH)


def bundles(pending: Iterable[SlideRef], *, target_patches: int) -> Iterator[Bundle]:
    """Consecutive slides, closed as soon as they are worth `target_patches`."""
    slides: list[SlideRef] = []
    number, patches = 0, 0
    for slide in pending:
        slides.append(slide)
        patches += estimated_patches(slide)
        if patches >= target_patches:
            yield Bundle(number=number, slides=tuple(slides))
            slides, patches, number = [], 0, number + 1
    if slides:
        yield Bundle(number=number, slides=tuple(slides))


def write_plan(path: Path, planned: Iterable[Bundle]) -> int:
    """Write bundles as Parquet, a row each; returns their number."""
    count = 0
    with pq.ParquetWriter(path, PLAN_SCHEMA) as writer:
        for group in _groups(planned, ROWS_PER_GROUP):
            writer.write_table(pa.Table.from_pylist([_to_row(b) for b in group], PLAN_SCHEMA))
            count += len(group)
    return count


def read_bundle(row: dict[str, object]) -> Bundle:
    """The bundle of one row of a plan."""
    slides = tuple(SlideRef(**fields) for fields in row["slides"])  # type: ignore[attr-defined]
    return Bundle(number=int(row["bundle"]), slides=slides)  # type: ignore[call-overload]


def _to_row(bundle: Bundle) -> dict[str, object]:
    fields = ("slide_id", "uri", "mpp", "case_id", "size_bytes")
    slides = [{name: getattr(slide, name) for name in fields} for slide in bundle.slides]
    return {"bundle": bundle.number, "slides": slides}


def _groups(items: Iterable[Bundle], size: int) -> Iterator[list[Bundle]]:
    group: list[Bundle] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
