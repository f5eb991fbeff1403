"""TRIDENT: `20x_256px_0px_overlap/patches/<n>_patches.h5` and `…/features_<encoder>/<n>.h5`.

TRIDENT's `patch_size` is in pixels at the target magnification, and its footprint follows from two
magnifications. We write our measured footprint; where it differs from the one that TRIDENT would
derive (an exact mpp on a slide that is not exactly 20x or 40x), `misfit` says so.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mstar.errors import ConfigError
from mstar.features import hdf5
from mstar.features.files import PROVENANCE_FIELDS, SlideFeatures, provenance_attributes
from mstar.features.grid_files import GRID_ATTRIBUTES
from mstar.features.hdf5 import required
from mstar.features.layouts.contract import (
    Facts,
    ForeignFiles,
    ForeignSlide,
    as_coords,
    as_features,
    choose_mpp,
    folder_name,
    imported_grid,
    pick_encoder,
    unflat_name,
    with_rows,
    write_chunked,
)
from mstar.schema import Grid
from mstar.storage.objects import FileInfo

# Our encoder name -> TRIDENT's, where they differ.
ENCODER_NAMES = {"uni": "uni_v1"}

_FEATURES = re.compile(
    r"(?:(?P<run>.*)/)?(?:patch_)?features_(?P<encoder>[^/]+)/(?P<name>[^/]+)\.h5"
)
_COORDS = re.compile(r"(?:(?P<run>.*)/)?patches/(?P<name>[^/]+)_patches\.h5")
_TRIDENT_FIELDS = GRID_ATTRIBUTES[:8]


def run_folder(grid: Grid) -> str:
    """The folder of a grid's settings."""
    return f"{grid.target_magnification:g}x_{grid.patch_px}px_{grid.overlap_px}px_overlap"


def write(folder: Path, name: str, slide: SlideFeatures, encoder: str) -> list[str]:
    """Writes coordinates and features of a slide."""
    written = write_grid(folder, name, slide.grid)
    encoder = ENCODER_NAMES.get(encoder, encoder)
    rel = f"{run_folder(slide.grid)}/features_{folder_name(encoder)}/{name}.h5"
    path = folder / rel
    path.parent.mkdir(parents=True, exist_ok=True)
    with hdf5.create(path) as file:
        features = write_chunked(file, "features", slide.features, 1)
        coords = write_chunked(file, "coords", slide.grid.coords, 1)
        hdf5.write_attributes(coords, coords_attributes(slide.grid, name))
        theirs = (("name", name), ("savetodir", ""), ("encoder", encoder))
        hdf5.write_attributes(features, theirs)
        ours = provenance_attributes(slide.provenance)
        hdf5.write_attributes(features, (pair for pair in ours if pair[0] != "encoder"))
    return [*written, rel]


def write_grid(folder: Path, name: str, grid: Grid) -> list[str]:
    """Writes the coordinate file of a slide."""
    rel = f"{run_folder(grid)}/patches/{name}_patches.h5"
    path = folder / rel
    path.parent.mkdir(parents=True, exist_ok=True)
    with hdf5.create(path) as file:
        coords = write_chunked(file, "coords", grid.coords, 1)
        hdf5.write_attributes(coords, coords_attributes(grid, name))
    return [rel]


def coords_attributes(grid: Grid, name: str) -> list[tuple[str, hdf5.Attribute]]:
    """TRIDENT's attributes of `coords`, then the resolutions, which it does not look at."""
    fields = [(key, kind(getattr(grid, field))) for key, field, kind in _TRIDENT_FIELDS]
    named = [(key, name if key == "name" else _whole(value)) for key, value in fields]
    return [*named, ("savetodir", ""), ("mpp", grid.mpp), ("target_mpp", grid.target_mpp)]


def _whole(value: Any) -> Any:
    """Whole magnifications as integers, as TRIDENT has them."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def misfit(grid: Grid) -> str | None:
    """Why TRIDENT would read other pixels from our coordinates."""
    derived = int(grid.patch_px * grid.level0_magnification // grid.target_magnification)
    if derived == grid.patch_size_l0:
        return None
    return (
        f"a grid of mode {grid.grid_mode} has another footprint on level 0 than "
        "TRIDENT would derive from the magnifications"
    )


def find(
    features: Iterable[FileInfo], coords: Iterable[FileInfo], encoder: str | None
) -> list[ForeignFiles]:
    """Slides with features of one encoder in one run folder, and their coordinate files."""
    runs: dict[str, dict[str, tuple[str, str]]] = {}
    for info in features:
        match = _FEATURES.fullmatch(info.rel)
        if match:
            slides = runs.setdefault(match["encoder"], {})
            previous = slides.setdefault(match["name"], (match["run"] or "", info.uri))
            if previous[1] != info.uri:
                raise _several_runs(previous[0], match["run"] or "")
    wanted = ENCODER_NAMES.get(encoder, encoder) if encoder else None
    chosen = pick_encoder(runs, wanted)
    patches = {
        (match["run"] or "", match["name"]): info.uri
        for info in coords
        if (match := _COORDS.fullmatch(info.rel))
    }
    return [
        ForeignFiles(
            slide_id=unflat_name(name),
            features=uri,
            coords=patches.get((run, name)),
            encoder=encoder or our_name(chosen),
        )
        for name, (run, uri) in sorted(runs[chosen].items())
    ]


def _several_runs(first: str, second: str) -> Exception:
    """The error for a slide that two run folders hold."""
    return ConfigError(
        f"--from: expected one run folder, found {first!r} and {second!r}. Name one."
    )


def our_name(encoder: str) -> str:
    """Our name of an encoder that TRIDENT names."""
    return {theirs: ours for ours, theirs in ENCODER_NAMES.items()}.get(encoder, encoder)


def read(files: ForeignFiles, facts: Facts) -> ForeignSlide:
    """Reads a slide's features with their coordinates."""
    name = files.features
    with hdf5.open_checked(Path(name), name) as file:
        item = hdf5.dataset(file, "features", name)
        values = hdf5.read_all(item, "features", name)
        stated = hdf5.plain_attributes(item)
        rows = hdf5.dataset(file, "coords", name)
        coords = as_coords(hdf5.read_all(rows, "coords", name), name)
        attributes = hdf5.plain_attributes(rows)
    if "patch_size" in attributes:
        grid = grid_from(coords, attributes, facts, name)
    elif files.coords is not None:
        grid = with_rows(read_grid(Path(files.coords), facts), coords, name)
    else:
        required(attributes, "patch_size", int, "coords", name)
    encoder = stated.get("encoder")
    return ForeignSlide(
        grid=grid,
        features=as_features(values, len(grid), name),
        encoder=our_name(str(encoder)) if encoder else files.encoder,
        provenance={k: str(stated[k]) for k in PROVENANCE_FIELDS if k in stated},
    )


def read_grid(path: Path, facts: Facts) -> Grid:
    """Reads TRIDENT's coordinate file."""
    name = str(path)
    with hdf5.open_checked(path, name) as file:
        item = hdf5.dataset(file, "coords", name)
        coords = as_coords(hdf5.read_all(item, "coords", name), name)
        return grid_from(coords, hdf5.plain_attributes(item), facts, name)


def grid_from(coords: Any, attributes: dict[str, Any], facts: Facts, name: str) -> Grid:
    """A Grid from TRIDENT's attributes."""
    patch_px = required(attributes, "patch_size", int, "coords", name)
    magnification = required(attributes, "level0_magnification", float, "coords", name)
    target = required(attributes, "target_magnification", float, "coords", name)
    footprint = attributes.get("patch_size_level0") or patch_px * magnification // target
    return imported_grid(
        facts,
        coords,
        mpp=choose_mpp(facts, attributes.get("mpp"), magnification),
        layout="trident",
        patch_px=patch_px,
        patch_size_l0=int(footprint),
        overlap_px=int(attributes.get("overlap") or 0),
        target_mpp=attributes.get("target_mpp") or 10 / target,
        level0_magnification=magnification,
        target_magnification=target,
        size_l0=(
            int(attributes.get("level0_width") or 0),
            int(attributes.get("level0_height") or 0),
        ),
    )
