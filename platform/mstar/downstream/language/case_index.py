"""The cases of a feature store as an index: built once, searched by text, case or RNA.

An entry is a case (or a slide, where no cohort is given); its vector is that of the stage-1
aggregator. The nearest cases are found by it, and of those alone the patches are looked at, in the
space that stage 2 projects to.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from mstar import __version__
from mstar.config import differences, fingerprint, to_json
from mstar.data.cases import read_cases
from mstar.data.tables import Column, read_table, write_table
from mstar.downstream.family_sources import content_digest
from mstar.downstream.language.encoders import SlideSide
from mstar.downstream.language.search_index import (
    Kind,
    VectorIndex,
    build_index,
    cells_from_bytes,
    cells_to_bytes,
)
from mstar.errors import CohortError, ConfigError
from mstar.features.store import FeatureStore
from mstar.storage import objects

VECTORS, ENTRIES, FACTS, CELLS = "vectors.npy", "entries.csv", "index.json", "cells.faiss"
_COLUMNS = (
    Column(name="name", unique=True),
    Column(name="slides"),
    Column(name="cancer_type", nullable=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A case with its slides; the slide itself where there is no cohort."""

    name: str
    slides: tuple[str, ...]
    cancer_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseIndex:
    """Entries and their vectors, in one order."""

    entries: tuple[Entry, ...]
    index: VectorIndex

    def place_of(self, name: str) -> int:
        """Where a case stands.

        Raises:
            ConfigError: it is not in the index.
        """
        names = [entry.name for entry in self.entries]
        if name not in names:
            raise ConfigError(f"--like {name}: expected a case of the index, such as {names[0]}.")
        return names.index(name)


def entries_of(stores: Sequence[FeatureStore], cohort: str) -> tuple[Entry, ...]:
    """The cases of a cohort all whose slides have features; without one, every slide.

    Raises:
        CohortError: there are none.
    """
    there = {slide for store in stores for slide in store.done_ids()}
    if not cohort:
        found = tuple(Entry(name=slide, slides=(slide,)) for slide in sorted(there))
    else:
        found = tuple(
            Entry(name=case.case_id, slides=case.slides, cancer_type=case.cancer_type)
            for case in read_cases(objects.join(cohort, "cases.csv"))
            if case.slides and there.issuperset(case.slides)
        )
    if not found:
        raise CohortError("no case has features of all its slides. Give the store of its slides.")
    return found


def open_index(
    folder: str,
    stores: Sequence[FeatureStore],
    stage1: str,
    entries: tuple[Entry, ...],
    *,
    kind: Kind,
    window: int,
    device: str,
) -> CaseIndex:
    """The index of a folder; built, and kept where a folder is named, when it is not there.

    Raises:
        ConfigError: the folder holds an index of other features, cases or weights.
    """
    wanted = _facts(stores, stage1, entries, window)
    uri = objects.join(folder, FACTS) if folder else ""
    if uri and objects.exists(uri):
        return _read(folder, wanted, kind)
    side = SlideSide(stage1, window=window, device=device)
    rows = [_vector(side, stores, entry) for entry in entries]
    vectors: Float32[np.ndarray, "entry dim"] = np.stack(rows).astype(np.float32)
    made = CaseIndex(entries=entries, index=build_index(vectors, kind))
    if folder:
        _write(folder, made, wanted, kind)
    return made


def bag_of(stores: Sequence[FeatureStore], entry: Entry) -> list[Any]:
    """The features of a case's slides, slide by slide."""
    by_slide: dict[str, FeatureStore] = {}
    for store in stores:
        by_slide |= {slide: store for slide in entry.slides if store.has(slide)}
    return [by_slide[slide].read(slide) for slide in entry.slides]


def _vector(
    side: SlideSide, stores: Sequence[FeatureStore], entry: Entry
) -> Float32[np.ndarray, " dim"]:
    rows = np.concatenate([slide.features for slide in bag_of(stores, entry)])
    found: Float32[np.ndarray, " dim"] = side.vector(rows, entry.name).cpu().numpy()
    return found


def _facts(
    stores: Sequence[FeatureStore], stage1: str, entries: tuple[Entry, ...], window: int
) -> dict[str, Any]:
    return {
        "features": sorted(store.fingerprint for store in stores),
        "aggregator": content_digest(objects.join(stage1, "aggregator.safetensors")),
        "entries": fingerprint(entries),
        "window": window,
    }


def _read(folder: str, wanted: dict[str, Any], kind: Kind) -> CaseIndex:
    found = json.loads(objects.read_bytes(objects.join(folder, FACTS)))
    if lines := list(differences(wanted, found["made_of"])):
        raise ConfigError(
            f"{folder}: holds an index of other cases, features or weights:\n  "
            + "\n  ".join(lines)
            + "\nGive another --index, or remove this one."
        )
    rows = read_table(objects.join(folder, ENTRIES), _COLUMNS).to_pylist()
    entries = tuple(
        Entry(
            name=row["name"],
            slides=tuple(row["slides"].split(";")),
            cancer_type=row["cancer_type"] or "",
        )
        for row in rows
    )
    vectors = np.load(io.BytesIO(objects.read_bytes(objects.join(folder, VECTORS))))
    uri = objects.join(folder, CELLS)
    if kind != "exact" and objects.exists(uri):
        cells = cells_from_bytes(objects.read_bytes(uri))
        return CaseIndex(entries=entries, index=VectorIndex(vectors, cells))
    return CaseIndex(entries=entries, index=build_index(vectors, kind))


def _write(folder: str, made: CaseIndex, facts: dict[str, Any], kind: Kind) -> None:
    sink = io.BytesIO()
    np.save(sink, made.index.vectors)
    objects.write_whole(objects.join(folder, VECTORS), sink.getvalue())
    columns = {
        "name": [entry.name for entry in made.entries],
        "slides": [";".join(entry.slides) for entry in made.entries],
        "cancer_type": [entry.cancer_type for entry in made.entries],
    }
    write_table(objects.join(folder, ENTRIES), pa.table(columns))
    if not made.index.is_exact:
        objects.write_whole(objects.join(folder, CELLS), cells_to_bytes(made.index.cells))
    record = {"mstar_version": __version__, "made_of": facts, "entries": len(made.entries)}
    objects.write_whole(objects.join(folder, FACTS), to_json(record | {"kind": kind}).encode())
