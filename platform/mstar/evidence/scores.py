"""Scores of a slide's patches, and their file: what pictures, tiles and pages are made from.

    scores.parquet     x_l0, y_l0, then of each layer a pair of columns
                       score:<layer>        as the model gives it, float32
                       percentile:<layer>   0 … 100 among the slide's own patches, float32

A layer is one number per patch: its kind ("attention"), and the class (or group of genes) where it
has one; its name is `kind` or `kind:class`. All else is JSON in the file's metadata (`HEADER`).
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64

from mstar import __version__
from mstar.errors import FeatureError
from mstar.schema import RESEARCH_ONLY, Grid
from mstar.storage import objects

FILE = "scores.parquet"
HEADER = b"mstar.scores"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchScores:
    """One number per patch, and where it stands among the slide's patches.

    kind: what the number is, as "attention" (`explain.py` has the table).
    class_name: the class or group that it speaks of; empty where it speaks of none.
    values: raw. percentile: 0 … 100, share of the slide's patches below, half of the equal ones.
    """

    kind: str
    class_name: str = ""
    values: Float32[np.ndarray, " patch"]
    percentile: Float32[np.ndarray, " patch"]

    @property
    def name(self) -> str:
        """The layer's name in files: kind, or kind:class."""
        return f"{self.kind}:{self.class_name}" if self.class_name else self.kind

    @classmethod
    def of(
        cls, kind: str, values: Float32[np.ndarray, " patch"], class_name: str = ""
    ) -> "PatchScores":
        """A layer, its percentiles worked out."""
        return cls(kind=kind, class_name=class_name, values=values, percentile=percentiles(values))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlideScores:
    """All layers of one slide.

    slide_uri: the slide's file, empty where it is not known. Its pixels may be out of reach.
    coords_l0: top-left corners (x, y) on level 0. patch_size_l0: their side there.
    width_l0, height_l0, mpp: of level 0. layers: the first is what pictures show by default.
    made_by: the model, encoder, methods, feature store: whatever the scores rest on.
    """

    slide_id: str
    slide_uri: str
    coords_l0: Int64[np.ndarray, "patch 2"]
    patch_size_l0: int
    width_l0: int
    height_l0: int
    mpp: float
    layers: tuple[PatchScores, ...]
    made_by: Mapping[str, Any] = field(default_factory=dict)
    mstar_version: str = __version__
    warning: str = RESEARCH_ONLY

    def __len__(self) -> int:
        """Number of patches."""
        return len(self.coords_l0)

    @classmethod
    def on(
        cls,
        grid: Grid,
        layers: tuple[PatchScores, ...],
        *,
        slide_uri: str = "",
        made_by: Mapping[str, Any],
    ) -> "SlideScores":
        """The scores of a grid's patches."""
        return cls(
            slide_id=grid.slide_id,
            slide_uri=slide_uri,
            coords_l0=grid.coords,
            patch_size_l0=grid.patch_size_l0,
            width_l0=grid.width_l0,
            height_l0=grid.height_l0,
            mpp=grid.mpp,
            layers=layers,
            made_by=made_by,
        )


def percentiles(values: Float32[np.ndarray, " patch"]) -> Float32[np.ndarray, " patch"]:
    """0 … 100: the share of patches below, and half of the equal ones; of one patch alone, 50."""
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, side="left")
    up_to = np.searchsorted(ordered, values, side="right")
    return ((below + up_to) * (50.0 / len(values))).astype(np.float32)


def write_scores(uri: str, scores: SlideScores) -> None:
    """Write a slide's scores whole."""
    columns: dict[str, Any] = {"x_l0": scores.coords_l0[:, 0], "y_l0": scores.coords_l0[:, 1]}
    for layer in scores.layers:
        columns[f"score:{layer.name}"] = layer.values
        columns[f"percentile:{layer.name}"] = layer.percentile
    assert len(columns) == 2 + 2 * len(scores.layers)  # names of layers differ
    header = {name: getattr(scores, name) for name in _HEADER_FIELDS}
    layers = [{"kind": one.kind, "class_name": one.class_name} for one in scores.layers]
    text = json.dumps({"schema_version": SCHEMA_VERSION, **header, "layers": layers})
    sink = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata({HEADER: text.encode()}), sink)
    objects.write_whole(uri, sink.getvalue())


def read_scores(uri: str) -> SlideScores:
    """Read a slide's scores.

    Raises:
        FeatureError: the file is none of `mstar heatmap`, or of a newer one.
    """
    try:
        table = pq.read_table(io.BytesIO(objects.read_bytes(uri)))
        header = json.loads((table.schema.metadata or {})[HEADER])
        if header["schema_version"] > SCHEMA_VERSION:
            raise FeatureError(f"{uri}: schema {header['schema_version']} is newer. Update mstar.")
        layers = tuple(_layer(table, one) for one in header["layers"])
        coords = np.stack([_column(table, "x_l0"), _column(table, "y_l0")], axis=1)
        fields = {name: header[name] for name in _HEADER_FIELDS}
    except (FileNotFoundError, pa.ArrowInvalid, KeyError, ValueError) as error:
        raise FeatureError(
            f"{uri}: expected the scores of a slide, as `mstar heatmap` writes them, got {error!r}"
        ) from error
    return SlideScores(**fields, coords_l0=coords, layers=layers)


_HEADER_FIELDS = ("slide_id", "slide_uri", "patch_size_l0", "width_l0", "height_l0", "mpp",
                  "made_by", "mstar_version", "warning")  # fmt: skip


def _layer(table: pa.Table, said: Mapping[str, str]) -> PatchScores:
    name = ":".join(filter(None, (said["kind"], said["class_name"])))
    return PatchScores(
        kind=said["kind"],
        class_name=said["class_name"],
        values=_column(table, f"score:{name}"),
        percentile=_column(table, f"percentile:{name}"),
    )


def _column(table: pa.Table, name: str) -> Any:
    return table.column(name).to_numpy()
