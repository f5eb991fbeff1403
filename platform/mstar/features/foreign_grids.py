"""Other tools' coordinate files as grids, told apart by what is inside."""

from dataclasses import replace
from pathlib import Path

from mstar.features import hdf5
from mstar.features.grid_files import read_grid
from mstar.features.layouts import clam, stamp, trident
from mstar.features.layouts.contract import Facts, bare_grid, read_coords_rows
from mstar.schema import Grid


def read_foreign_grid(
    path: Path,
    *,
    slide_id: str | None = None,
    mpp: float | None = None,
    patch_size_l0: int | None = None,
    mpp_from_objective: bool = False,
) -> Grid:
    """Reads any known coordinate or feature file as a Grid, told apart by what is inside.

    Ours keep their grid mode; those of TRIDENT, CLAM, STAMP and mSTAR become `imported`.

    Args:
        path: The local file.
        slide_id: The slide's id; the file's stem when not given.
        mpp: Level-0 microns per pixel, where the file does not say it.
        patch_size_l0: Patch side on level 0, where the file does not say it.
        mpp_from_objective: Take 10 / magnification where no mpp is known.
    """
    name = str(path)
    facts = Facts(
        slide_id=slide_id or path.stem.removesuffix("_patches"),
        mpp=mpp,
        patch_size_l0=patch_size_l0,
        mpp_from_objective=mpp_from_objective,
    )
    kind = _recognise(path, name)
    if kind == "mstar_platform":
        grid = read_grid(path)
        return replace(grid, slide_id=slide_id) if slide_id else grid
    if kind == "bare":
        return bare_grid(facts, read_coords_rows(path, name), "bare coordinates", name)
    readers = {"trident": trident.read_grid, "clam": clam.read_grid, "stamp": stamp.read_grid}
    return readers[kind](path, facts)


def _recognise(path: Path, name: str) -> str:
    """Which tool wrote a coordinate file, by its datasets and attributes."""
    with hdf5.open_checked(path, name) as file:
        if "feats" in file or "patch_embeddings" in file:
            return "stamp"
        attributes = hdf5.plain_attributes(hdf5.dataset(file, "coords", name))
        if "grid_mode" in attributes:
            return "mstar_platform"
        if {"patch_size", "level0_magnification", "target_magnification"} <= attributes.keys():
            return "trident"
        if "patch_level" in attributes or "imgs" in file:
            return "clam"
    return "bare"
