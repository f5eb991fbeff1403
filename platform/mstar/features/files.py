"""Grid and feature files: one HDF5 per slide, readable by the field's tools as it is.

    coords      int64 (N, 2)   level-0 top-left (x, y) of each patch, TRIDENT's attributes and ours
    features    float (N, D)   same row order, contiguous; provenance in its attributes
    unreadable  int64 (M, 2)   patches left out because they could not be read, with the reasons

A grid file has no `features`. A slide without tissue has N = 0 and is a file like any other.
There are no time stamps and no paths inside, so equal work gives equal bytes (see `hdf5`).
The format is described in platform/docs/features.md and decided in adr/0002-feature-file-format.md.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32

from mstar import __version__
from mstar.errors import FeatureError
from mstar.features import hdf5
from mstar.features.grid_files import (
    SCHEMA_VERSION,
    Unreadable,
    coords_digest,
    dump,
    leave_out,
    read_coords,
    read_grid,
    write_coords,
    write_grid,
)
from mstar.features.hdf5 import Source, required, wrong
from mstar.schema import Grid

__all__ = [
    "SCHEMA_VERSION",
    "FeatureProvenance",
    "SlideFeatures",
    "Unreadable",
    "cast_features",
    "coords_digest",
    "leave_out",
    "map_features",
    "read_features",
    "read_grid",
    "read_into",
    "read_provenance",
    "write_features",
    "write_grid",
]

UNKNOWN = "unknown"

_REDO = "Delete the file and run `mstar embed` again."


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureProvenance:
    """What made a slide's features: enough to make them again, or to refuse mixing them."""

    encoder: str
    weights_sha256: str
    transform: str
    fingerprint: str  # of the store's configuration
    licence: str  # of the weights
    precision: str  # float32, bfloat16, …
    resize_kernel: str
    mstar_version: str = __version__
    extra: Mapping[str, str] = field(default_factory=dict)


# Everything of FeatureProvenance but `extra`, in the order of the attributes in the file.
PROVENANCE_FIELDS = tuple(f.name for f in dataclasses.fields(FeatureProvenance))[:-1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlideFeatures:
    """A slide's features with the grid rows they belong to."""

    grid: Grid
    features: Float[np.ndarray, "patch dim"]
    provenance: FeatureProvenance
    unreadable: Unreadable = field(default_factory=Unreadable)


def cast_features(
    features: Float[np.ndarray, "patch dim"], dtype: str = "float16"
) -> Float[np.ndarray, "patch dim"]:
    """Features as `dtype`, refused where a value is not finite or does not fit."""
    if dtype not in ("float16", "float32"):
        raise FeatureError(f"feature dtype: expected float16 or float32, got {dtype!r}")
    with np.errstate(over="ignore"):
        cast = features.astype(dtype, copy=False)
    finite = np.isfinite(cast).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        largest = float(np.abs(features[row].astype(np.float64)).max())
        raise FeatureError(
            f"features, row {row}: expected values that {dtype} can hold, got {largest:g}. "
            "Use --dtype float32, or check the weights if it is nan or inf."
        )
    return cast


def write_features(
    path: Path,
    grid: Grid,
    features: Float[np.ndarray, "patch dim"],
    provenance: FeatureProvenance,
    *,
    unreadable: Unreadable | None = None,
) -> None:
    """Writes a slide's features to a local file; a store puts it under its final name.

    Args:
        path: A file of one's own: it is visible while it is being written.
        grid: The rows that have features (see `leave_out` for a slide with unreadable patches).
        features: float16 or float32, stored as it is (see `cast_features`).
        provenance: What made the features.
        unreadable: The patches left out.
    """
    if features.ndim != 2 or len(features) != len(grid):
        expected, got = f"({len(grid)}, D), a row per patch", f"{features.shape}"
        raise wrong(grid.slide_id, "features", expected, got, "Leave unreadable rows out of both.")
    features = cast_features(features, features.dtype.name)
    with hdf5.create(path) as file:
        write_coords(file, grid, unreadable or Unreadable())
        item = file.create_dataset("features", data=features)
        hdf5.write_attributes(item, provenance_attributes(provenance))
        hdf5.write_attributes(
            item,
            (
                ("dtype", features.dtype.name),
                ("coords_sha256", coords_digest(grid.coords)),
                ("features_sha256", hdf5.digest(features)),
            ),
        )


def provenance_attributes(provenance: FeatureProvenance) -> list[tuple[str, str]]:
    """Provenance as attributes, in their fixed order."""
    known = [(name, str(getattr(provenance, name))) for name in PROVENANCE_FIELDS]
    return [*known, ("extra", dump(dict(provenance.extra)))]


def read_features(
    source: Source, *, name: str | None = None, check: Literal["fast", "full"] = "fast"
) -> SlideFeatures:
    """Reads a feature file into memory.

    Args:
        source: A local path, or the bytes of a file.
        name: What errors call the file; its path when not given.
        check: `fast` checks names, shapes, types and the coordinates' digest; `full` also the
            features' digest and that every value is finite.
    """
    name = name or str(source)
    with hdf5.open_checked(source, name) as file:
        grid, unreadable = read_coords(file, name)
        item = _features_dataset(file, grid, name)
        attributes = hdf5.plain_attributes(item)
        features = hdf5.read_all(item, "features", name)
    if check == "full":
        _check_values(features, attributes, name)
    provenance = provenance_from(attributes, name)
    return SlideFeatures(grid=grid, features=features, provenance=provenance, unreadable=unreadable)


def read_provenance(source: Source, *, name: str | None = None) -> FeatureProvenance:
    """Reads what made a feature file, without its rows."""
    name = name or str(source)
    with hdf5.open_checked(source, name) as file:
        item = hdf5.dataset(file, "features", name)
        return provenance_from(hdf5.plain_attributes(item), name)


def map_features(path: Path) -> Float[np.ndarray, "patch dim"]:
    """The features as a read-only view of the file's own pages: nothing is copied or read yet."""
    return _map(path, "r")


def read_into(
    path: Path, buffer: Float32[np.ndarray, "capacity dim"]
) -> Float32[np.ndarray, "patch dim"]:
    """Copies a slide's features into the head of a buffer kept for the purpose, and returns it.

    A new array costs a page fault every 4 KiB, which is most of the time of a load; a buffer that
    is used again costs none.
    """
    import torch  # here, since most readers of this package never need it

    # Copy-on-write rather than read-only, which torch warns of; nothing is written, so none copied.
    rows = _map(path, "c")
    if len(rows) > len(buffer) or rows.shape[1] != buffer.shape[1]:
        expected = f"at most {buffer.shape[0]} rows of {buffer.shape[1]}"
        raise wrong(str(path), "features", expected, rows.shape, "Use a larger buffer.")
    head = buffer[: len(rows)]
    # numpy widens float16 value by value, eight times slower than torch.
    torch.from_numpy(head).copy_(torch.from_numpy(np.asarray(rows)))
    return head


def _map(path: Path, mode: Literal["r", "c"]) -> Float[np.ndarray, "patch dim"]:
    """The features as a view of the file's own pages."""
    name = str(path)
    with hdf5.open_checked(path, name) as file:
        item = hdf5.dataset(file, "features", name)
        shape, dtype, chunks = item.shape, item.dtype, item.chunks
        offset = item.id.get_offset()
    _check_dtype(dtype, name)
    if chunks is not None:
        way_out = "Import the file with `mstar import`."
        raise wrong(name, "features", "contiguous rows", f"chunks of {chunks}", way_out)
    if offset is None:  # no row, so no storage
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode=mode, offset=offset, shape=shape)


def _features_dataset(file: Any, grid: Grid, name: str) -> Any:
    """The dataset `features` of an open file, its shape, type and digest of coords checked."""
    item = hdf5.dataset(file, "features", name)
    _check_dtype(item.dtype, name)
    if item.ndim != 2 or item.shape[0] != len(grid):
        raise wrong(name, "features", f"({len(grid)}, D), a row per patch", item.shape, _REDO)
    attributes = hdf5.plain_attributes(item)
    stated = required(attributes, "coords_sha256", str, "features", name)
    if stated != coords_digest(grid.coords):
        way_out = "The features were made for other coordinates. " + _REDO
        raise wrong(name, "digest of coords", coords_digest(grid.coords), stated, way_out)
    return item


def _check_dtype(dtype: Any, name: str) -> None:
    """Refuses features of a type that this package never writes."""
    if dtype not in (np.float16, np.float32):
        raise wrong(name, "features", "float16 or float32", dtype, _REDO)


def _check_values(features: np.ndarray, attributes: Mapping[str, Any], name: str) -> None:
    """Refuses features whose bytes changed since they were written, or that are not finite."""
    stated = required(attributes, "features_sha256", str, "features", name)
    if hdf5.digest(features) != stated:
        raise wrong(name, "digest of features", stated, hdf5.digest(features), _REDO)
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise wrong(name, "features", "finite values", f"row {int(np.argmin(finite))}", _REDO)


def provenance_from(attributes: Mapping[str, Any], name: str) -> FeatureProvenance:
    """Provenance from the attributes of `features`."""
    known = {key: required(attributes, key, str, "features", name) for key in PROVENANCE_FIELDS}
    return FeatureProvenance(**known, extra=json.loads(str(attributes.get("extra") or "{}")))
