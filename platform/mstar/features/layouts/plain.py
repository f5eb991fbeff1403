"""Features that somebody computed: one array a slide, coordinates beside it or not at all.

<slide_id>.npy | .pt | .h5     (patch, dim); in HDF5 the dataset features, feats or the only 2-d
                               one that is not coords
<slide_id>_coords.npy | .csv   (patch, 2) in the rows' order: x, y on level 0; or `coords` in
                               the HDF5 file
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from mstar.features import hdf5
from mstar.features.coordless import coordless_grid
from mstar.features.files import SlideFeatures
from mstar.features.hdf5 import wrong
from mstar.features.layouts.contract import (
    Facts,
    ForeignFiles,
    ForeignSlide,
    as_coords,
    as_features,
    bare_grid,
    load_tensor,
)
from mstar.schema import Grid
from mstar.storage.objects import FileInfo

SUFFIXES = (".npy", ".pt", ".h5", ".hdf5")
COORDS = ("_coords.npy", "_coords.csv")
_NAMES = ("features", "feats", "embeddings", "patch_embeddings")


def write(folder: Path, name: str, slide: SlideFeatures, encoder: str) -> list[str]:
    """Writes an array, and the coordinates where they are known."""
    path = folder / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, slide.features, allow_pickle=False)
    if not slide.grid.has_coords:
        return [f"{name}.npy"]
    np.save(folder / f"{name}_coords.npy", slide.grid.coords, allow_pickle=False)
    return [f"{name}.npy", f"{name}_coords.npy"]


def misfit(grid: Grid) -> str | None:
    """Nothing is read from pixels by these files."""
    return None


def find(
    features: Iterable[FileInfo], coords: Iterable[FileInfo], encoder: str | None
) -> list[ForeignFiles]:
    """Every array below the folder; its slide id is its path without the extension."""
    places = {}
    for info in coords:
        for end in COORDS:
            if info.rel.endswith(end):
                places[info.rel.removesuffix(end)] = info.uri
    found = {}
    for info in features:
        suffix = next((end for end in SUFFIXES if info.rel.endswith(end)), None)
        if suffix is not None and not info.rel.endswith(COORDS):
            slide_id = info.rel.removesuffix(suffix)
            place = places.get(slide_id)
            found[slide_id] = ForeignFiles(
                slide_id=slide_id, features=info.uri, coords=place, encoder=encoder
            )
    return [found[slide_id] for slide_id in sorted(found)]


def read(files: ForeignFiles, facts: Facts) -> ForeignSlide:
    """Reads a slide; without coordinates its grid says so."""
    values, rows = _values(files.features)
    if files.coords is not None:
        rows = _coords(Path(files.coords))
    if rows is None:
        grid = coordless_grid(facts.slide_id, len(values), layout="plain", mpp=facts.mpp or 0.0)
    else:
        grid = bare_grid(facts, rows, "plain", files.features)
    features = as_features(values, len(grid), files.features)
    return ForeignSlide(grid=grid, features=features, encoder=files.encoder)


def _values(name: str) -> tuple[np.ndarray, Int64[np.ndarray, "patch 2"] | None]:
    """The array of a file, and the coordinates that are in it."""
    path = Path(name)
    if path.suffix == ".pt":
        return _rows(load_tensor(path, name)), None
    if path.suffix == ".npy":
        return _rows(_array(path)), None
    with hdf5.open_checked(path, name) as file:
        item = _dataset(file, name)
        values = _rows(np.asarray(hdf5.read_all(item, item.name, name)))
        if "coords" not in file:
            return values, None
        return values, as_coords(hdf5.read_all(file["coords"], "coords", name), name)


def _dataset(file: Any, name: str) -> Any:
    for known in _NAMES:
        if known in file:
            return hdf5.dataset(file, known, name)
    others = [key for key in file if key != "coords"]
    if len(others) == 1:
        return hdf5.dataset(file, others[0], name)
    way_out = "Rename the dataset to features."
    raise wrong(name, "dataset", f"one of {', '.join(_NAMES)}", ", ".join(file) or "none", way_out)


def _rows(values: np.ndarray) -> np.ndarray:
    """(patch, dim), also of files that keep a leading axis of one slide."""
    return values[0] if values.ndim == 3 and len(values) == 1 else values


def _array(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, OSError, EOFError) as error:
        raise wrong(str(path), "file", "one array (.npy)", str(error), "Write it again.") from error


def _coords(path: Path) -> Int64[np.ndarray, "patch 2"]:
    """Coordinates of a `.npy`, or of a CSV with the columns x and y."""
    if path.suffix == ".npy":
        return as_coords(_array(path), str(path))
    try:
        names = path.read_text().partition("\n")[0].strip().lower().split(",")
        columns = [names.index("x"), names.index("y")]
        rows = np.loadtxt(path, delimiter=",", skiprows=1, usecols=columns, ndmin=2)
    except ValueError as error:
        raise wrong(str(path), "columns", "x and y, numbers", str(error), "Correct it.") from error
    return as_coords(rows, str(path))
