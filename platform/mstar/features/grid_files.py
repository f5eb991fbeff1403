"""The `coords` of grid and feature files: where the patches are, and how to read their pixels.

Everything of a `schema.Grid` is in the attributes, the first eight under TRIDENT's names. Patches
that could not be read are in a dataset of their own, with the reasons; they are never blank rows.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from mstar.features import hdf5
from mstar.features.hdf5 import Source, required, wrong
from mstar.schema import Grid

SCHEMA_VERSION = 1

_REDO = "Delete the file and run `mstar grid` or `mstar embed` again."

# attribute of `coords`, field of Grid, kind. The first eight are TRIDENT's, under its names.
GRID_ATTRIBUTES: tuple[tuple[str, str, type], ...] = (
    ("patch_size", "patch_px", int),
    ("patch_size_level0", "patch_size_l0", int),
    ("level0_magnification", "level0_magnification", float),
    ("target_magnification", "target_magnification", float),
    ("overlap", "overlap_px", int),
    ("name", "slide_id", str),
    ("level0_width", "width_l0", int),
    ("level0_height", "height_l0", int),
    ("mpp", "mpp", float),
    ("target_mpp", "target_mpp", float),
    ("effective_mpp", "effective_mpp", float),
    ("grid_mode", "grid_mode", str),
    ("read_level", "read_level", int),
    ("read_px", "read_px", int),
    ("output_px", "output_px", int),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unreadable:
    """Patches that were left out of a slide because their pixels could not be read."""

    coords: Int64[np.ndarray, "patch 2"] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    reasons: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of patches left out."""
        return len(self.coords)


def coords_digest(coords: Int64[np.ndarray, "patch 2"]) -> str:
    """The sha256 by which files and parts recognise their coordinates."""
    return hdf5.digest(np.asarray(coords, dtype="<i8").reshape(-1, 2))


def leave_out(grid: Grid, reasons: Mapping[int, str]) -> tuple[Grid, Unreadable]:
    """The grid without the rows named in `reasons`, and those rows with their reasons."""
    rows = sorted(reasons)
    kept = np.delete(grid.coords, rows, axis=0)
    left_out = Unreadable(
        coords=np.ascontiguousarray(grid.coords[rows]), reasons=tuple(reasons[row] for row in rows)
    )
    return dataclasses.replace(grid, coords=kept), left_out


def write_grid(path: Path, grid: Grid) -> None:
    """Writes a grid without features to a local file; a store puts it under its final name."""
    with hdf5.create(path) as file:
        write_coords(file, grid, Unreadable())


def write_coords(file: Any, grid: Grid, unreadable: Unreadable) -> None:
    """The part that grid and feature files share."""
    if grid.coords.ndim != 2 or grid.coords.shape[1] != 2 or grid.coords.dtype != np.int64:
        got = f"{grid.coords.dtype} {grid.coords.shape}"
        raise wrong(grid.slide_id, "coords", "int64 (N, 2)", got, "A grid is made by `make_grid`.")
    assert len(unreadable.reasons) == len(unreadable.coords)
    coords = file.create_dataset("coords", data=grid.coords.astype("<i8", copy=False))
    fields = ((key, kind(getattr(grid, name))) for key, name, kind in GRID_ATTRIBUTES)
    hdf5.write_attributes(coords, fields)
    ours: tuple[tuple[str, hdf5.Attribute], ...] = (
        ("schema_version", SCHEMA_VERSION),
        ("provenance", dump(dict(grid.provenance))),
        ("coords_sha256", coords_digest(grid.coords)),
        ("num_unreadable", len(unreadable)),
    )
    hdf5.write_attributes(coords, ours)
    left_out = file.create_dataset("unreadable", data=unreadable.coords.astype("<i8", copy=False))
    hdf5.write_attributes(left_out, (("reasons", dump(list(unreadable.reasons))),))


def read_grid(source: Source, *, name: str | None = None) -> Grid:
    """Reads the grid of a grid or feature file."""
    name = name or str(source)
    with hdf5.open_checked(source, name) as file:
        return read_coords(file, name)[0]


def read_coords(file: Any, name: str) -> tuple[Grid, Unreadable]:
    """Grid and left-out patches of an open file, checked."""
    item = hdf5.dataset(file, "coords", name)
    attributes = hdf5.plain_attributes(item)
    version = required(attributes, "schema_version", int, "coords", name)
    if version > SCHEMA_VERSION:
        raise wrong(name, "schema_version", f"at most {SCHEMA_VERSION}", version, "Update mstar.")
    if item.dtype != np.int64 or item.ndim != 2 or item.shape[1] != 2:
        raise wrong(name, "coords", "int64 (N, 2)", f"{item.dtype} {item.shape}", _REDO)
    coords = hdf5.read_all(item, "coords", name)
    stated = required(attributes, "coords_sha256", str, "coords", name)
    if coords_digest(coords) != stated:
        raise wrong(name, "digest of coords", stated, coords_digest(coords), _REDO)
    fields = {
        field_name: required(attributes, key, kind, "coords", name)
        for key, field_name, kind in GRID_ATTRIBUTES
    }
    provenance = json.loads(required(attributes, "provenance", str, "coords", name))
    return Grid(coords=coords, provenance=provenance, **fields), _read_unreadable(file, name)


def _read_unreadable(file: Any, name: str) -> Unreadable:
    """The left-out patches of an open file."""
    item = hdf5.dataset(file, "unreadable", name)
    attributes = hdf5.plain_attributes(item)
    reasons = json.loads(required(attributes, "reasons", str, "unreadable", name))
    coords = hdf5.read_all(item, "unreadable", name)
    if coords.shape != (len(reasons), 2):
        raise wrong(name, "unreadable", f"({len(reasons)}, 2), as its reasons", coords.shape, _REDO)
    return Unreadable(coords=coords, reasons=tuple(reasons))


def dump(value: object) -> str:
    """A value as JSON on one line, equal for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
