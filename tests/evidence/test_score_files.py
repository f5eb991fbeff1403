"""Scores of patches: percentiles, their file, and rasters of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import percentileofscore

from mstar.errors import FeatureError
from mstar.evidence.overlay import make_raster
from mstar.evidence.palette import LEVELS, level_colour, level_of
from mstar.evidence.scores import PatchScores, SlideScores, percentiles, read_scores, write_scores
from mstar.evidence.tiles import tiles


def scores(coords: list[tuple[int, int]], values: list[float], side: int = 64) -> SlideScores:
    numbers = np.array(values, np.float32)
    return SlideScores(
        slide_id="a/b ü",
        slide_uri="",
        coords_l0=np.array(coords, np.int64),
        patch_size_l0=side,
        width_l0=1000,
        height_l0=700,
        mpp=0.5,
        layers=(PatchScores.of("attention", numbers), PatchScores.of("instance", -numbers, "x: y")),
        made_by={"identity": {"model": 1}},
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40))
def test_percentiles_are_those_of_scipy(values: list[int]) -> None:
    numbers = np.array(values, np.float32)
    expected = percentileofscore(numbers, numbers, kind="mean")
    np.testing.assert_allclose(percentiles(numbers), expected, rtol=1e-5)


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    uri = str(tmp_path / "scores.parquet")
    own = scores([(0, 0), (64, 0), (128, 640)], [0.1, 0.7, 0.2])
    write_scores(uri, own)
    found = read_scores(uri)
    np.testing.assert_array_equal(found.coords_l0, own.coords_l0)
    assert [one.name for one in found.layers] == ["attention", "instance:x: y"]
    for ours, theirs in zip(found.layers, own.layers, strict=True):
        np.testing.assert_array_equal(ours.values, theirs.values)
        np.testing.assert_array_equal(ours.percentile, theirs.percentile)
    for field in ("slide_id", "slide_uri", "patch_size_l0", "width_l0", "height_l0", "mpp",
                  "made_by", "mstar_version", "warning"):  # fmt: skip
        assert getattr(found, field) == getattr(own, field)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
    for name in ("x.parquet", "nothing.parquet"):
        with pytest.raises(FeatureError, match="expected the scores of a slide"):
            read_scores(str(tmp_path / name))


def test_a_raster_has_each_patch_where_it_is_and_means_where_they_overlap() -> None:
    own = scores([(0, 0), (32, 0), (960, 640)], [1.0, 3.0, 5.0])
    raster = make_raster(own, own.layers[0].values)
    assert raster.downsample == 4
    assert raster.values.shape == (175, 250)
    assert raster.values[0, :24].tolist() == [1.0] * 8 + [2.0] * 8 + [3.0] * 8
    assert np.isnan(raster.values[0, 24])
    assert raster.values[160:, 240:].tolist() == [[5.0] * 10] * 15  # cut at the slide's edge
    assert int(np.isfinite(raster.values).sum()) == 24 * 16 + 15 * 10


def test_tiles_of_a_cropped_view_count_from_its_corner() -> None:
    own = scores([(128, 64), (192, 640)], [1.0, 2.0])
    shown = own.layers[0]
    whole, cropped = tiles(own, shown=shown), tiles(own, shown=shown, offset_l0=(100, 50))
    for a, b in zip(whole["features"], cropped["features"], strict=True):
        rings = [np.array(one["geometry"]["coordinates"][0]) for one in (a, b)]
        assert (rings[0] - rings[1]).tolist() == [[100, 50]] * 5
    assert list(whole["features"][0]["properties"]["measurements"]) == [
        "attention", "attention percentile", "instance: x: y", "instance: x: y percentile",
    ]  # fmt: skip


def test_levels_are_tenths_with_different_colours() -> None:
    levels = level_of(np.array([0, 9.99, 10, 55, 99.9, 100], np.float32))
    assert levels.tolist() == [0, 0, 1, 5, 9, 9]
    assert len({level_colour(level) for level in range(LEVELS)}) == LEVELS
