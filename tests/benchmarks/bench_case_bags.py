"""How fast 4,096 rows of a larger case come from its file: gathered from the map, or all read.

    python tests/benchmarks/bench_case_bags.py [--patches 20000] [--dim 1024] [--rounds 5]

One JSON line per way and state of the page cache, and one with the ratios. `cold` drops the file's
pages before each round; the ways take turns, and the fastest round counts.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench_bags import bench_grid

from mstar.data.bag_rows import sample_rows
from mstar.data.bags import BagConfig, BagReader
from mstar.features.files import FeatureProvenance, map_features
from mstar.features.store import FeatureStore

SIZE = 4096


def make_store(root: Path, num_patches: int, dim: int) -> FeatureStore:
    """A store of one slide."""
    store = FeatureStore.open_or_create(str(root), {"bench": "case bags"})
    features = np.random.default_rng(0).standard_normal((num_patches, dim)).astype(np.float16)
    fields = ("encoder", "weights_sha256", "transform", "licence", "precision", "resize_kernel")
    provenance = FeatureProvenance(**dict.fromkeys(fields, "bench"), fingerprint=store.fingerprint)
    store.write("bench", bench_grid(num_patches), features, provenance)
    return store


def ways(store: FeatureStore, num_patches: int, dim: int) -> dict[str, Callable[[int], object]]:
    """Each way to the rows of an epoch."""
    path = Path(store.slide_uri("bench"))
    out, scratch = np.empty((SIZE, dim), np.float16), np.empty((num_patches, dim), np.float16)
    reader = BagReader(store.root, BagConfig(size=SIZE, check_finite=False))
    checking = BagReader(store.root, BagConfig(size=SIZE))

    def rows_of(epoch: int) -> np.ndarray:
        return sample_rows(num_patches, SIZE, seed=0, case_id="bench", epoch=epoch)

    def gather(epoch: int) -> object:
        mapped = np.asarray(map_features(path))
        return np.take(mapped, rows_of(epoch), axis=0, out=out, mode="clip")

    def asked_ahead(epoch: int) -> object:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        return gather(epoch)

    def whole(epoch: int) -> object:
        with path.open("rb", buffering=0) as file:
            file.seek(path.stat().st_size - scratch.nbytes)
            file.readinto(scratch.reshape(-1).view(np.uint8).data)
        return np.take(scratch, rows_of(epoch), axis=0, out=out, mode="clip")

    return {
        "gather_from_map": gather,
        "gather_asked_ahead": asked_ahead,
        "read_whole_then_gather": whole,
        "bag_reader": lambda epoch: reader.read("bench", ("bench",), epoch=epoch, out=out),
        "bag_reader_checked": lambda epoch: checking.read(
            "bench", ("bench",), epoch=epoch, out=out
        ),
    }


def drop_pages(path: Path) -> None:
    """Make the next read of a file come from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(
    calls: dict[str, Callable[[int], object]], path: Path, rounds: int, *, cold: bool
) -> dict[str, float]:
    """Seconds of each way's fastest round."""
    best = dict.fromkeys(calls, float("inf"))
    for epoch in range(rounds):
        for name, call in calls.items():
            if cold:
                drop_pages(path)
            begin = time.perf_counter()
            call(epoch)
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "F", args.patches, args.dim)
        calls, path = ways(store, args.patches, args.dim), Path(store.slide_uri("bench"))
        # a mapped page cannot be dropped: the readers keep their file mapped
        warm = measure(calls, path, args.rounds, cold=False)
        unmapped = {name: call for name, call in calls.items() if not name.startswith("bag_reader")}
        del calls
        cold = measure(unmapped, path, args.rounds, cold=True)
    for state, best in (("warm", warm), ("cold", cold)):
        for name, seconds in best.items():
            line = {
                "bench": "case_bags",
                "cache": state,
                "way": name,
                "ms": round(seconds * 1e3, 3),
            }
            print(json.dumps(line))
    ratios = {
        "warm_gather_vs_whole": warm["read_whole_then_gather"] / warm["gather_from_map"],
        "cold_gather_vs_whole": cold["read_whole_then_gather"] / cold["gather_from_map"],
        "cold_asked_ahead_vs_gather": cold["gather_from_map"] / cold["gather_asked_ahead"],
    }
    print(
        json.dumps(
            {"bench": "case_bags", **{key: round(value, 2) for key, value in ratios.items()}}
        )
    )


if __name__ == "__main__":
    main()
