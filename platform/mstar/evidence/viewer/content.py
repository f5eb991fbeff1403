"""What the page is given: the slide, the tiles' geometry, patches, scores, sentences.

All of it is one script, `data.js`, for a page opened from a disk may not fetch files. Numbers of
patches are little-endian arrays in base64: 32-bit integers and floats.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from mstar import __version__
from mstar.errors import FeatureError
from mstar.evidence.palette import palette
from mstar.evidence.scores import PatchScores, SlideScores
from mstar.evidence.viewer.deepzoom import DeepZoom
from mstar.evidence.viewer.sentences import Nearest
from mstar.schema import RESEARCH_ONLY

DATA_NAME = "MSTAR_VIEW"
COLOURS = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """The scores of one kind and class, and the file that they are from."""

    scores: PatchScores
    source: str
    made_by: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ViewContent:
    """What the page shows.

    mpp: of level 0; none: not known. coords_l0, patch_size_l0: of the patches; (0, 2) of none.
    facts: further rows for the page's foot.
    """

    slide_id: str
    mpp: float | None
    zoom: DeepZoom
    coords_l0: Int64[np.ndarray, "patch 2"]
    patch_size_l0: int
    layers: tuple[Layer, ...] = ()
    nearest: Nearest | None = None
    facts: tuple[tuple[str, str], ...] = ()


def layers_of(files: Mapping[str, SlideScores]) -> tuple[Layer, ...]:
    """The layers of some files of scores.

    Raises:
        FeatureError: the files are of different slides or grids.
    """
    made: list[Layer] = []
    first: tuple[str, SlideScores] | None = None
    for uri, scores in files.items():
        first = first or (uri, scores)
        check_alike(first[0], first[1], uri, scores)
        made += [Layer(scores=one, source=uri, made_by=scores.made_by) for one in scores.layers]
    return tuple(made)


def check_alike(a: str, one: SlideScores, b: str, other: SlideScores) -> None:
    """Raises FeatureError unless both are of the same patches of the same slide."""
    for name in ("slide_id", "width_l0", "height_l0", "patch_size_l0"):
        if getattr(one, name) != getattr(other, name):
            raise FeatureError(
                f"{b}: expected {name} {getattr(one, name)} as in {a}, got "
                f"{getattr(other, name)}. View them apart."
            )
    if not np.array_equal(one.coords_l0, other.coords_l0):
        raise FeatureError(f"{b}: expected the patches of {a}, got others. View them apart.")


def data_script(content: ViewContent) -> str:
    """`data.js`; equal content gives equal bytes."""
    zoom = content.zoom
    told: dict[str, Any] = {
        "warning": RESEARCH_ONLY,
        "version": __version__,
        "slide": {
            "id": content.slide_id,
            "width_l0": zoom.width_l0,
            "height_l0": zoom.height_l0,
            "mpp": content.mpp,
        },
        "image": {
            "width": zoom.width,
            "height": zoom.height,
            "downsample": zoom.downsample,
            "tile_px": zoom.tile_px,
            "overlap_px": zoom.overlap_px,
            "max_level": zoom.max_level,
        },
        "patches": {
            "count": len(content.coords_l0),
            "size_l0": content.patch_size_l0,
            "x": packed(content.coords_l0[:, 0], "<i4"),
            "y": packed(content.coords_l0[:, 1], "<i4"),
        },
        "layers": [
            {**_layer(one), "label": label}
            for one, label in zip(content.layers, labels(content.layers), strict=True)
        ],
        "ramp": packed(_ramp(), "u1"),
        "sentences": _sentences(content.nearest),
        "facts": [list(row) for row in content.facts],
    }
    text = json.dumps(told, sort_keys=True)  # ASCII only
    return f"window.{DATA_NAME} = {text};\n"


def labels(layers: Sequence[Layer]) -> list[str]:
    """What each layer is called on the page; equal names get their file's number."""
    names = [one.scores.name for one in layers]
    sources = list(dict.fromkeys(one.source for one in layers))
    return [
        name if names.count(name) == 1 else f"{name} (file {sources.index(one.source) + 1})"
        for name, one in zip(names, layers, strict=True)
    ]


def packed(values: Any, kind: str) -> str:
    """Numbers as base64."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode()


def _ramp() -> UInt8[np.ndarray, "colour 3"]:
    """From low to high, the colours of all our pictures."""
    places = np.linspace(0, len(palette()) - 1, COLOURS).round().astype(int)
    shades: UInt8[np.ndarray, "colour 3"] = palette()[places]
    return shades


def _layer(layer: Layer) -> dict[str, Any]:
    return {
        "kind": layer.scores.kind,
        "class_name": layer.scores.class_name,
        "source": layer.source.rpartition("/")[2],
        "made_by": [[name, _shown(value)] for name, value in layer.made_by.items()],
        "values": packed(layer.scores.values, "<f4"),
        "percentile": packed(layer.scores.percentile, "<f4"),
    }


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sentences(nearest: Nearest | None) -> dict[str, Any] | None:
    if nearest is None:
        return None
    return {
        "texts": list(nearest.texts),
        "cases": list(nearest.cases),
        "shown": nearest.index.shape[1],
        "index": packed(nearest.index, "<i4"),
        "similarity": packed(nearest.similarity, "<f4"),
        "chosen_from": nearest.num_chosen_from,
        "in_reports": nearest.num_sentences,
        "space": nearest.space,
    }
