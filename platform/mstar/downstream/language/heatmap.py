"""Which patches of a slide are like a text: a picture, and tiles that QuPath opens."""

import colorsys
import gzip
import io
import json
from typing import Any

import numpy as np
from jaxtyping import Float32

from mstar.features.files import SlideFeatures
from mstar.slides.geojson import to_feature_collection
from mstar.storage import objects

_LONG_PX = 1200  # of the picture's longer side, at most
_LEVELS = 10  # of the tiles' classes, so that QuPath can show and hide them


def write_heatmap(
    folder: str, name: str, slide: SlideFeatures, scores: Float32[np.ndarray, " patch"], text: str
) -> tuple[str, str]:
    """Write <name>.png and <name>.geojson.gz; returns their addresses.

    Tiles are coloured by a patch's rank among the slide's own; numbers are the scores themselves:
    the cosine with the text, less that with another one where that is asked for.
    """
    png, tiles = (objects.join(folder, name + end) for end in (".png", ".geojson.gz"))
    objects.write_whole(png, heatmap_png(slide, scores, text))
    content = json.dumps(heatmap_tiles(slide, scores)).encode()
    objects.write_whole(tiles, gzip.compress(content, mtime=0))
    return png, tiles


def heatmap_tiles(slide: SlideFeatures, scores: Float32[np.ndarray, " patch"]) -> dict[str, Any]:
    """GeoJSON: a tile a patch, its class one of ten levels of rank, its score a measurement."""
    collection = to_feature_collection([], grid=slide.grid)
    for feature, score, share in zip(
        collection["features"], scores.tolist(), ranked(scores).tolist(), strict=True
    ):
        level = min(_LEVELS - 1, int(share * _LEVELS))
        red, green, blue = colorsys.hsv_to_rgb(0.66 * (1 - level / (_LEVELS - 1)), 0.85, 0.9)
        feature["properties"]["classification"] = {
            "name": f"similarity {level + 1} of {_LEVELS}",
            "color": [int(255 * red), int(255 * green), int(255 * blue)],
        }
        feature["properties"]["measurements"] = {"similarity": round(score, 6)}
    return collection


def heatmap_png(
    slide: SlideFeatures, scores: Float32[np.ndarray, " patch"], text: str, dpi: int = 110
) -> bytes:
    """The slide's patches in their places, coloured by their similarity with the text."""
    from matplotlib.figure import Figure

    grid = slide.grid
    size = grid.patch_size_l0
    low = grid.coords.min(0)
    places = np.rint((grid.coords - low) / size).astype(int)
    picture = np.full((int(places[:, 1].max()) + 1, int(places[:, 0].max()) + 1), np.nan)
    picture[places[:, 1], places[:, 0]] = scores
    height, width = picture.shape
    long_side = max(height, width, 4)
    figure = Figure(
        figsize=(2.2 + 6 * width / long_side, 0.9 + 6 * height / long_side), layout="constrained"
    )
    axes = figure.subplots()
    extent = (low[0], low[0] + size * width, low[1] + size * height, low[1])
    shown = axes.imshow(picture, cmap="viridis", extent=extent, interpolation="nearest")
    axes.set_title(_short(f"{grid.slide_id}: “{text}”"), fontsize=9)
    axes.set_xlabel("px, level 0", fontsize=8)
    axes.tick_params(labelsize=7)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="similarity of patch and text")
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=dpi, metadata={"Software": None})
    return sink.getvalue()


def ranked(scores: Float32[np.ndarray, " patch"]) -> Float32[np.ndarray, " patch"]:
    """Share of the slide's patches that are less like the text."""
    order = np.empty(len(scores), np.float32)
    order[np.argsort(scores, kind="stable")] = np.arange(len(scores), dtype=np.float32)
    return order / np.float32(len(scores))


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"
