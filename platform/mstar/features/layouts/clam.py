"""CLAM: `patches/<id>.h5`, `h5_files/<id>.h5` and `pt_files/<id>.pt`.

CLAM's `patch_size` is in pixels of `patch_level`, so its coordinate file is honest about a
footprint only on a pyramid level. We always write level 0 with the footprint there: the geometry is
exact. The pixels are ours only where the grid reads level 0 unresampled (`misfit` says so).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mstar.features import hdf5
from mstar.features.coordless import coordless_grid
from mstar.features.files import SlideFeatures
from mstar.features.hdf5 import required, wrong
from mstar.features.layouts.contract import (
    Facts,
    ForeignFiles,
    ForeignSlide,
    as_coords,
    as_features,
    bare_grid,
    choose_mpp,
    imported_grid,
    load_tensor,
    read_coords_rows,
    save_tensor,
    unflat_name,
    with_rows,
    write_chunked,
)
from mstar.schema import Grid
from mstar.storage.objects import FileInfo


def write(folder: Path, name: str, slide: SlideFeatures, encoder: str) -> list[str]:
    """Writes coordinates, features and tensor of a slide; CLAM has no place for the encoder."""
    written = write_grid(folder, name, slide.grid)
    path = folder / "h5_files" / f"{name}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with hdf5.create(path) as file:
        write_chunked(file, "features", slide.features.astype(np.float32), 32)
        write_chunked(file, "coords", slide.grid.coords.astype(np.int32), 32)
    save_tensor(folder / "pt_files" / f"{name}.pt", slide.features)
    return [*written, f"h5_files/{name}.h5", f"pt_files/{name}.pt"]


def write_grid(folder: Path, name: str, grid: Grid) -> list[str]:
    """Writes the coordinate file of a slide."""
    path = folder / "patches" / f"{name}.h5"
    write_coords(path, grid, name)
    return [f"patches/{name}.h5"]


def write_coords(path: Path, grid: Grid, name: str) -> None:
    """Writes a grid as CLAM's coordinate file, on level 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    level_dim = np.array([grid.width_l0, grid.height_l0], np.int64)
    with hdf5.create(path) as file:
        coords = write_chunked(file, "coords", grid.coords, 1)
        hdf5.write_attributes(
            coords,
            (
                ("patch_size", grid.patch_size_l0),
                ("patch_level", 0),
                ("downsample", np.array([1.0, 1.0])),
                ("downsampled_level_dim", level_dim),
                ("level_dim", level_dim),
                ("name", name),
                ("save_path", ""),  # a path of the writing machine: of no use to a reader
                ("mpp", grid.mpp),  # ours; CLAM does not look at it
            ),
        )


def misfit(grid: Grid) -> str | None:
    """Why CLAM would read other pixels from our coordinates."""
    if grid.read_level == 0 and grid.output_px == grid.read_px:
        return None
    return (
        f"a grid of mode {grid.grid_mode} resamples level {grid.read_level} to "
        f"{grid.target_mpp:g} mpp; CLAM would read the same footprint from level 0 as it is"
    )


def find(
    features: Iterable[FileInfo], coords: Iterable[FileInfo], encoder: str | None
) -> list[ForeignFiles]:
    """Slides with an h5 or a pt file, and their coordinate files."""
    h5, pt = {}, {}
    for info in features:
        folder, _, file = info.rel.rpartition("/")
        if folder.rpartition("/")[2] == "h5_files" and file.endswith(".h5"):
            h5[file.removesuffix(".h5")] = info.uri
        if folder.rpartition("/")[2] == "pt_files" and file.endswith(".pt"):
            pt[file.removesuffix(".pt")] = info.uri
    patches = find_coords(coords)
    return [
        ForeignFiles(
            slide_id=unflat_name(name),
            features=h5.get(name) or pt[name],
            coords=patches.get(name),
            encoder=encoder,
        )
        for name in sorted(h5.keys() | pt.keys())
    ]


def find_coords(infos: Iterable[FileInfo]) -> dict[str, str]:
    """Coordinate files by the name of their slide."""
    found = {}
    for info in infos:
        folder, _, file = info.rel.rpartition("/")
        if folder.rpartition("/")[2] in ("patches", "") and file.endswith(".h5"):
            found[file.removesuffix(".h5")] = info.uri
    return found


def read(files: ForeignFiles, facts: Facts) -> ForeignSlide:
    """Reads a slide; the features' own coordinates decide the order of rows."""
    grid = read_grid(Path(files.coords), facts) if files.coords else None
    if files.features.endswith(".pt"):
        values = load_tensor(Path(files.features), files.features)
        rows = read_coords_rows(Path(files.rows), files.rows) if files.rows else None
    else:
        with hdf5.open_checked(Path(files.features), files.features) as file:
            item = hdf5.dataset(file, "features", files.features)
            values = hdf5.read_all(item, "features", files.features)
        rows = read_coords_rows(Path(files.features), files.features)
    if grid is None and rows is None and facts.coords_optional:
        grid = coordless_grid(facts.slide_id, len(values), layout="clam", mpp=facts.mpp or 0.0)
    else:
        grid = _join(grid, rows, facts, files)
    return ForeignSlide(
        grid=grid,
        features=as_features(values, len(grid), files.features),
        encoder=files.encoder,
    )


def _join(grid: Grid | None, rows: Any, facts: Facts, files: ForeignFiles) -> Grid:
    """One grid from the coordinate file, the rows beside the features, or both."""
    if rows is None:
        if grid is None:
            way_out = (
                "Name the folder of the coordinate files with --coords, or do without them "
                "(--missing-coords allow): then no targets and no heatmaps."
            )
            raise wrong(files.features, "coords", "a coordinate file", "none", way_out)
        return grid
    if grid is None:
        return bare_grid(facts, rows, "clam", files.features)
    return with_rows(grid, rows, files.features)


def read_grid(path: Path, facts: Facts) -> Grid:
    """Reads CLAM's coordinate file, new or old (`imgs`)."""
    name = str(path)
    with hdf5.open_checked(path, name) as file:
        item = hdf5.dataset(file, "coords", name)
        attributes = hdf5.plain_attributes(item)
        if "patch_level" not in attributes and "imgs" in file:
            images = file["imgs"]
            attributes = hdf5.plain_attributes(images) | {"patch_size": images.shape[1]}
        coords = hdf5.read_all(item, "coords", name)
    return grid_from(as_coords(coords, name), attributes, facts, name)


def grid_from(coords: Any, attributes: dict[str, Any], facts: Facts, name: str) -> Grid:
    """A Grid from CLAM's attributes.

    The footprint is what a read on `patch_level` covers. CLAM itself steps by the *truncated*
    downsample, so on a level of 3.9998 its patches overlap a little; the coordinates say so.
    """
    size_px = required(attributes, "patch_size", int, "coords", name)
    level = required(attributes, "patch_level", int, "coords", name)
    downsample = _first(attributes.get("downsample"), 1.0 if level == 0 else None)
    if downsample is None:
        required(attributes, "downsample", float, "coords", name)
    assert downsample is not None
    custom = int(attributes.get("custom_downsample") or 1)
    dims = attributes.get("level_dim") or [0, 0]
    return imported_grid(
        facts,
        coords,
        mpp=choose_mpp(facts, attributes.get("mpp"), None),
        layout="clam",
        patch_px=size_px // custom,
        patch_size_l0=round(size_px * downsample),
        read_level=level,
        read_px=size_px,
        size_l0=(round(dims[0] * downsample), round(dims[1] * downsample)),
    )


def _first(value: Any, default: float | None) -> float | None:
    """A number, or the first of a pair."""
    if value is None:
        return default
    return float(value[0] if isinstance(value, list) else value)
