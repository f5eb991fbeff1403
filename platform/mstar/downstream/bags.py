"""The bags of a task, packed into one array that every trial of a node maps.

    bags = load_bags(data.samples, [store])         # writes once per node, then only maps
    bags.x[bags.offsets[i] : bags.offsets[i + 1]]   # the patches of sample i, float16, no copy

The slides of a sample are concatenated in its order and the samples follow one another: packed,
never padded (padding costs 2.7 times the work here). Float32 features are cast. The file lies in
shared memory where it fits, else in the node's cache folder; it is written whole, under a lock, by
whoever comes first. It is named by the slides and the state of their files, so features that were
made again are packed again. Mapped pages are shared: sixteen trials cost the memory of one.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64

from mstar.config import to_json
from mstar.data.label_tables import Sample
from mstar.downstream.bag_files import BagFile, choose_root, map_bag_file, write_bag_file
from mstar.errors import FeatureError
from mstar.features import hdf5
from mstar.features.files import cast_features, map_features
from mstar.features.store import FeatureStore
from mstar.storage import objects
from mstar.storage.cache import SlideCache, default_cache_dir

CACHE_BYTES = 100_000_000_000
COPY_THREADS = 4
COPY_ROWS = 1024  # at once, so that what is copied is checked while it is in the cache


class PackedBags:
    """The bags of a task's samples, read-only; sent to another process it is mapped again there.

    x: all patches, bag after bag.
    offsets: bag i is the rows [offsets[i], offsets[i + 1]).
    ids: the samples' case ids, in the same order.
    digest: of the features themselves, equal on every machine.
    made_by: configurations of the stores that the slides are in.
    """

    def __init__(self, file: BagFile) -> None:
        """Take over a mapped file; it is held against eviction as long as this object lives."""
        self._file = file
        self.x: Float16[np.ndarray, "row dim"] = file.x
        self.offsets: Int64[np.ndarray, " bag_1"] = file.offsets
        self.ids: tuple[str, ...] = tuple(file.facts["ids"])
        self.digest: str = file.facts["digest"]
        self.made_by: tuple[dict[str, Any], ...] = tuple(file.facts.get("made_by", ()))

    def __len__(self) -> int:
        """Number of bags."""
        return len(self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the file anew."""
        return open_bags, (str(self.path),)

    @property
    def path(self) -> Path:
        """Where the packed file lies on this node."""
        return self._file.path

    @property
    def dim(self) -> int:
        """Length of a patch's feature vector."""
        return int(self.x.shape[1])

    def bag(self, index: int) -> Float16[np.ndarray, "row dim"]:
        """One bag, not copied."""
        return self.x[self.offsets[index] : self.offsets[index + 1]]

    def sizes(self) -> Int64[np.ndarray, " bag"]:
        """Patches of each bag."""
        return np.diff(self.offsets)


def open_bags(path: str) -> PackedBags:
    """The packed bags of a file that is there already."""
    file = map_bag_file(Path(path))
    if file is None:
        raise FeatureError(f"{path}: expected packed bags, got no such file. Load them anew.")
    return PackedBags(file)


def load_bags(
    samples: Sequence[Sample],
    stores: FeatureStore | Sequence[FeatureStore],
    *,
    cache_root: str | None = None,
    cache_dir: str | None = None,
) -> PackedBags:
    """The bags of the samples, packed by the first process of the node that asks.

    Args:
        samples: in the order of the bags; their slides are ids in the stores.
        stores: where the features are; a slide in two of them is refused.
        cache_root: local folder for packed files; shared memory, or the node's cache, if not given.
        cache_dir: where remote features are staged; this node's default when not given.

    Raises:
        FeatureError: a slide has no features, none that are finite, or others than the rest.
    """
    stores = [stores] if isinstance(stores, FeatureStore) else list(stores)
    places = _places(samples, stores)
    key = _key(samples, places)
    num_bytes = sum(place.size_bytes for place in places.values())
    root = Path(cache_root) if cache_root else choose_root(num_bytes, key)
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = root / f"{key}.bags"
    while (found := map_bag_file(path)) is None:
        with _locked(root / f"{key}.lock"):
            if not path.exists():
                made_by = [store.record.config for store in stores]
                _pack(path, samples, places, cache_dir, made_by)
    return PackedBags(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a slide's features are, and what tells this file from another of its name."""

    uri: str
    tag: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slide:
    """A slide's features, mapped, and their digest."""

    slide_id: str
    rows: Float[np.ndarray, "row dim"]
    sha256: str


def _places(samples: Sequence[Sample], stores: Sequence[FeatureStore]) -> dict[str, _Place]:
    """Slide id → place; an object store is listed once rather than asked a thousand times."""
    wanted = dict.fromkeys(slide for sample in samples for slide in sample.slides)
    found: dict[str, _Place] = {}
    for store in stores:
        for slide_id, info in _infos(store, wanted):
            if slide_id in found:
                raise FeatureError(
                    f"slide {slide_id}: expected it in one store, got {found[slide_id].uri} and "
                    f"{info.uri}. Leave one of the stores out."
                )
            found[slide_id] = _Place(uri=info.uri, tag=info.tag, size_bytes=info.size_bytes)
    for sample in samples:
        if missing := [slide for slide in sample.slides if slide not in found]:
            raise FeatureError(
                f"case {sample.case_id}, slide {missing[0]}: expected features in "
                f"{', '.join(store.root for store in stores)}, got none. Run `mstar embed` again, "
                "or leave the case out."
            )
    return found


def _infos(store: FeatureStore, wanted: dict[str, None]) -> Iterator[tuple[str, objects.FileInfo]]:
    if objects.is_local(store.root):
        for slide_id in wanted:
            info = objects.stat(store.slide_uri(slide_id))
            if info is not None:
                yield slide_id, info
        return
    suffix = store.record.suffix
    for info in objects.list_files(store.root, suffix=suffix):
        slide_id = info.rel.removesuffix(suffix)
        if slide_id in wanted:
            yield slide_id, info


def _key(samples: Sequence[Sample], places: dict[str, _Place]) -> str:
    """Names the packed file: which bags of which files."""
    bags = [[sample.case_id, list(sample.slides)] for sample in samples]
    files = sorted((slide, place.uri, place.tag) for slide, place in places.items())
    return hashlib.sha256(to_json([bags, files]).encode()).hexdigest()[:24]


def _pack(
    path: Path,
    samples: Sequence[Sample],
    places: dict[str, _Place],
    cache_dir: str | None,
    made_by: list[dict[str, Any]],
) -> None:
    cache = SlideCache(cache_dir or default_cache_dir(), max_bytes=CACHE_BYTES)
    slides: list[_Slide] = []
    counts: list[int] = []
    opened: dict[str, _Slide] = {}
    for sample in samples:
        mine = [_open(slide, places[slide].uri, cache, opened) for slide in sample.slides]
        counts.append(sum(len(slide.rows) for slide in mine))
        if not counts[-1]:
            raise FeatureError(
                f"case {sample.case_id}: expected patches, got none in its slides "
                f"{list(sample.slides)}. Leave the case out."
            )
        slides += mine
    dims = {slide.rows.shape[1]: slide.slide_id for slide in slides if len(slide.rows)}
    if len(dims) > 1:
        told = ", ".join(f"{dim} of slide {slide}" for dim, slide in dims.items())
        raise FeatureError(f"features: expected one length of vectors, got {told}. Embed anew.")
    lines = [f"{sample.case_id}\t{';'.join(sample.slides)}" for sample in samples]
    lines += [slide.sha256 for slide in slides]
    facts = {
        "ids": [sample.case_id for sample in samples],
        "digest": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "made_by": made_by,
    }
    offsets = np.asarray([0, *accumulate(counts)], np.int64)
    with write_bag_file(path, offsets, next(iter(dims)), facts) as x:
        _copy(slides, x)


def _open(slide_id: str, uri: str, cache: SlideCache, opened: dict[str, _Slide]) -> _Slide:
    if slide_id not in opened:
        with cache.stage(uri) as local:  # a staged file may be evicted: mapped pages stay
            with hdf5.open_checked(local, uri) as file:
                item = hdf5.dataset(file, "features", uri)
                attributes = hdf5.plain_attributes(item)
            sha256 = hdf5.required(attributes, "features_sha256", str, "features", uri)
            rows = map_features(local)
        opened[slide_id] = _Slide(slide_id=slide_id, rows=rows, sha256=sha256)
    return opened[slide_id]


def _copy(slides: Sequence[_Slide], x: Float16[np.ndarray, "row dim"]) -> None:
    """All rows to their place; threads overlap the waits for a cold disk."""
    starts = accumulate((len(slide.rows) for slide in slides), initial=0)

    def copy(job: tuple[_Slide, tuple[int, int]]) -> None:
        slide, (start, stop) = job
        for at in range(start, stop, COPY_ROWS):
            end = min(at + COPY_ROWS, stop)
            _copy_rows(slide, at - start, x[at:end])

    with ThreadPoolExecutor(min(COPY_THREADS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(copy, zip(slides, pairwise(starts), strict=True)):
            pass


def _copy_rows(slide: _Slide, first: int, out: Float16[np.ndarray, "row dim"]) -> None:
    """Some rows of a slide; those that are not finite, or too large for float16, are refused."""
    rows = np.asarray(slide.rows[first : first + len(out)])
    if rows.dtype == np.float16:
        np.copyto(out, rows)
    else:  # numpy casts value by value, eight times slower than torch
        torch.from_numpy(out).copy_(torch.from_numpy(rows.copy()))
    # all bits but the sign, since numpy's own test of float16 is ten times slower
    magnitude = out.view("u2") & 0x7FFF
    if magnitude.size and magnitude.max() >= 0x7C00:
        try:
            cast_features(np.asarray(slide.rows), "float16")
        except FeatureError as error:
            raise FeatureError(f"slide {slide.slide_id}: {error}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process of the node at a time; a dead one's lock is gone with it."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
