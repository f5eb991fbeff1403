"""How fast bags of features come from their files into memory, against the field's files.

    python tests/benchmarks/bench_bags.py [--patches 10000] [--dim 1024] [--bags 6] [--rounds 6]

One JSON line per way, and one with the ratios. All files hold the same numbers and are in the page
cache, so what is measured is the work of getting a float32 bag. Each way loads all bags one after
the other, as training does (they do not fit the processor's cache together); the ways take turns,
and of each the fastest round counts, since what is slower is other work on the machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch

from mstar.features.files import (
    FeatureProvenance,
    read_features,
    read_into,
    write_features,
)
from mstar.schema import Grid


def bench_grid(num_patches: int) -> Grid:
    """A grid of patches on a line; its place does not matter here."""
    rows = np.arange(num_patches, dtype=np.int64)
    return Grid(
        slide_id="bench",
        coords=np.stack([rows * 512, rows * 0], axis=1),
        grid_mode="exact",
        patch_px=256,
        patch_size_l0=512,
        overlap_px=0,
        read_level=0,
        read_px=512,
        output_px=256,
        mpp=0.25,
        target_mpp=0.5,
        effective_mpp=0.5,
        level0_magnification=40,
        target_magnification=20,
        width_l0=num_patches * 512,
        height_l0=512,
    )


def write_files(folder: Path, num_patches: int, dim: int) -> None:
    """The same bag in a new folder, as our file and as the files of the field's tools."""
    features = np.random.default_rng(0).standard_normal((num_patches, dim)).astype(np.float16)
    fields = ("encoder", "weights_sha256", "transform", "fingerprint", "licence", "precision")
    provenance = FeatureProvenance(**dict.fromkeys(fields, "bench"), resize_kernel="none")
    folder.mkdir()
    write_features(folder / "ours.h5", bench_grid(num_patches), features, provenance)
    torch.save(torch.from_numpy(features.astype(np.float32)), folder / "float32.pt")
    for rows, name in ((1, "trident.h5"), (32, "clam.h5")):
        # as those tools write them: open to more rows, in the old file format
        with h5py.File(folder / name, "w", libver="earliest") as file:
            values = features.astype(np.float32)
            file.create_dataset("features", data=values, chunks=(rows, dim), maxshape=(None, dim))


def ways(num_patches: int, dim: int) -> dict[str, Callable[[Path], object]]:
    """Each way to the bag in a folder: the name says file and destination."""
    buffer = np.empty((num_patches, dim), np.float32)

    def row_chunked(path: Path) -> object:
        with h5py.File(path, "r") as file:
            return torch.from_numpy(file["features"][()])

    def fresh(folder: Path) -> object:
        return read_into(folder / "ours.h5", np.empty((num_patches, dim), np.float32))

    return {
        "mapped_into_reused_buffer": lambda folder: read_into(folder / "ours.h5", buffer),
        "mapped_into_fresh_array": fresh,
        "checked_read_float16": lambda folder: read_features(folder / "ours.h5").features,
        "torch_load_float32": lambda folder: torch.load(folder / "float32.pt", weights_only=True),
        "hdf5_chunks_of_1_row_float32": lambda folder: row_chunked(folder / "trident.h5"),
        "hdf5_chunks_of_32_rows_float32": lambda folder: row_chunked(folder / "clam.h5"),
    }


def measure(
    calls: dict[str, Callable[[Path], object]], bags: list[Path], rounds: int
) -> dict[str, float]:
    """Seconds per bag of each way's fastest round, the ways taking turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            for bag in bags:
                call(bag)
            best[name] = min(best[name], (time.perf_counter() - begin) / len(bags))
    return best


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--bags", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bags = [Path(folder) / str(number) for number in range(args.bags)]
        for bag in bags:
            write_files(bag, args.patches, args.dim)
        best = measure(ways(args.patches, args.dim), bags, args.rounds)
    for name, seconds in best.items():
        print(json.dumps({"bench": "bags", "way": name, "ms": round(seconds * 1e3, 3)}))
    reused, fresh = best["mapped_into_reused_buffer"], best["mapped_into_fresh_array"]
    ratios = {
        "reused_vs_torch_load": best["torch_load_float32"] / reused,
        "reused_vs_row_chunked": best["hdf5_chunks_of_1_row_float32"] / reused,
        "fresh_vs_torch_load": best["torch_load_float32"] / fresh,
        "fresh_vs_row_chunked": best["hdf5_chunks_of_1_row_float32"] / fresh,
    }
    print(json.dumps({"bench": "bags", **{key: round(value, 2) for key, value in ratios.items()}}))


if __name__ == "__main__":
    main()
