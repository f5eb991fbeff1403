"""Patches per CPU-second: our readers and pixel path against the field's, as ratios in one run.

    PYTHONPATH=tests python tests/benchmarks/bench_reading.py [--size-px 8192] [--rounds 3]
        [--only SUBSTRING]

Prints one JSON line per row. The slides are generated (Aperio layout, tissue everywhere, quality
80, 4:2:0, with and without shared JPEG tables). Rounds are interleaved (theirs, ours, theirs, …) on
slides opened afresh, the best round of each counts. CPU-seconds are of the whole process.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import openslide
import torch
from PIL import Image

from mstar.slides.kernels import resize
from mstar.slides.reader import Slide, open_slide
from support.slides import SlideSpec, write_slide

Corners = list[tuple[int, int]]
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: where patches lie, how big they are, what becomes of them."""

    name: str
    read_px: int
    order: str  # raster | random
    offset: int = 0  # of the grid's origin from the tiles'
    output_px: int | None = None
    model_ready: bool = False  # theirs ends in a float32 normalised tensor, ours in uint8
    target: float


ROWS = (
    Row(name="raster aligned 256", read_px=256, order="raster", target=3),
    Row(name="raster unaligned 256", read_px=256, order="raster", offset=100, target=3),
    Row(name="raster grid of 224", read_px=224, order="raster", target=3),
    Row(name="random unaligned 256", read_px=256, order="random", target=1.7),
    Row(
        name="40x to 20x, 512 to 256",
        read_px=512,
        order="raster",
        offset=100,
        output_px=256,
        target=4,
    ),
    Row(
        name="model-ready, 512 to 224",
        read_px=512,
        order="raster",
        offset=100,
        output_px=224,
        model_ready=True,
        target=4,
    ),
    Row(
        name="model-ready, 256 to 224",
        read_px=256,
        order="raster",
        offset=100,
        output_px=224,
        model_ready=True,
        target=4,
    ),
)


def corners(row: Row, size_px: int) -> Corners:
    """Top-left corners of the patches of a row."""
    if row.order == "random":
        rng = np.random.default_rng(0)
        count = (size_px // row.read_px) ** 2 // 2
        return [(int(x), int(y)) for x, y in rng.integers(0, size_px - row.read_px, (count, 2))]
    starts = range(row.offset, size_px - row.read_px + 1, row.read_px)
    return [(x, y) for y in starts for x in starts]


def theirs(slide: openslide.OpenSlide, row: Row, where: Corners) -> Iterator[object]:
    """OpenSlide, PIL, and for a model ToTensor and Normalize, as the field's loaders do."""
    for corner in where:
        image = slide.read_region(corner, 0, (row.read_px, row.read_px)).convert("RGB")
        if row.output_px:
            image = image.resize((row.output_px, row.output_px), Image.Resampling.BILINEAR)
        pixels = np.array(image)
        if row.model_ready:
            tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
            yield tensor.to(torch.float32).div(255).sub_(_MEAN).div_(_STD)
        else:
            yield pixels


def ours(slide: Slide, row: Row, where: Corners) -> Iterator[object]:
    """Our reader and resize; normalisation is the device's work."""
    for x, y in where:
        pixels = slide.read(0, x, y, row.read_px, row.read_px)
        yield resize(pixels, row.output_px) if row.output_px else pixels


def patches_per_cpu_s(run: Callable[[], Iterator[object]], count: int) -> float:
    """Rate of one pass."""
    start = time.process_time()
    for _ in run():
        pass
    return count / (time.process_time() - start)


def measure(path: Path, row: Row, size_px: int, rounds: int) -> dict[str, object]:
    """Best rates of interleaved rounds, and the largest pixel difference on a sample."""
    where = corners(row, size_px)
    best = {"openslide": 0.0, "mstar": 0.0}
    backend = ""
    for _ in range(rounds):
        with openslide.OpenSlide(path) as reference:
            rate = patches_per_cpu_s(lambda r=reference: theirs(r, row, where), len(where))
            best["openslide"] = max(best["openslide"], rate)
        slide = open_slide(path)
        backend = slide.backend
        rate = patches_per_cpu_s(lambda s=slide: ours(s, row, where), len(where))
        best["mstar"] = max(best["mstar"], rate)
        slide.close()
    return {
        "patches": len(where),
        "backend": backend,
        "openslide_per_cpu_s": round(best["openslide"]),
        "mstar_per_cpu_s": round(best["mstar"]),
        "ratio": round(best["mstar"] / best["openslide"], 2),
        "target": row.target,
        "max_difference": None if row.model_ready else largest_difference(path, row, where),
    }


def largest_difference(path: Path, row: Row, where: Corners) -> int:
    """Between our pixels and theirs, on 50 patches."""
    some = where[:: max(1, len(where) // 50)]
    slide = open_slide(path)
    with openslide.OpenSlide(path) as reference:
        pairs = zip(ours(slide, row, some), theirs(reference, row, some), strict=True)
        worst = max(int(np.abs(a.astype(int) - b).max()) for a, b in pairs)  # type: ignore[attr-defined]
    slide.close()
    return worst


def measure_open(path: Path, rounds: int) -> dict[str, object]:
    """CPU milliseconds to open: OpenSlide alone, and with our choice and proof."""

    def cpu_ms(act: Callable[[], object]) -> float:
        start = time.process_time()
        act()
        return 1000 * (time.process_time() - start)

    plain = min(cpu_ms(lambda: openslide.OpenSlide(path).close()) for _ in range(rounds))
    proven = min(cpu_ms(lambda: open_slide(path).close()) for _ in range(rounds))
    return {"openslide_cpu_ms": round(plain, 1), "mstar_cpu_ms": round(proven, 1)}


def main() -> None:
    """Writes the slides, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-px", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        for tables in (True, False):
            name = "shared JPEG tables" if tables else "whole JPEG tiles"
            spec = SlideSpec(
                width=options.size_px,
                height=options.size_px,
                full=True,
                quality=80,
                jpeg_tables=tables,
                levels=3,
            )
            path = write_slide(Path(folder) / f"{tables}.svs", spec)
            print(json.dumps({"row": "open", "slide": name, **measure_open(path, 5)}), flush=True)
            for row in ROWS:
                if options.only in row.name:
                    figures = measure(path, row, options.size_px, options.rounds)
                    print(json.dumps({"row": row.name, "slide": name, **figures}), flush=True)


if __name__ == "__main__":
    main()
