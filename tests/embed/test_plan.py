"""Bundles: every pending slide once, in order, near the wanted size, and the same from Parquet."""

from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.embed.plan import (
    BYTES_PER_PATCH,
    PATCHES_OF_UNKNOWN_SIZE,
    bundles,
    estimated_patches,
    read_bundle,
    write_plan,
)
from mstar.schema import SlideRef


def slides_of(sizes: list[int | None]) -> list[SlideRef]:
    return [
        SlideRef(slide_id=f"c{i}/s", uri=f"/x/{i}.svs", size_bytes=size, mpp=0.5 if i % 2 else None)
        for i, size in enumerate(sizes)
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(0, 10**9)), max_size=30), st.integers(1, 50_000))
def test_every_slide_once_in_order(sizes: list[int | None], target: int) -> None:
    slides = slides_of(sizes)
    planned = list(bundles(slides, target_patches=target))
    assert [slide for bundle in planned for slide in bundle.slides] == slides
    assert [bundle.number for bundle in planned] == list(range(len(planned)))
    for bundle in planned:
        without_last = sum(map(estimated_patches, bundle.slides[:-1]))
        assert without_last < target  # closed as soon as it was worth it
    for bundle in planned[:-1]:
        assert sum(map(estimated_patches, bundle.slides)) >= target


def test_a_giant_slide_is_a_bundle_of_its_own() -> None:
    giant = 40_000 * BYTES_PER_PATCH
    planned = list(bundles(slides_of([giant, giant]), target_patches=10_000))
    assert [len(bundle.slides) for bundle in planned] == [1, 1]


def test_unknown_sizes_are_taken_as_usual_slides() -> None:
    (slide,) = slides_of([None])
    assert estimated_patches(slide) == PATCHES_OF_UNKNOWN_SIZE


def test_the_plan_file_gives_back_the_bundles(tmp_path: Path) -> None:
    planned = list(bundles(slides_of([None, 5, 10**8, None]), target_patches=4_000))
    path = tmp_path / "plan.parquet"
    assert write_plan(path, planned) == len(planned)
    rows = pq.read_table(path).to_pylist()
    assert [read_bundle(row) for row in rows] == planned
