"""Target files: one HDF5 per slide with what the frozen aggregator made of its patches.

    targets   float16 (R, D)   re-embedded patch tokens, contiguous; provenance in its attributes
    rows      int64 (R,)       the rows of the slide's feature file they belong to, ascending
    coords    int64 (R, 2)     level-0 top-left (x, y) of those patches

R is the number of patches with a target: all of the slide, or those of its case's sample, which may
be none. There are no time stamps and no paths inside, so equal work gives equal bytes.
The format is described in platform/docs/targets.md.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float16, Int64

from mstar import __version__
from mstar.features import hdf5
from mstar.features.files import coords_digest
from mstar.features.hdf5 import Source, required, wrong

SCHEMA_VERSION = 1

_REDO = "Delete the file and run `mstar targets` again."
_MAGNITUDE, _EXPONENT = 0x7FFF, 0x7C00  # of a float16: all bits but the sign, those of inf and nan


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetProvenance:
    """What made a slide's targets.

    fingerprint: of the store's configuration.
    aggregator_sha256: of the aggregator's weights file.
    features_fingerprint, encoder, weights_sha256: of the features it read.
    window: patches that it saw at once, at most.
    """

    fingerprint: str
    aggregator_sha256: str
    mode: str
    attention: str
    precision: str
    features_fingerprint: str
    encoder: str
    weights_sha256: str
    coverage: str
    window: int
    seed: int
    mstar_version: str = __version__


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlideTargets:
    """The targets of one slide.

    rows: which rows of the slide's feature file have a target, ascending.
    num_patches: rows of that file.
    grid_sha256: digest of all its coordinates, those without a target included.
    """

    slide_id: str
    case_id: str
    targets: Float16[np.ndarray, "row dim"]
    rows: Int64[np.ndarray, " row"]
    coords: Int64[np.ndarray, "row 2"]
    num_patches: int
    grid_sha256: str
    provenance: TargetProvenance

    def __len__(self) -> int:
        """Patches with a target."""
        return len(self.rows)


def write_targets(path: Path, slide: SlideTargets) -> None:
    """Write a slide's targets to a local file; a store puts it under its final name.

    Raises:
        FeatureError: a value is not finite, as of tokens beyond what float16 can hold.
    """
    name = f"case {slide.case_id}, slide {slide.slide_id}"
    _check_rows(slide, name)
    _check_finite(slide, name, "Check the aggregator: its stage 1 may have diverged.")
    with hdf5.create(path) as file:
        item = file.create_dataset("targets", data=slide.targets.astype("<f2", copy=False))
        file.create_dataset("rows", data=slide.rows.astype("<i8", copy=False))
        file.create_dataset("coords", data=slide.coords.astype("<i8", copy=False))
        hdf5.write_attributes(item, _attributes(slide))


def read_targets(
    source: Source, *, name: str | None = None, check: Literal["fast", "full"] = "fast"
) -> SlideTargets:
    """Read a target file into memory.

    Args:
        source: A local path, or the bytes of a file.
        name: What errors call the file; its path when not given.
        check: `fast` checks names, shapes, types and the coordinates' digest; `full` also the
            targets' digest and that every value is finite.
    """
    name = name or str(source)
    with hdf5.open_checked(source, name) as file:
        items = {field: hdf5.dataset(file, field, name) for field in ("targets", "rows", "coords")}
        attributes = hdf5.plain_attributes(items["targets"])
        version = required(attributes, "schema_version", int, "targets", name)
        if version > SCHEMA_VERSION:
            expected = f"at most {SCHEMA_VERSION}"
            raise wrong(name, "schema_version", expected, version, "Update mstar.")
        arrays = {field: hdf5.read_all(item, field, name) for field, item in items.items()}
    slide = SlideTargets(
        slide_id=required(attributes, "slide_id", str, "targets", name),
        case_id=required(attributes, "case_id", str, "targets", name),
        num_patches=required(attributes, "num_patches", int, "targets", name),
        grid_sha256=required(attributes, "grid_sha256", str, "targets", name),
        provenance=_provenance(attributes, name),
        **_typed(arrays, name),
    )
    _check_rows(slide, name)
    _check_digests(slide, attributes, name, check)
    return slide


def _attributes(slide: SlideTargets) -> list[tuple[str, hdf5.Attribute]]:
    """Everything but the arrays, in a fixed order."""
    made = dataclasses.asdict(slide.provenance)
    return [
        ("schema_version", SCHEMA_VERSION),
        ("slide_id", slide.slide_id),
        ("case_id", slide.case_id),
        ("num_patches", slide.num_patches),
        *made.items(),
        ("grid_sha256", slide.grid_sha256),
        ("coords_sha256", coords_digest(slide.coords)),
        ("targets_sha256", hdf5.digest(slide.targets)),
    ]


def _provenance(attributes: Mapping[str, Any], name: str) -> TargetProvenance:
    kinds = {field.name: int if field.type is int else str for field in _PROVENANCE}
    values = {key: required(attributes, key, kind, "targets", name) for key, kind in kinds.items()}
    return TargetProvenance(**values)


_PROVENANCE = dataclasses.fields(TargetProvenance)


def _typed(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
    """The arrays, if they have the types and shapes of a target file."""
    num = len(arrays["rows"]) if arrays["rows"].ndim == 1 else -1
    for field, dtype, shape in (
        ("targets", np.float16, (num, arrays["targets"].shape[-1])),
        ("rows", np.int64, (num,)),
        ("coords", np.int64, (num, 2)),
    ):
        found = arrays[field]
        if found.dtype != dtype or found.shape != shape:
            expected = f"{np.dtype(dtype)} of {shape}"
            raise wrong(name, field, expected, f"{found.dtype} of {found.shape}", _REDO)
    return dict(arrays)


def _check_rows(slide: SlideTargets, name: str) -> None:
    """Refuses rows that are not ascending, or not those of the feature file."""
    rows = slide.rows
    assert len(rows) == len(slide.targets) == len(slide.coords), name
    if len(rows) and (rows[0] < 0 or rows[-1] >= slide.num_patches or (np.diff(rows) <= 0).any()):
        expected = f"ascending, from 0 to below {slide.num_patches}"
        raise wrong(name, "rows", expected, f"{rows[0]} to {rows[-1]}, in another order", _REDO)


def _check_digests(
    slide: SlideTargets, attributes: Mapping[str, Any], name: str, check: str
) -> None:
    digests = {"coords": coords_digest(slide.coords)}
    if check == "full":
        digests["targets"] = hdf5.digest(slide.targets)
    for field, found in digests.items():
        stated = required(attributes, f"{field}_sha256", str, "targets", name)
        if found != stated:
            raise wrong(name, f"digest of {field}", stated, found, _REDO)
    if check == "full":
        _check_finite(slide, name, _REDO)


def _check_finite(slide: SlideTargets, name: str, way_out: str) -> None:
    """Refuses NaN, and infinity, which is also what a value beyond float16's 65,504 becomes."""
    # all bits of the exponent set: ten times faster than numpy's own test of float16
    bad = (slide.targets.view(np.uint16) & _MAGNITUDE) >= _EXPONENT
    if bad.any():
        row = int(np.argmax(bad.any(axis=1)))
        value = slide.targets[row][bad[row]][0]
        field = f"target of patch {slide.rows[row]}"
        raise wrong(name, field, "values that float16 can hold", value, way_out)
