"""Outlines: drawing and asking about points, against OpenCV."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.slides.regions import Region, draw_mask, ring_contains

RINGS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=3, max_size=9, unique=True
)


def distances(ring: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """OpenCV's signed distance of every lattice point, positive inside."""
    contour = ring.astype(np.int32)
    return np.array([[cv2.pointPolygonTest(contour, (x, y), True) for x in xs] for y in ys])


@given(ring=RINGS)
@settings(max_examples=60, deadline=None)
def test_points_are_inside_where_opencv_says(ring: list[tuple[int, int]]) -> None:
    points = np.array(ring, dtype=np.int64)
    xs, ys = np.arange(-1, 32, 1.5), np.arange(-1, 32, 0.75)
    distance = distances(points, xs, ys)
    clear = np.abs(distance) > 1e-6  # off the ring itself
    for edge in (True, False):
        inside = ring_contains(points, xs, ys, edge=edge)
        assert np.array_equal(inside[clear], (distance > 0)[clear])


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_points_on_a_traced_ring_count_as_edge_says(seed: int) -> None:
    blob = np.random.default_rng(seed).random((8, 8)) > 0.4
    rings, _ = cv2.findContours(
        np.kron(blob, np.ones((2, 2))).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    xs = ys = np.arange(0, 16, 0.5)
    for ring in rings:
        points = np.asarray(ring).reshape(-1, 2).astype(np.int64)
        if len(points) < 3:
            continue
        distance = distances(points, xs, ys)
        assert np.array_equal(ring_contains(points, xs, ys, edge=True), distance >= 0)
        assert np.array_equal(ring_contains(points, xs, ys, edge=False), distance > 0)


def square(low: int, high: int) -> np.ndarray:
    return np.array([(low, low), (high, low), (high, high), (low, high)], dtype=np.int64)


def test_an_island_in_a_hole_is_drawn() -> None:
    island = Region(outer=square(40, 50))
    around = Region(outer=square(0, 90), holes=(square(20, 70),))
    for regions in ([island, around], [around, island]):
        mask = draw_mask(regions, (10, 10), (-5.0, -5.0), 10.0)
        assert mask[4:6, 4:6].all()
        assert not mask[3, 3:7].any()
        assert mask[:2].all()


@pytest.mark.parametrize("shift", [-1000, 1000])
def test_a_region_outside_the_raster_draws_nothing(shift: int) -> None:
    region = Region(outer=square(0, 50) + shift)
    assert not draw_mask([region], (10, 10), (0.0, 0.0), 10.0).any()


def test_a_region_across_the_border_is_cut() -> None:
    region = Region(outer=square(-1000, 45))
    mask = draw_mask([region], (10, 10), (0.0, 0.0), 10.0)
    assert mask[:4, :4].all()
    assert not mask[6:].any()
    assert not mask[:, 6:].any()
