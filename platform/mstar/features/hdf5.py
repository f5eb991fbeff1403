"""HDF5 with the two habits this package needs: deterministic writing, and errors that teach.

Deterministic means: the same arrays and attributes give the same bytes, whenever and wherever they
are written with the same HDF5 library. The oldest file format is asked for, because the newer ones
stamp times into every object; it is also the one that every reader understands.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mstar.errors import FeatureError

# Page-aligned data can be mapped into memory as it lies; it costs at most two pages a file.
_ALIGNMENT_BYTES = 4096
_MAX_DEPTH = 8

Source = Path | io.BytesIO
Attribute = str | int | float | np.ndarray


def wrong(name: str, field: str, expected: object, got: object, way_out: str) -> FeatureError:
    """The error for one field of one file, in the package's one form."""
    return FeatureError(f"{name}: {field}: expected {expected}, got {got}. {way_out}")


@contextmanager
def create(path: Path) -> Iterator[Any]:
    """Opens a new HDF5 file for writing, with deterministic bytes."""
    with h5py.File(
        path,
        "w",
        libver="earliest",
        alignment_threshold=_ALIGNMENT_BYTES,
        alignment_interval=_ALIGNMENT_BYTES,
    ) as file:
        yield file


@contextmanager
def open_checked(source: Source, name: str) -> Iterator[Any]:
    """Opens an HDF5 file for reading; what is not one, or only part of one, is a FeatureError."""
    # Finished files never change, and file locks are what network file systems fail at.
    options = {"locking": False} if isinstance(source, Path) else {}
    try:
        file = h5py.File(source, "r", **options)
    except FileNotFoundError as error:
        raise wrong(name, "file", "an HDF5 file", "no such file", "Check the path.") from error
    except OSError as error:
        raise wrong(
            name,
            "file",
            "a whole HDF5 file",
            _diagnose(source, error),
            "Delete the file and run the job that wrote it again.",
        ) from error
    with file:
        refuse_other_files(file, name)
        yield file


def refuse_other_files(group: Any, name: str, depth: int = 0) -> None:
    """Raises FeatureError where a file would have other files of this machine read in its place.

    HDF5 lets a file from a stranger name any path: as a link, as raw storage, as a virtual dataset;
    and a group lie in itself.
    """
    if depth > _MAX_DEPTH:
        raise wrong(name, group.name, f"at most {_MAX_DEPTH} levels", "more", "Write it anew.")
    for key in group:
        link = group.get(key, getlink=True)
        found = "" if isinstance(link, h5py.HardLink) else type(link).__name__
        child = None if found else group[key]
        if isinstance(child, h5py.Dataset) and (child.external or child.is_virtual):
            found = "data in another file"
        if found:
            way_out = "Copy the data into the file itself (h5repack does)."
            raise wrong(name, key, "data of its own", found, way_out)
        if isinstance(child, h5py.Group):
            refuse_other_files(child, name, depth + 1)


def _diagnose(source: Source, error: OSError) -> str:
    """What is wrong with a file that HDF5 refuses, from its first bytes."""
    if isinstance(source, Path):
        if source.is_dir():
            return "a folder"
        with source.open("rb") as file:
            head = file.read(8)
    else:
        source.seek(0)
        head = source.read(8)
    if not head:
        return "an empty file"
    if head != b"\x89HDF\r\n\x1a\n":
        return f"a file that starts with {head!r}, which is not HDF5"
    return f"a truncated or damaged one ({error})"


def write_attributes(item: Any, attributes: Iterable[tuple[str, Attribute]]) -> None:
    """Writes attributes in the order given, since the order decides the bytes."""
    for key, value in attributes:
        item.attrs[key] = value


def dataset(file: Any, field: str, name: str) -> Any:
    """The dataset `field`; a file without it is refused with what it holds instead."""
    found = file.get(field)
    if not isinstance(found, h5py.Dataset):
        raise wrong(name, f"dataset `{field}`", "present", f"only {sorted(file)}", "Is it ours?")
    return found


def read_all(item: Any, field: str, name: str) -> np.ndarray:
    """All rows of a dataset; unreadable ones (a damaged file) are a FeatureError."""
    try:
        return np.asarray(item[()])
    except OSError as error:
        raise wrong(
            name,
            f"dataset `{field}`",
            "readable rows",
            str(error),
            "The file is damaged: delete it and run the job that wrote it again.",
        ) from error


def plain_attributes(item: Any) -> dict[str, Any]:
    """Attributes as plain Python values; TRIDENT's `'None'` becomes None."""
    return {key: _plain(value) for key, value in item.attrs.items()}


def _plain(value: Any) -> Any:
    """One attribute value as str, int, float, list or None."""
    if isinstance(value, bytes | np.bytes_):
        value = value.decode("utf-8", "replace")
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    return None if isinstance(value, str) and value == "None" else value


def required(attributes: Mapping[str, Any], key: str, kind: type, owner: str, name: str) -> Any:
    """One attribute, converted to `kind`; missing or of another kind is a FeatureError."""
    value = attributes.get(key)
    try:
        if value is None:
            raise TypeError("missing")
        return kind(value)
    except (TypeError, ValueError) as error:
        got = "nothing" if value is None else repr(value)
        way_out = "The file was not written by this package, or is damaged."
        raise wrong(name, f"attribute `{key}` of `{owner}`", kind.__name__, got, way_out) from error


def digest(array: np.ndarray) -> str:
    """The sha256 of an array's shape, type and little-endian bytes."""
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    hasher = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    hasher.update(array.view(np.uint8).data if array.size else b"")
    return hasher.hexdigest()
