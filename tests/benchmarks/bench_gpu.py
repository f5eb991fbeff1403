"""How much of a card stage 2 and embedding use: patches/s, and percent of its own matrix rate.

    PYTHONPATH=tests python tests/benchmarks/bench_gpu.py
        [--encoder timm:vit_large_patch16_224] [--batch 256] [--steps 20] [--device cuda]

Four rates, bfloat16, everything resident on the card but what the way itself moves:

- *matrices*: the product of two square matrices, the rate that all others are a share of;
- *forward*: the encoder alone on a batch that lies on the card;
- *embed*: the encoder as `mstar embed` runs it, uint8 batches in, float32 vectors out;
- *step*: a whole step of stage 2 on one batch: student forward and backward, the anchor's forward,
  optimiser and moving average.

Operations are counted by torch (FlopCounterMode) for one forward pass; a step is four of them.
Without a GPU nothing is measured; `--device cpu` with a small encoder shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench_stage2 import opened
from mstar.models.encoder_table import find_encoder
from mstar.models.loaded_encoder import forward_of
from mstar.models.patch_encoders import load_encoder, load_model, prepare_weights

PASSES_OF_A_STEP = 4  # student forward, twice as much backward, anchor forward
WARM_UP = 3


def main() -> None:
    """Parse the size of the measurement and run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="timm:vit_large_patch16_224")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", type=int, default=8192, help="of the square matrices")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"bench": "gpu", "row": "nothing measured: there is no GPU"}))
        return
    measure(given)


def measure(given: argparse.Namespace) -> None:
    """Print each rate and its share of the card's matrix rate."""
    device = torch.device(given.device)
    peak = matrix_rate(device, given)
    per_patch = forward_operations(given.encoder)
    name = torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu"
    show("matrices", device=name, tflop_per_s=round(peak / 1e12, 2))
    ways = {
        "forward": (forward_rate, 1),
        "embed": (embed_rate, 1),
        "step": (step_rate, PASSES_OF_A_STEP),
    }
    for row, (rate_of, passes) in ways.items():
        rate = rate_of(device, given)
        share = rate * per_patch * passes / peak
        show(
            f"{row}, {given.encoder}, batch {given.batch}, bfloat16",
            patches_per_s=round(rate, 1),
            percent_of_matrix_rate=round(100 * share, 1),
        )


def show(row: str, **values: object) -> None:
    """One JSON line."""
    print(json.dumps({"bench": "gpu", "row": row, **values}), flush=True)


def matrix_rate(device: torch.device, given: argparse.Namespace) -> float:
    """Operations per second of a square product."""
    left, right = (torch.randn(given.side, given.side, device=device).bfloat16() for _ in "ab")
    calls = calls_per_s(lambda: left @ right, device, given.steps)
    return float(2 * given.side**3 * calls)


def forward_operations(encoder: str) -> int:
    """Operations of one patch's forward pass, counted on the model without data."""
    spec = find_encoder(encoder)
    with torch.device("meta"):
        model, images = spec.build(), torch.empty(1, 3, spec.input_px, spec.input_px)
    with FlopCounterMode(display=False) as counter:
        forward_of(spec, model)(images)
    return int(counter.get_total_flops())


def forward_rate(device: torch.device, given: argparse.Namespace) -> float:
    """Patches per second of the encoder alone."""
    spec = find_encoder(given.encoder)
    model = load_model(spec, prepare_weights(spec.name, "random:0")).eval()
    forward = forward_of(spec, model.to(device, torch.bfloat16))
    images = torch.randn(given.batch, 3, spec.input_px, spec.input_px, device=device).bfloat16()
    with torch.inference_mode():
        return given.batch * calls_per_s(lambda: forward(images), device, given.steps)


def embed_rate(device: torch.device, given: argparse.Namespace) -> float:
    """Patches per second as the embedding job encodes them, two batches in flight."""
    loaded = load_encoder(
        given.encoder,
        weights="random:0",
        device=given.device,
        precision="bfloat16",
        batch_size=given.batch,
    )
    side = loaded.spec.input_px
    batch = np.random.default_rng(0).integers(0, 255, (given.batch, side, side, 3), np.uint8)
    pending = [loaded.encode_async(batch)]

    def one() -> None:
        pending.append(loaded.encode_async(batch))
        pending.pop(0).result()

    rate = given.batch * calls_per_s(one, device, given.steps)
    pending.pop().result()
    return rate


def step_rate(device: torch.device, given: argparse.Namespace) -> float:
    """Patches per second of the run's own step, again and again on its first batch."""
    rows = given.batch * (given.steps + WARM_UP)
    with tempfile.TemporaryDirectory() as folder:
        run = opened(Path(folder), given, rows=rows, precision="bf16")
        with run.batches:
            first = run.batches.get(0)
            done = iter(range(given.steps + WARM_UP))
            take = lambda: run.steps.take(next(done), first)  # noqa: E731
            return given.batch * calls_per_s(take, device, given.steps)


def calls_per_s(act: Callable[[], object], device: torch.device, count: int) -> float:
    """Calls per second, after some that do not count."""
    for _ in range(WARM_UP):
        act()
    synchronise(device)
    started_s = time.perf_counter()
    for _ in range(count):
        act()
    synchronise(device)
    return count / (time.perf_counter() - started_s)


def synchronise(device: torch.device) -> None:
    """Wait for the card."""
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
