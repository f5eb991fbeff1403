"""Stores: a folder or bucket prefix of slide files that one configuration made.

    <root>/store.json               what the store is; created once, by conditional write
    <root>/<slide_id>.h5            one finished slide, whole or absent; slide ids may hold folders
    <root>/_state/                  claims and parts of work in progress
    <root>/_grids/<slide_id>.hdf5   grids made on the fly, a grid store of its own
    <root>/failures/                the failure ledger

A slide is done when its name is listed: nothing is opened to tell. That is safe because one store
holds one configuration, so `store.json` is checked once and another configuration is refused.
"""

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from mstar.errors import FeatureError, ManifestError
from mstar.features import files
from mstar.features import parts as slide_parts
from mstar.features.files import FeatureProvenance, SlideFeatures, Unreadable
from mstar.features.hdf5 import wrong
from mstar.features.store_record import (
    GRIDS,
    RESERVED,
    StoreRecord,
    claim_store,
    list_ids,
    new_record,
    read_record,
)
from mstar.schema import Grid
from mstar.storage import objects
from mstar.storage.manifest import check_slide_id

Content = TypeVar("Content")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureStore:
    """The features of a cohort's slides, made by one encoder under one configuration."""

    root: str
    record: StoreRecord
    writable: bool

    @classmethod
    def open_or_create(cls, root: str, config: Any) -> "FeatureStore":
        """Opens the store of this configuration, or creates it where there is none."""
        record = claim_store(root, new_record("features", ".h5", config))
        return cls(root=root, record=record, writable=True)

    @classmethod
    def open(cls, root: str) -> "FeatureStore":
        """Opens an existing store for reading."""
        return cls(root=root, record=read_record(root, "features"), writable=False)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the store's configuration."""
        return self.record.fingerprint

    def slide_uri(self, slide_id: str) -> str:
        """Where the slide's file is, or will be."""
        return _slide_uri(self.root, slide_id, self.record.suffix)

    def done_ids(self) -> Iterator[str]:
        """The ids of all finished slides, told by their names while the listing streams in."""
        return list_ids(self.root, self.record.suffix)

    def has(self, slide_id: str) -> bool:
        """Whether the slide is finished."""
        return objects.exists(self.slide_uri(slide_id))

    def write(
        self,
        slide_id: str,
        grid: Grid,
        features: Float[np.ndarray, "patch dim"],
        provenance: FeatureProvenance,
        *,
        unreadable: Unreadable | None = None,
    ) -> bool:
        """Puts a finished slide under its name, unless it is there already.

        Equal work gives equal bytes, so losing a race changes nothing; should the bytes there
        differ, they stay, and `verify` is what tells.

        Returns:
            Whether this call wrote the file.
        """
        _check_writable(self.root, self.writable)
        assert grid.slide_id == slide_id
        if provenance.fingerprint != self.fingerprint:
            way_out = "Take the fingerprint of provenance from the store."
            raise wrong(slide_id, "fingerprint", self.fingerprint, provenance.fingerprint, way_out)
        return _put(
            self.slide_uri(slide_id),
            lambda path: files.write_features(
                path, grid, features, provenance, unreadable=unreadable
            ),
        )

    def read(self, slide_id: str) -> SlideFeatures:
        """Reads a finished slide."""
        return _read(self.slide_uri(slide_id), files.read_features)

    def grids(self, config: Any) -> "GridStore":
        """The store of the grids that are made on the fly for this one."""
        root = objects.join(self.root, GRIDS)
        return GridStore.open_or_create(root, config, suffix=".hdf5")

    def verify(self) -> Iterator[tuple[str, str]]:
        """Reads every file fully and yields (slide id, problem) for each that is not sound."""
        for slide_id in self.done_ids():
            problem = self._problem(slide_id)
            if problem:
                yield slide_id, problem

    def _problem(self, slide_id: str) -> str | None:
        """What is wrong with one slide's file, None when nothing is."""

        def read(source: Path | io.BytesIO, *, name: str) -> SlideFeatures:
            return files.read_features(source, name=name, check="full")

        try:
            found = _read(self.slide_uri(slide_id), read)
        except FeatureError as error:
            return str(error)
        if found.grid.slide_id != slide_id:
            return f"holds the slide {found.grid.slide_id!r}"
        if found.provenance.fingerprint != self.fingerprint:
            return f"fingerprint: expected {self.fingerprint}, got {found.provenance.fingerprint}"
        return None

    def write_part(
        self,
        slide_id: str,
        start: int,
        stop: int,
        rows: Float[np.ndarray, "patch dim"],
        *,
        grid: Grid,
        unreadable: Mapping[int, str] | None = None,
    ) -> None:
        """Keeps the rows [start, stop) of a slide that is not complete yet."""
        _check_writable(self.root, self.writable)
        assert grid.slide_id == slide_id
        part = slide_parts.make_part(
            grid, start, stop, rows, fingerprint=self.fingerprint, unreadable=unreadable
        )
        slide_parts.write_part(self.root, part)

    def parts(self, slide_id: str) -> list[slide_parts.PartRange]:
        """The parts of a slide, by their first row."""
        return slide_parts.list_parts(self.root, slide_id)

    def read_part(self, slide_id: str, start: int, stop: int) -> slide_parts.Part:
        """Reads the part of rows [start, stop)."""
        return slide_parts.read_part(slide_parts.part_uri(self.root, slide_id, start, stop))

    def complete(self, slide_id: str, num_patches: int) -> bool:
        """Whether parts exist for all of a slide's rows."""
        return slide_parts.complete(self.root, slide_id, num_patches)

    def assemble(self, grid: Grid, *, dim: int, dtype: str) -> slide_parts.Assembled:
        """Puts a slide together from its parts."""
        return slide_parts.assemble(
            self.root, grid, fingerprint=self.fingerprint, dim=dim, dtype=dtype
        )

    def drop_parts(self, slide_id: str) -> int:
        """Removes a slide's parts, once its file is written."""
        return slide_parts.drop_parts(self.root, slide_id)

    def collect_stale(
        self, *, is_done: Callable[[str], bool], grid_of: Callable[[str], Grid | None]
    ) -> int:
        """Removes the parts that nobody will use."""
        return slide_parts.collect_stale(
            self.root, is_done=is_done, fingerprint=self.fingerprint, grid_of=grid_of
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GridStore:
    """The grids of a cohort's slides, made under one configuration."""

    root: str
    record: StoreRecord
    writable: bool

    @classmethod
    def open_or_create(cls, root: str, config: Any, *, suffix: str = ".h5") -> "GridStore":
        """Opens the store of this configuration, or creates it where there is none."""
        record = claim_store(root, new_record("grids", suffix, config))
        return cls(root=root, record=record, writable=True)

    @classmethod
    def open(cls, root: str) -> "GridStore":
        """Opens an existing store for reading."""
        return cls(root=root, record=read_record(root, "grids"), writable=False)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the store's configuration."""
        return self.record.fingerprint

    def slide_uri(self, slide_id: str) -> str:
        """Where the slide's grid is, or will be."""
        return _slide_uri(self.root, slide_id, self.record.suffix)

    def done_ids(self) -> Iterator[str]:
        """The ids of all slides that have a grid."""
        return list_ids(self.root, self.record.suffix)

    def has(self, slide_id: str) -> bool:
        """Whether the slide has a grid."""
        return objects.exists(self.slide_uri(slide_id))

    def write(self, slide_id: str, grid: Grid) -> bool:
        """Puts a grid under its name, unless it is there already; says whether it did."""
        _check_writable(self.root, self.writable)
        assert grid.slide_id == slide_id
        return _put(self.slide_uri(slide_id), lambda path: files.write_grid(path, grid))

    def read(self, slide_id: str) -> Grid:
        """Reads a slide's grid."""
        return _read(self.slide_uri(slide_id), files.read_grid)


def _slide_uri(root: str, slide_id: str, suffix: str) -> str:
    """Where a slide's file is; ids that would hide it from the listing are refused."""
    check_slide_id(slide_id)
    steps = slide_id.split("/")
    if steps[0] in RESERVED or any(step.startswith(".") for step in steps):
        raise ManifestError(
            f"slide_id {slide_id!r}: expected no folder of {RESERVED} first and no name starting "
            "with a dot, which stores keep for themselves. Name it otherwise in the manifest."
        )
    return objects.join(root, *steps[:-1], steps[-1] + suffix)


def _check_writable(root: str, writable: bool) -> None:
    """Refuses to write to a store that was opened for reading."""
    if not writable:
        raise FeatureError(f"{root}: opened for reading. Use open_or_create to write to it.")


def _put(uri: str, write: Callable[[Path], None]) -> bool:
    """Writes a file apart and puts it under its final name, unless that exists."""
    if objects.exists(uri):
        return False
    with tempfile.TemporaryDirectory(prefix="mstar-") as folder:
        path = Path(folder) / "slide.hdf5"
        write(path)
        return objects.put_file(path, uri, if_absent=True)


def _read(uri: str, read: Callable[..., Content]) -> Content:
    """Reads one file with `read(source, name=…)`, from its path or from its bytes."""
    if objects.is_local(uri):
        return read(objects.local_path(uri), name=uri)
    try:  # one request for all of it: HDF5 would make a dozen small ones
        data = objects.read_bytes(uri)
    except FileNotFoundError as error:
        raise wrong(uri, "file", "an HDF5 file", "no such file", "Check the slide id.") from error
    return read(io.BytesIO(data), name=uri)
