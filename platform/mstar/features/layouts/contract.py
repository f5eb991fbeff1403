"""What every layout shares: what it is asked, what it gives, and how its names are made.

A layout is a table row (`layouts.LAYOUTS`) of five functions. Writers put a slide's files below a
local folder; readers take local files. Moving them to and from buckets is `exchange`'s business.
"""

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from mstar.errors import ConfigError, FeatureError, MppError
from mstar.features import hdf5
from mstar.features.files import SlideFeatures
from mstar.features.hdf5 import wrong
from mstar.schema import Grid
from mstar.storage.objects import FileInfo

_LOWEST_MPP, _HIGHEST_MPP = 0.05, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the caller knows of a slide that a foreign file may not say."""

    slide_id: str
    mpp: float | None = None  # level 0
    patch_size_l0: int | None = None
    mpp_from_objective: bool = False  # take 10 / magnification where nothing better is known
    coords_optional: bool = False  # features without coordinates are taken


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignFiles:
    """The files of one slide in a foreign folder, as addresses or as local paths."""

    slide_id: str
    features: str  # vectors, with or without coordinates
    rows: str | None = None  # the coordinates in the vectors' order, without attributes
    coords: str | None = None  # the coordinate file, with attributes
    encoder: str | None = None  # by the folder's name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ForeignSlide:
    """One slide read from a foreign layout."""

    grid: Grid
    features: Float[np.ndarray, "patch dim"]
    encoder: str | None = None  # as the file names it
    provenance: dict[str, str] = field(default_factory=dict)  # ours, where we wrote the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One tool's way to lay out a cohort.

    write: puts a slide's files below a folder and returns their names there.
    write_grid: the same for a grid without features; None where the tool has no such file.
    find: tells a listing's files apart into slides; None for no encoder asked for.
    read: reads one slide from local files.
    misfit: why the tool would read other pixels from our coordinates than we did, None if it would
        not.
    """

    name: str
    flat: bool  # slide ids with folders become one name
    keeps_empty: bool  # a slide without tissue has a file
    names_encoder: bool  # the encoder can be told from the files
    write: Callable[[Path, str, SlideFeatures, str], list[str]]
    write_grid: Callable[[Path, str, Grid], list[str]] | None
    find: Callable[[Iterable[FileInfo], Iterable[FileInfo], str | None], list[ForeignFiles]]
    read: Callable[[ForeignFiles, Facts], ForeignSlide]
    misfit: Callable[[Grid], str | None]


def flat_name(slide_id: str) -> str:
    """A slide id as one file name, reversibly: `/` becomes `%2F`, `%` becomes `%25`."""
    return slide_id.replace("%", "%25").replace("/", "%2F")


def unflat_name(name: str) -> str:
    """The slide id that `flat_name` made a name of."""
    return name.replace("%2F", "/").replace("%25", "%")


def folder_name(encoder: str) -> str:
    """An encoder's name as one folder name (`timm:resnet50.a1_in1k` has a colon)."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", encoder)


def pick_encoder(found: Iterable[str], wanted: str | None) -> str:
    """The one encoder folder to read; several without a choice, or none, are a ConfigError."""
    names = sorted(set(found))
    matching = [n for n in names if wanted is None or n in (wanted, folder_name(wanted))]
    if len(matching) == 1:
        return matching[0]
    asked = "one" if wanted is None else repr(wanted)
    raise ConfigError(
        f"encoder folder: expected {asked}, found {names or 'none'}. "
        "Check --from and --layout, and say which with --encoder."
    )


def choose_mpp(
    facts: Facts, stated: float | None, magnification: float | None
) -> tuple[float, str]:
    """A slide's mpp and where it is from: the caller, the file, or the magnification if allowed."""
    derived = 10 / magnification if magnification and facts.mpp_from_objective else None
    options = ((facts.mpp, "caller"), (stated, "file"), (derived, "magnification"))
    for mpp, source in options:
        if mpp is not None:
            if not _LOWEST_MPP <= mpp <= _HIGHEST_MPP:
                raise MppError(
                    f"{facts.slide_id}: mpp: expected {_LOWEST_MPP} to {_HIGHEST_MPP}, got {mpp} "
                    f"from the {source}. State the right one with --slide-mpp."
                )
            return mpp, source
    way_out = "State it with --slide-mpp" + (
        ", or pass --missing-mpp from-objective." if magnification else "."
    )
    raise MppError(f"{facts.slide_id}: mpp: expected in the file, got nothing. {way_out}")


def imported_grid(
    facts: Facts,
    coords: Any,
    *,
    mpp: tuple[float, str],
    layout: str,
    patch_px: int,
    patch_size_l0: int,
    overlap_px: int = 0,
    read_level: int = 0,
    read_px: int | None = None,
    output_px: int | None = None,
    target_mpp: float | None = None,
    level0_magnification: float | None = None,
    target_magnification: float | None = None,
    size_l0: tuple[int, int] = (0, 0),
) -> Grid:
    """A Grid from a foreign file; what the file leaves open follows from its footprint."""
    mpp_l0, source = mpp
    output_px = output_px or patch_px
    effective_mpp = mpp_l0 * patch_size_l0 / output_px
    target_mpp = target_mpp or mpp_l0 * patch_size_l0 / patch_px
    return Grid(
        slide_id=facts.slide_id,
        coords=as_coords(coords, facts.slide_id),
        grid_mode="imported",
        patch_px=patch_px,
        patch_size_l0=patch_size_l0,
        overlap_px=overlap_px,
        read_level=read_level,
        read_px=read_px or patch_size_l0,
        output_px=output_px,
        mpp=mpp_l0,
        target_mpp=target_mpp,
        effective_mpp=effective_mpp,
        level0_magnification=level0_magnification or 10 / mpp_l0,
        target_magnification=target_magnification or 10 / target_mpp,
        width_l0=size_l0[0],
        height_l0=size_l0[1],
        provenance={"imported_from": layout, "mpp_source": source},
    )


def as_coords(values: Any, name: str) -> Int64[np.ndarray, "patch 2"]:
    """Foreign coordinates as int64 (N, 2); old files hold floats, which are rounded."""
    array = np.asarray(values)
    if array.size == 0:
        return np.empty((0, 2), np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or not np.isfinite(array).all():
        raise wrong(name, "coords", "finite (N, 2)", array.shape, "The file is damaged.")
    if np.issubdtype(array.dtype, np.floating):
        array = np.rint(array)
    return np.ascontiguousarray(array, dtype=np.int64)


def as_features(values: Any, num_patches: int, name: str) -> Float[np.ndarray, "patch dim"]:
    """Foreign vectors as float16 or float32 (N, D), a row per patch."""
    array = np.asarray(values)
    if array.ndim != 2 and array.size == 0:  # TRIDENT's empty slide of unknown width
        array = array.reshape(0, 0)
    if array.ndim != 2 or len(array) != num_patches:
        expected = f"({num_patches}, D), a row per coordinate"
        raise wrong(name, "features", expected, array.shape, "Leave the slide out or redo it.")
    if array.dtype in (np.float16, np.float32):
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise wrong(name, "features", "floating point", array.dtype, "Is --layout right?")
    return array.astype(np.float32)


def with_rows(grid: Grid, rows: Int64[np.ndarray, "patch 2"], name: str) -> Grid:
    """The grid with the coordinates of a feature file, in that file's order.

    Rows of two files are matched by coordinate, never by position: their orders may differ.
    """
    known = {tuple(row) for row in grid.coords.tolist()}
    strange = [tuple(row) for row in rows.tolist() if tuple(row) not in known]
    if strange:
        expected, got = "rows of the coordinate file", f"{len(strange)} others, first {strange[0]}"
        raise wrong(name, "coords", expected, got, "The two files are not of one run.")
    return replace(grid, coords=rows)


def write_chunked(file: Any, field_name: str, values: np.ndarray, rows_per_chunk: int) -> Any:
    """A dataset as these tools write it: chunked by rows, and open to more of them."""
    width = values.shape[1]
    if width == 0:  # HDF5 has no chunk of width 0
        return file.create_dataset(field_name, data=values)
    return file.create_dataset(
        field_name, data=values, chunks=(rows_per_chunk, width), maxshape=(None, width)
    )


def read_coords_rows(path: Path, name: str) -> Int64[np.ndarray, "patch 2"]:
    """The bare coordinates of any file with a dataset `coords`."""
    with hdf5.open_checked(path, name) as file:
        return as_coords(hdf5.read_all(hdf5.dataset(file, "coords", name), "coords", name), name)


def bare_grid(facts: Facts, rows: Int64[np.ndarray, "patch 2"], layout: str, name: str) -> Grid:
    """A Grid from coordinates that say nothing but where they are."""
    if facts.patch_size_l0 is None:
        way_out = "Add the coordinate files (--coords), or state --patch-size-l0."
        raise wrong(name, "patch size", "in a coordinate file", "none", way_out)
    mpp = choose_mpp(facts, None, None)
    size = facts.patch_size_l0
    return imported_grid(facts, rows, mpp=mpp, layout=layout, patch_px=size, patch_size_l0=size)


def save_tensor(path: Path, features: Float[np.ndarray, "patch dim"]) -> None:
    """Writes features as a `.pt` of one float32 tensor."""
    import torch  # here, since most readers of this package never need it

    # Through memory, since torch writes a file's own name into it.
    buffer = io.BytesIO()
    torch.save(torch.from_numpy(features.astype(np.float32)), buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def load_tensor(path: Path, name: str) -> np.ndarray:
    """Reads a `.pt` that holds one tensor; anything that needs pickle's powers is refused."""
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler meets in a damaged file
        raise wrong(name, "file", "one tensor", f"{type(error).__name__}: {error}", "") from error
    if not isinstance(loaded, torch.Tensor):
        raise FeatureError(f"{name}: content: expected one tensor, got {type(loaded).__name__}.")
    if loaded.dtype not in (torch.float16, torch.float32):
        loaded = loaded.float()  # numpy has no bfloat16
    return np.asarray(loaded.numpy())
