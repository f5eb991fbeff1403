"""Regions to and from GeoJSON as QuPath writes it.

Coordinates are level-0 pixels, y down. QuPath crops a slide that states a scanned area (MRXS and
some others) to it when it opens it through OpenSlide: its origin is then the upper left corner of
`bounds_l0`. Give that corner as `offset_l0` to write for, or read from, a cropped view; the default
(0, 0) is for an uncropped one.
"""

import gzip
import json
import logging
import math
import uuid
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from mstar.errors import SlideError
from mstar.schema import Grid
from mstar.slides.regions import Region
from mstar.storage import objects

log = logging.getLogger(__name__)

TISSUE_RGB = (0, 160, 80)
TILE_RGB = (60, 100, 200)
TileType = Literal["tile", "detection"]
ID_NAMESPACE = uuid.UUID("6f2cf4f0-6d53-5d6b-9a3e-2f1a0e6b7c11")  # ids follow from the content


def write_regions(
    uri: str,
    regions: Sequence[Region],
    *,
    grid: Grid | None = None,
    name: str = "tissue",
    offset_l0: tuple[int, int] = (0, 0),
) -> None:
    """Writes regions as annotations, and the patches of a grid as tiles; `.gz` is compressed.

    The annotations have the class Tissue and are called `name` 1, 2, …
    """
    text = json.dumps(to_feature_collection(regions, grid=grid, name=name, offset_l0=offset_l0))
    data = text.encode()
    objects.write_whole(uri, gzip.compress(data, mtime=0) if uri.endswith(".gz") else data)


def to_feature_collection(
    regions: Sequence[Region],
    *,
    grid: Grid | None = None,
    name: str = "tissue",
    offset_l0: tuple[int, int] = (0, 0),
) -> dict[str, Any]:
    """The GeoJSON of regions (annotations) and of a grid's patches (tiles)."""
    features: list[dict[str, Any]] = []
    for number, region in enumerate(regions, start=1):
        rings = [region.outer, *region.holes]
        features.append(
            _feature(rings, "annotation", f"{name} {number}", ("Tissue", TISSUE_RGB), offset_l0)
        )
    if grid is not None:
        features += patch_features(grid.coords, grid.patch_size_l0, offset_l0=offset_l0)
    return {"type": "FeatureCollection", "features": features}


def patch_features(
    coords_l0: Int64[np.ndarray, "patch 2"],
    size_l0: int,
    *,
    object_type: TileType = "tile",
    offset_l0: tuple[int, int] = (0, 0),
) -> Iterator[dict[str, Any]]:
    """A square feature for each patch, in their order, of class Patch."""
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * size_l0
    for index, corner in enumerate(coords_l0):
        ring = corner + square
        yield _feature([ring], object_type, f"patch {index}", ("Patch", TILE_RGB), offset_l0)


def _feature(
    rings: Sequence[Int64[np.ndarray, "_ 2"]],
    object_type: str,
    name: str,
    classification: tuple[str, tuple[int, int, int]],
    offset_l0: tuple[int, int],
) -> dict[str, Any]:
    """One QuPath object; its rings are closed, and its id is a digest of what it says."""
    open_rings = [(ring - np.array(offset_l0)).tolist() for ring in rings]
    coordinates = [[*ring, ring[0]] for ring in open_rings]
    label, color = classification
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(ID_NAMESPACE, json.dumps([object_type, name, coordinates]))),
        "geometry": {"type": "Polygon", "coordinates": coordinates},
        "properties": {
            "objectType": object_type,
            "name": name,
            "classification": {"name": label, "color": list(color)},
            "isLocked": False,
        },
    }


def read_regions(
    uri: str, *, classes: Sequence[str] = (), offset_l0: tuple[int, int] = (0, 0)
) -> tuple[Region, ...]:
    """The areas annotated in a file; `classes` keeps only annotations of these classes.

    Takes a FeatureCollection, a list of Features, one Feature or a bare geometry, gzipped or not,
    in QuPath's present and older forms. Tiles, detections and cells are no annotations; classes
    ending in `*` are those that QuPath ignores. Points and lines enclose nothing and are passed
    over. `crs` is ignored: coordinates are pixels.

    Raises:
        SlideError: the file cannot be read as such; the message names the file and the field.
    """
    regions: list[Region] = []
    passed_over: list[str] = []
    for where, feature in _features(_parse(uri), uri):
        if _is_wanted(feature, classes, f"{uri}: {where}"):
            for kind, polygon, field in _polygons(
                feature.get("geometry"), f"{where}.geometry", uri
            ):
                if kind in ("Polygon", "MultiPolygon"):
                    regions += _region(polygon, offset_l0, f"{uri}: {field}")
                else:
                    passed_over.append(f"{field} ({kind})")
    if passed_over:
        log.warning("%s: no area in %s; passed over", uri, ", ".join(passed_over))
    return tuple(regions)


def _parse(uri: str) -> Any:
    """The JSON of a file, gzipped or not."""
    try:
        data = objects.read_bytes(uri)
        return json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise SlideError(
            f"{uri}: cannot be read as GeoJSON ({error}); expected an export of QuPath:"
            " File > Export objects as GeoJSON"
        ) from error


def _features(document: Any, uri: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every feature with the name of its place in the file."""
    if isinstance(document, list):
        items, place = document, ""
    elif not isinstance(document, dict):
        raise _wrong(f"{uri}: content", "an object or a list", document)
    elif document.get("type") == "FeatureCollection":
        items, place = _listed(document.get("features"), f"{uri}: features"), "features"
    elif document.get("type") == "Feature":
        items, place = [document], ""
    elif "coordinates" in document or "geometries" in document:
        items, place = [{"type": "Feature", "geometry": document}], ""
    else:
        kinds = "FeatureCollection, Feature or a list of Features"
        raise _wrong(f"{uri}: type", kinds, document.get("type"))
    for index, item in enumerate(items):
        if not isinstance(item, dict) or item.get("type") != "Feature":
            raise _wrong(f"{uri}: {place}[{index}]", "an object of type Feature", item)
        yield f"{place}[{index}]", item


def _is_wanted(feature: dict[str, Any], classes: Sequence[str], where: str) -> bool:
    """Whether a feature is an annotation, of a class that counts."""
    properties = feature.get("properties") or {}
    if not isinstance(properties, dict):
        raise _wrong(f"{where}.properties", "an object", properties)
    kind = properties.get("objectType") or properties.get("object_type") or feature.get("id") or ""
    kind = str(kind).lower().removeprefix("path").removesuffix("object")
    if kind in ("tile", "detection", "cell"):
        return False
    named = properties.get("classification") or {}
    if isinstance(named, str):
        named = {"name": named}
    if not isinstance(named, dict):
        raise _wrong(f"{where}.properties.classification", "an object or a name", named)
    parts = named.get("names") or [named.get("name") or ""]
    label = ": ".join(str(part) for part in parts)
    return not label.endswith("*") and (not classes or label in classes)


def _polygons(geometry: Any, field: str, uri: str) -> Iterator[tuple[str, Any, str]]:
    """The polygons of a geometry as (kind, rings, place); other kinds come with no rings."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind == "GeometryCollection":
        for index, part in enumerate(_listed(geometry.get("geometries"), f"{uri}: {field}")):
            yield from _polygons(part, f"{field}.geometries[{index}]", uri)
    elif kind == "MultiPolygon":
        place = f"{field}.coordinates"
        for index, rings in enumerate(_listed(geometry.get("coordinates"), f"{uri}: {place}")):
            yield kind, rings, f"{place}[{index}]"
    elif kind == "Polygon":
        yield kind, geometry.get("coordinates"), f"{field}.coordinates"
    elif kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        yield kind, None, field
    else:
        raise _wrong(f"{uri}: {field}.type", "Polygon or MultiPolygon", kind or geometry)


def _region(rings: Any, offset_l0: tuple[int, int], where: str) -> list[Region]:
    """The region of a polygon's rings; none when rounding to pixels leaves no area."""
    read = [
        _ring(ring, f"{where}[{index}]") + np.array(offset_l0)
        for index, ring in enumerate(_listed(rings, where))
    ]
    if not read:
        raise _wrong(where, "at least one ring", rings)
    outer, *holes = read
    if len(outer) < 3:
        return []
    return [Region(outer=outer, holes=tuple(hole for hole in holes if len(hole) >= 3))]


def _ring(points: Any, where: str) -> Int64[np.ndarray, "_ 2"]:
    """A ring in whole pixels, without the repeated last point."""
    listed = _listed(points, where)
    if len(listed) < 3:
        raise _wrong(where, "a ring of at least 3 points", points)
    for index, point in enumerate(listed):
        if not (isinstance(point, list) and len(point) >= 2 and all(map(_is_number, point))):
            raise _wrong(f"{where}[{index}]", "two finite numbers", point)
    ring = np.rint(np.array([point[:2] for point in listed], dtype=np.float64)).astype(np.int64)
    changes = np.any(ring != np.roll(ring, -1, axis=0), axis=1)  # the closing point is none
    return ring[changes]


def _is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _listed(value: Any, where: str) -> list[Any]:
    """The value, if it is a list."""
    if not isinstance(value, list):
        raise _wrong(where, "a list", value)
    return value


def _wrong(where: str, expected: str, got: Any) -> SlideError:
    """The error for one field of a file."""
    shown = repr(got)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return SlideError(
        f"{where}: expected {expected}; got {shown}; export it again from QuPath as GeoJSON"
        " (a FeatureCollection of annotations)"
    )
