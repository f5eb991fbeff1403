"""Scores as GeoJSON that QuPath opens: an object for each patch, its scores as measurements.

A patch is a tile (or a detection, which QuPath can measure and classify further) with

    classification   one of ten levels of the shown layer's percentile, with its colour
    measurements     of every layer its score and its percentile
"""

import gzip
import json
from typing import Any

from mstar.evidence.palette import LEVELS, level_colour, level_of
from mstar.evidence.scores import PatchScores, SlideScores
from mstar.slides.geojson import TileType, patch_features
from mstar.storage import objects


def write_tiles(
    uri: str,
    scores: SlideScores,
    *,
    shown: PatchScores,
    object_type: TileType = "tile",
    offset_l0: tuple[int, int] = (0, 0),
) -> None:
    """Write the collection, compressed; equal scores give equal bytes.

    offset_l0: the corner that the reader's own view begins at (`mstar.slides.geojson`).
    """
    collection = tiles(scores, shown=shown, object_type=object_type, offset_l0=offset_l0)
    content = json.dumps(collection).encode()
    objects.write_whole(uri, gzip.compress(content, mtime=0))


def tiles(
    scores: SlideScores,
    *,
    shown: PatchScores,
    object_type: TileType = "tile",
    offset_l0: tuple[int, int] = (0, 0),
) -> dict[str, Any]:
    """The collection; what made it, and the warning, are a member of it that readers pass over."""
    classes = [
        {"name": f"{label(shown)} {level + 1} of {LEVELS}", "color": list(level_colour(level))}
        for level in range(LEVELS)
    ]
    listed = [
        (label(layer), layer.values.tolist(), layer.percentile.tolist()) for layer in scores.layers
    ]
    features = []
    squares = patch_features(
        scores.coords_l0, scores.patch_size_l0, object_type=object_type, offset_l0=offset_l0
    )
    for at, (square, level) in enumerate(zip(squares, level_of(shown.percentile), strict=True)):
        square["properties"]["classification"] = classes[level]
        measured = square["properties"]["measurements"] = {}
        for name, values, percentile in listed:
            measured[name] = float(f"{values[at]:.6g}")
            measured[f"{name} percentile"] = round(percentile[at], 3)
        features.append(square)
    made = {"slide_id": scores.slide_id, "made_by": scores.made_by, "warning": scores.warning}
    return {"type": "FeatureCollection", "mstar": made, "features": features}


def label(layer: PatchScores) -> str:
    """A layer's name for people."""
    kind = layer.kind.replace("_", " ")
    return f"{kind}: {layer.class_name}" if layer.class_name else kind
