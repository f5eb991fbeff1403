"""Regions to and from QuPath's GeoJSON, in the forms that its versions write."""

import gzip
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.errors import SlideError
from mstar.slides.geojson import read_regions, to_feature_collection, write_regions
from mstar.slides.grid import GridConfig, make_grid
from mstar.slides.regions import Region
from mstar.slides.tissue import find_tissue, tissue_from_regions
from support.fake_slide import FakeSlide, plain_slide

SQUARE = [[0, 0], [100, 0], [100, 80], [0, 80], [0, 0]]
HOLE = [[20, 20], [40, 20], [40, 40], [20, 20]]


def ring(*points: tuple[int, int]) -> np.ndarray:
    return np.array(points, dtype=np.int64)


def annotation(geometry: dict[str, Any], **properties: Any) -> dict[str, Any]:
    own = {"objectType": "annotation"} | properties
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": own}


def polygon(*rings: list[list[float]]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def saved(folder: Path, document: Any, name: str = "s1.geojson") -> str:
    path = folder / name
    path.write_text(json.dumps(document))
    return str(path)


def shapes(regions: tuple[Region, ...]) -> list[list[list[list[int]]]]:
    return [[r.outer.tolist(), *(hole.tolist() for hole in r.holes)] for r in regions]


BOXES = st.lists(
    st.tuples(
        st.integers(-500, 90_000), st.integers(0, 90_000), st.integers(8, 4_000), st.booleans()
    ),
    max_size=6,
)


@given(boxes=BOXES, offset=st.tuples(st.integers(0, 9_000), st.integers(0, 9_000)))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    boxes: list[tuple[int, int, int, bool]],
    offset: tuple[int, int],
) -> None:
    uri = str(tmp_path_factory.mktemp("geo") / "a b ü.geojson")
    regions = [
        Region(
            outer=ring((x, y), (x + side, y), (x + side, y + side)),
            holes=(ring((x + 2, y + 1), (x + 6, y + 1), (x + 6, y + 4)),) if hole else (),
        )
        for x, y, side, hole in boxes
    ]
    write_regions(uri, regions, offset_l0=offset)
    assert shapes(read_regions(uri, offset_l0=offset)) == shapes(tuple(regions))


def test_the_file_has_the_form_that_qupath_opens() -> None:
    region = Region(
        outer=ring((10, 20), (30, 20), (30, 60)), holes=(ring((25, 25), (28, 25), (28, 30)),)
    )
    document = to_feature_collection([region], name="piece", offset_l0=(10, 5))
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    (feature,) = document["features"]
    assert (document["type"], feature["type"]) == ("FeatureCollection", "Feature")
    assert feature["geometry"] == {
        "type": "Polygon",
        "coordinates": [
            [[0, 15], [20, 15], [20, 55], [0, 15]],
            [[15, 20], [18, 20], [18, 25], [15, 20]],
        ],
    }
    assert feature["properties"] == {
        "objectType": "annotation",
        "name": "piece 1",
        "classification": {"name": "Tissue", "color": [0, 160, 80]},
        "isLocked": False,
    }
    assert "crs" not in document


def test_equal_content_gives_equal_bytes_and_ids_differ(tmp_path: Path) -> None:
    regions = [Region(outer=ring((0, 0), (9, 0), (9, at))) for at in (5, 6)]
    for name in ("a.geojson.gz", "b.geojson.gz"):
        write_regions(str(tmp_path / name), regions)
    first, second = (tmp_path / name for name in ("a.geojson.gz", "b.geojson.gz"))
    assert first.read_bytes() == second.read_bytes()
    features = json.loads(gzip.decompress(first.read_bytes()))["features"]
    assert len({feature["id"] for feature in features}) == 2
    assert shapes(read_regions(str(first))) == shapes(tuple(regions))


def test_patches_are_tiles_and_are_not_read_back_as_tissue(tmp_path: Path) -> None:
    slide = plain_slide(2_000, 2_000, color=(200, 120, 170))
    region = Region(outer=ring((0, 0), (600, 0), (600, 600), (0, 600)))
    tissue = tissue_from_regions(slide, [region])
    grid = make_grid("s1", slide, 0.5, tissue, GridConfig())
    document = to_feature_collection([region], grid=grid)
    tiles = [f for f in document["features"] if f["properties"]["objectType"] == "tile"]
    corners = [np.array(tile["geometry"]["coordinates"][0]) for tile in tiles]
    assert [corner.min(axis=0).tolist() for corner in corners] == grid.coords.tolist()
    assert all(np.ptp(corner, axis=0).tolist() == [256, 256] for corner in corners)
    assert len(read_regions(saved(tmp_path, document))) == 1


@pytest.mark.parametrize(
    "document",
    [
        {"type": "FeatureCollection", "features": [annotation(polygon(SQUARE, HOLE))]},
        [annotation(polygon(SQUARE, HOLE))],
        annotation(polygon(SQUARE, HOLE)),
        polygon(SQUARE, HOLE),
        annotation({"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE]]}),
        annotation({"type": "GeometryCollection", "geometries": [polygon(SQUARE, HOLE)]}),
        # QuPath before 0.3: the type in the id, measurements as a list, a colour as one number
        {
            "type": "Feature", "id": "PathAnnotationObject", "geometry": polygon(SQUARE, HOLE),
            "properties": {"classification": {"name": "Tissue", "colorRGB": -3670016},
                           "isLocked": False, "measurements": [{"name": "a", "value": 1}]},
        },
        # QuPath 0.3, and a file whose properties an editor dropped
        annotation(polygon(SQUARE, HOLE), objectType=None, object_type="annotation"),
        {"type": "Feature", "geometry": polygon(SQUARE, HOLE), "properties": None},
        # TRIDENT's contours
        {
            "type": "FeatureCollection",
            "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}},
            "features": [{"type": "Feature", "properties": {"tissue_id": 0},
                          "geometry": polygon(SQUARE, HOLE)}],
        },
        # fractions, a third coordinate, rings not closed
        annotation(polygon([[0.2, -0.3, 0.0], [99.8, 0, 0], [100, 80.4, 0], [0, 80, 0]], HOLE[:3])),
    ],
)  # fmt: skip
def test_every_form_is_read(tmp_path: Path, document: Any) -> None:
    regions = read_regions(saved(tmp_path, document))
    assert len(regions) == 1
    (outer, hole), *_ = shapes(regions)
    assert sorted(outer) == sorted(SQUARE[:4])
    assert sorted(hole) == sorted(HOLE[:3])


@pytest.mark.parametrize(
    "properties",
    [
        {"objectType": "tile"}, {"objectType": "detection"}, {"objectType": "cell"},
        {"objectType": None, "object_type": "PathTileObject"},
        {"classification": {"name": "Ignore*"}},
    ],
)  # fmt: skip
def test_what_is_no_tissue_annotation_is_left_out(
    tmp_path: Path, properties: dict[str, Any]
) -> None:
    document = [annotation(polygon(SQUARE), **properties), annotation(polygon(SQUARE))]
    assert len(read_regions(saved(tmp_path, document))) == 1


def test_classes_are_chosen_by_name(tmp_path: Path) -> None:
    document = [
        annotation(polygon(SQUARE), classification={"name": "Tumor"}),
        annotation(polygon(SQUARE), classification={"names": ["Tumor", "Invasive"]}),
        annotation(polygon(SQUARE), classification="Stroma"),
        annotation(polygon(SQUARE)),
    ]
    uri = saved(tmp_path, document)
    counts = [
        len(read_regions(uri, classes=names))
        for names in ([], ["Tumor"], ["Tumor: Invasive", "Stroma"], ["Fat"])
    ]
    assert counts == [4, 1, 2, 0]


def test_points_and_lines_are_passed_over_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = {"type": "LineString", "coordinates": [[0, 0], [5, 5]]}
    uri = saved(tmp_path, [annotation(line), annotation(polygon(SQUARE))])
    with caplog.at_level(logging.WARNING):
        assert len(read_regions(uri)) == 1
    assert "[0].geometry (LineString)" in caplog.text


def test_an_empty_collection_is_no_tissue(tmp_path: Path) -> None:
    assert read_regions(saved(tmp_path, {"type": "FeatureCollection", "features": []})) == ()


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"type": "FeatureCollection"}, "features: expected a list"),
        ({"type": "Topology"}, "type: expected FeatureCollection"),
        (7, "content: expected an object"),
        ([1], r"\[0\]: expected an object of type Feature"),
        (annotation({"type": "Circle"}), r"\[0\]\.geometry\.type: expected Polygon"),
        ([annotation(polygon(SQUARE)), {"type": "Feature"}], r"\[1\]\.geometry\.type"),
        (annotation(polygon([[0, 0], [1, 1]])), r"coordinates\[0\]: expected a ring of at least 3"),
        (annotation(polygon([[0, 0], [1, 0], [1, "a"]])), r"coordinates\[0\]\[2\]: expected two"),
        (annotation(polygon([[0, 0], [1, 0], [1, math.nan]])), r"coordinates\[0\]\[2\]"),
        (annotation({"type": "Polygon", "coordinates": []}), "at least one ring"),
        (annotation(polygon(SQUARE), classification=3), "properties.classification"),
        ({"type": "Feature", "geometry": None, "properties": []}, "geometry"),
    ],
)
def test_an_error_names_file_and_field(tmp_path: Path, document: Any, field: str) -> None:
    with pytest.raises(SlideError, match=field) as caught:
        read_regions(saved(tmp_path, document))
    assert "s1.geojson" in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe\x00", gzip.compress(b"{}" * 500)[:-9], b"\x1f\x8bxxxx"]
)
def test_what_is_no_json_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "s1.geojson"
    path.write_bytes(data)
    with pytest.raises(SlideError, match=r"s1\.geojson.*QuPath"):
        read_regions(str(path))


def test_found_tissue_survives_a_round_trip_through_qupath(tmp_path: Path) -> None:
    pixels = np.full((3_000, 4_000, 3), 244, dtype=np.uint8)
    y, x = np.mgrid[0:3_000, 0:4_000]
    distance = np.hypot(x - 2_000, y - 1_500)
    pixels[(distance < 1_200) & (distance > 500)] = (200, 120, 170)
    slide = FakeSlide(pixels)
    found = find_tissue(slide)
    uri = str(tmp_path / "s1.geojson")
    write_regions(uri, found.polygons)
    back = tissue_from_regions(slide, read_regions(uri))
    assert [len(region.holes) for region in found.polygons] == [1]
    assert np.array_equal(back.mask, found.mask)
    grids = [make_grid("s1", slide, 0.5, tissue) for tissue in (found, back)]
    assert np.array_equal(grids[0].coords, grids[1].coords)
