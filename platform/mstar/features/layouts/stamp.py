"""STAMP 2.x: `<extractor>/<slide path>.h5` with `feats` float16 and `coords` in microns.

STAMP refuses files of a newer version than itself, so the oldest version with these attributes is
written. Its files do not say the slide's own mpp, without which microns cannot become pixels: we
add it as `mstar_slide_mpp`, and for others' files it has to be stated.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mstar.features import hdf5
from mstar.features.files import PROVENANCE_FIELDS, SlideFeatures, provenance_attributes
from mstar.features.hdf5 import required, wrong
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
)
from mstar.schema import Grid
from mstar.storage import objects
from mstar.storage.objects import FileInfo

STAMP_VERSION = "2.1.0"  # the first with tile_size_um and tile_size_px

_DEFAULT_TILE_PX = 224
_HISTORIC_TILE_UM = 256.0


def write(folder: Path, name: str, slide: SlideFeatures, encoder: str) -> list[str]:
    """Writes the one file of a slide."""
    grid = slide.grid
    rel = f"{folder_name(encoder)}/{name}.h5"
    path = folder / rel
    path.parent.mkdir(parents=True, exist_ok=True)
    with hdf5.create(path) as file:
        file.create_dataset("coords", data=(grid.coords * grid.mpp).astype(np.float32))
        file.create_dataset("feats", data=slide.features.astype(np.float16))
        theirs: tuple[tuple[str, hdf5.Attribute], ...] = (
            ("stamp_version", STAMP_VERSION),
            ("extractor", encoder),
            ("unit", "um"),
            ("tile_size_um", grid.patch_size_l0 * grid.mpp),
            ("tile_size_px", grid.patch_px),
            ("code_hash", slide.provenance.fingerprint),
            ("feat_type", "tile"),
            ("mstar_slide_mpp", grid.mpp),
        )
        hdf5.write_attributes(file, theirs)
        ours = provenance_attributes(slide.provenance)
        hdf5.write_attributes(file, ((f"mstar_{key}", value) for key, value in ours))
    return [rel]


def misfit(grid: Grid) -> str | None:
    """STAMP has no coordinate files to read again, so nothing can go wrong there."""
    return None


def find(
    features: Iterable[FileInfo], coords: Iterable[FileInfo], encoder: str | None
) -> list[ForeignFiles]:
    """Slides by their path below the extractor's folder, which is `--from` or lies in it."""
    infos = sorted((i for i in features if i.rel.endswith(".h5")), key=lambda info: info.rel)
    if not infos:
        pick_encoder((), encoder)
    extractor = _first_extractor(infos)
    tops = {info.rel.partition("/")[0] for info in infos}
    if not _is_extractor_folder(infos[0].rel, extractor):
        return [_foreign(info, "", encoder or extractor) for info in infos]
    top = pick_encoder(tops, _folder_of(tops, encoder))
    below = [info for info in infos if info.rel.startswith(f"{top}/")]
    extractor = _first_extractor(below)
    return [_foreign(info, f"{top}/", encoder or extractor) for info in below]


def _foreign(info: FileInfo, prefix: str, encoder: str | None) -> ForeignFiles:
    """The one file of a slide, named by its path below `prefix`."""
    slide_id = info.rel.removeprefix(prefix).removesuffix(".h5")
    return ForeignFiles(slide_id=slide_id, features=info.uri, encoder=encoder)


def _first_extractor(infos: Iterable[FileInfo]) -> str | None:
    """The extractor of the first file that names one; a broken file must not hide the rest."""
    return next((name for name in map(_extractor, (i.uri for i in infos)) if name), None)


def _extractor(uri: str) -> str | None:
    """The extractor that a file names, None when it does not or is not whole."""
    try:
        with objects.open_read(uri) as stream, h5py.File(stream, "r") as file:
            name = hdf5.plain_attributes(file).get("extractor")
    except OSError:
        return None
    return str(name) if name else None


def _is_extractor_folder(rel: str, extractor: str | None) -> bool:
    """Whether a path starts with `<extractor>` or `<extractor>-<hash>`."""
    top, slash, _ = rel.partition("/")
    if not slash or extractor is None:
        return False
    folder = folder_name(extractor)
    return top == folder or top.startswith(f"{folder}-")


def _folder_of(tops: set[str], encoder: str | None) -> str | None:
    """The folder of an encoder, whose name may end in a hash."""
    matching = [top for top in tops if encoder and _is_extractor_folder(f"{top}/", encoder)]
    return matching[0] if len(matching) == 1 else encoder


def read(files: ForeignFiles, facts: Facts) -> ForeignSlide:
    """Reads a slide's features with their coordinates."""
    name = files.features
    with hdf5.open_checked(Path(name), name) as file:
        attributes = hdf5.plain_attributes(file)
        grid = _grid(file, attributes, facts, name)
        values = hdf5.read_all(hdf5.dataset(file, "feats", name), "feats", name)
    ours = {key: str(attributes.get(f"mstar_{key}") or "") for key in PROVENANCE_FIELDS}
    extractor = attributes.get("extractor")
    return ForeignSlide(
        grid=grid,
        features=as_features(values, len(grid), name),
        encoder=str(extractor) if extractor else files.encoder,
        provenance={key: value for key, value in ours.items() if value},
    )


def read_grid(path: Path, facts: Facts) -> Grid:
    """Reads the coordinates of a STAMP feature file."""
    name = str(path)
    with hdf5.open_checked(path, name) as file:
        return _grid(file, hdf5.plain_attributes(file), facts, name)


def _grid(file: Any, attributes: dict[str, Any], facts: Facts, name: str) -> Grid:
    """A Grid from an open STAMP file, of this or an older version."""
    if "coords" not in file and "patch_embeddings" in file:
        way_out = "Such old files hold no coordinates: tile the slides again."
        raise wrong(name, "coords", "present", "only `patch_embeddings`", way_out)
    coords_um = hdf5.read_all(hdf5.dataset(file, "coords", name), "coords", name)
    coords_um, tile_um, tile_px = _in_microns(coords_um.astype(np.float64), attributes, name)
    mpp = choose_mpp(facts, attributes.get("mstar_slide_mpp"), None)
    return imported_grid(
        facts,
        as_coords(coords_um / mpp[0], name),
        mpp=mpp,
        layout="stamp",
        patch_px=tile_px,
        patch_size_l0=round(tile_um / mpp[0]),
        target_mpp=tile_um / tile_px,
    )


def _in_microns(
    coords: np.ndarray, attributes: dict[str, Any], name: str
) -> tuple[np.ndarray, float, int]:
    """Coordinates and tile side in microns, and the side in pixels, whatever the file's age."""
    if attributes.get("unit") == "um":
        key = "tile_size_um" if "tile_size_um" in attributes else "tile_size"
        tile_um = required(attributes, key, float, "the file", name)
        return coords, tile_um, int(attributes.get("tile_size_px") or _DEFAULT_TILE_PX)
    # Before there were units, a tile of 256 um was 224 steps wide.
    return coords / _DEFAULT_TILE_PX * _HISTORIC_TILE_UM, _HISTORIC_TILE_UM, _DEFAULT_TILE_PX
