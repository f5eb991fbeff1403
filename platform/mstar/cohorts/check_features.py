"""Patches of a cohort's slides: rows of its features or else grids, told by the files' heads."""

from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import h5py

from mstar.cohorts.check_problems import Findings
from mstar.features.store import FeatureStore, GridStore
from mstar.features.store_record import GRIDS, read_record
from mstar.storage import objects

HEAD_THREADS = 8

_Head = tuple[int, int, str]  # rows, dims, type


@dataclass(frozen=True, slots=True, kw_only=True)
class Patches:
    """Patches of the cases' slides.

    source: features | grids | none.
    per_slide: rows of each slide of a case that has a readable file.
    dims: of the features, 0 without.
    """

    source: str = "none"
    root: str = ""
    per_slide: dict[str, int]
    dims: int = 0

    @property
    def total(self) -> int:
        """Of all slides."""
        return sum(self.per_slide.values())


def check_features(root: str, slides: Collection[str], found: Findings) -> Patches:
    """The features of the cases' slides; the heads of all their files are read."""
    store = FeatureStore.open(root)
    done = set(store.done_ids()) & set(slides)
    found.add("missing_features", set(slides) - done)
    heads = _heads(store, sorted(done), "features")
    found.add("unreadable_features", done - heads.keys())
    kinds = Counter((dims, dtype) for _, dims, dtype in heads.values())
    usual = max(kinds, key=lambda kind: (kinds[kind], kind), default=(0, ""))
    odd = {slide for slide, (_, dims, dtype) in heads.items() if (dims, dtype) != usual}
    found.add("other_features", odd)
    rows = {slide: head[0] for slide, head in heads.items() if slide not in odd}
    found.add("slide_without_patches", (slide for slide, count in rows.items() if not count))
    return Patches(source="features", root=root, per_slide=rows, dims=usual[0])


def count_grids(cohort: str, grids: str, slides: Collection[str]) -> Patches:
    """Patches by the grids: of a store that is named, else of one that lies in the cohort."""
    candidates = (
        [grids]
        if grids
        else [
            objects.join(cohort, "grids"),
            objects.join(cohort, "features", GRIDS),
        ]
    )
    for root in candidates:
        if grids or objects.exists(objects.join(root, "store.json")):
            read_record(root, "grids")
            store = GridStore.open(root)
            done = sorted(set(store.done_ids()) & set(slides))
            heads = _heads(store, done, "coords")
            return Patches(source="grids", root=root, per_slide={s: h[0] for s, h in heads.items()})
    return Patches(per_slide={})


def _heads(store: FeatureStore | GridStore, slides: list[str], dataset: str) -> dict[str, _Head]:
    """Shape and type of a dataset of each slide's file; files that cannot be opened are left out.

    Neither the rows nor a whole object of a bucket are read: 30,000 files take a minute.
    """

    def head(slide: str) -> _Head | None:
        try:
            with objects.open_read(store.slide_uri(slide)) as file, h5py.File(file, "r") as content:
                item = content[dataset]
                return int(item.shape[0]), int(item.shape[1]), str(item.dtype)
        except (OSError, KeyError, IndexError, AttributeError):  # not HDF5, or not one of ours
            return None

    with ThreadPoolExecutor(HEAD_THREADS, thread_name_prefix="feature-head") as pool:
        found = zip(slides, pool.map(head, slides), strict=True)
        return {slide: read for slide, read in found if read is not None}
