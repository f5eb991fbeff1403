"""What the downstream loop costs beside the work itself, and how fast bags and populations are.

    PYTHONPATH=tests python tests/benchmarks/bench_downstream.py [--bags 24] [--patches 1000]
        [--dim 1024]
                                                [--rounds 5] [--configs 16] [--threads 1]

One JSON line per row; all ratios are made within the run, of processor seconds on one thread (the
last row: of wall seconds), so that other work on the machine slows both sides. Rows:

    bag load          a float32 batch from the packed bags into the reused buffer, against
                      torch.load of float32 .pt files and HDF5 in chunks of one row, warm cache
    abmil, transmil   an epoch of the loop against a plain PyTorch loop over the same packed bags
                      (1 is equal; 0.91 is an overhead of 10 %)
    packed            an epoch of eight small bags a step against one bag a step
    population        configurations in one process against a process each, start included
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.nn import functional

from mstar.downstream.bags import PackedBags, load_bags
from mstar.downstream.config import HONEST, TrialConfig
from mstar.downstream.fold_views import FoldView, view_fold
from mstar.downstream.population import _train_epoch, train_population
from mstar.downstream.stream import BagSource, StreamKind, training_batches
from mstar.downstream.trainer import Fit
from mstar.models.heads import build_head
from support.planted_tasks import fold_parts, make_task_data, write_store

SMALL_HEAD = {"hidden": 64, "attention_dim": 32}


def make_task(root: Path, bags: int, patches: int, dim: int) -> tuple[Any, PackedBags]:
    """A task of random features; bag sizes vary by half around `patches`."""
    from mstar.data.label_tables import Sample

    rng = np.random.default_rng(0)
    sizes = rng.integers(patches // 2, patches * 3 // 2 + 1, bags)
    slides = {
        f"s{at:04d}": rng.standard_normal((size, dim)).astype(np.float16)
        for at, size in enumerate(sizes.tolist())
    }
    samples = [
        Sample(case_id=name, slides=(name,), label=at % 2, row=at + 1, patient=name)
        for at, name in enumerate(slides)
    ]
    store = write_store(root / "F", slides)
    data = make_task_data("classification", samples, fold_parts(bags, 1))
    return data, load_bags(samples, store, cache_root=str(root / "cache"))


def fastest(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Processor seconds of each call's fastest round, taking turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            began_s = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - began_s)
    return best


def report(row: str, ratio: float, target: float | None, **facts: object) -> None:
    """One line."""
    line = {"bench": "downstream", "row": row, "ratio": round(ratio, 2), "target": target}
    print(json.dumps(line | facts), flush=True)


def bench_loading(root: Path, patches: int, dim: int, rounds: int) -> None:
    """Bags of `patches` rows, from the page cache."""
    rng = np.random.default_rng(0)
    values = [rng.standard_normal((patches, dim)).astype(np.float16) for _ in range(6)]
    for at, rows in enumerate(values):
        torch.save(torch.from_numpy(rows.astype(np.float32)), root / f"{at}.pt")
        with h5py.File(root / f"{at}.hdf5", "w", libver="earliest") as file:
            wide = rows.astype(np.float32)
            file.create_dataset("features", data=wide, chunks=(1, dim), maxshape=(None, dim))
    store = write_store(root / "F", {f"s{at}": rows for at, rows in enumerate(values)})
    from mstar.data.label_tables import Sample

    samples = [
        Sample(case_id=f"s{at}", slides=(f"s{at}",), label=0, row=1, patient="p") for at in range(6)
    ]
    began_s = time.process_time()
    bags = load_bags(samples, store, cache_root=str(root / "cache"))
    packing_s = time.process_time() - began_s
    source = BagSource(bags)
    places, plan = np.arange(6), [np.asarray([at]) for at in range(6)]

    def ours() -> None:
        for _ in source.batches(places, plan):
            pass

    def row_chunked() -> None:
        for at in range(6):
            with h5py.File(root / f"{at}.hdf5", "r") as file:
                torch.from_numpy(file["features"][()])

    best = fastest(
        {
            "ours": ours,
            "torch_load": lambda: [torch.load(root / f"{at}.pt") for at in range(6)],
            "row_chunked": row_chunked,
        },
        rounds,
    )
    facts = {"ms_a_bag": round(best["ours"] / 6 * 1e3, 2), "patches": patches}
    report("bag load against torch.load", best["torch_load"] / best["ours"], 8, **facts)
    report("bag load against row-chunked HDF5", best["row_chunked"] / best["ours"], 25)
    copies = best["torch_load"] / packing_s
    report("packing once, against torch.load of the same bags", copies, None)


def plain_epoch(
    view: FoldView, bags: PackedBags, head: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """What anybody would write: one bag, one step."""
    head.train()
    order = training_batches(
        bags.sizes()[view.train.places],
        StreamKind.of(TrialConfig()),
        seed=1,
        fold=view.fold,
        epoch=0,
    )
    for (at,) in order:
        bag = torch.from_numpy(np.asarray(bags.bag(int(view.train.places[at])))).float()
        label = torch.tensor([int(view.train.labels[at])])
        logits = head(bag, torch.tensor([0, len(bag)])).logits
        loss = functional.cross_entropy(logits, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def bench_epoch(root: Path, head: str, bags: int, patches: int, dim: int, rounds: int) -> None:
    """Training epochs alone; validation is the same on both sides."""
    data, packed = make_task(root, bags, patches, dim)
    view, source = view_fold(data, 0, HONEST), BagSource(packed)
    config = TrialConfig(head=head)
    fit = Fit(view, source, config, 1)
    other = build_head(head, {}, input_dim=dim, num_outputs=2)
    optimizer = torch.optim.Adam(other.parameters(), config.lr, weight_decay=config.weight_decay)
    best = fastest(
        {
            "ours": lambda: _train_epoch(view, source, [fit], 0),
            "plain": lambda: plain_epoch(view, packed, other, optimizer),
        },
        rounds,
    )
    steps = len(view.train)
    report(
        f"{head} epoch against a plain loop, {patches} patches a bag",
        best["plain"] / best["ours"],
        0.91,
        ms_a_step=round(best["ours"] / steps * 1e3, 2),
        ms_a_step_plain=round(best["plain"] / steps * 1e3, 2),
    )


def bench_packed(root: Path, dim: int, rounds: int) -> None:
    """Small bags, where a step's fixed cost shows."""
    data, packed = make_task(root, 64, 64, dim)
    view, source = view_fold(data, 0, HONEST), BagSource(packed)
    fits = {n: Fit(view, source, TrialConfig(batch_bags=n), 1) for n in (1, 8)}
    best = fastest(
        {str(n): (lambda fit=fit: _train_epoch(view, source, [fit], 0)) for n, fit in fits.items()},
        rounds,
    )
    report("8 packed bags a step against 1, 64 patches a bag", best["1"] / best["8"], 1.0)


def trial(number: int) -> TrialConfig:
    """One short configuration."""
    return TrialConfig(head_options=SMALL_HEAD, epochs=3, lr=1e-4 * (1 + number))


def run_trials(root: str, numbers: list[int]) -> None:
    """What each process of the population row does: find the bags, train."""
    data, bags = make_task(Path(root), 40, 64, 128)
    train_population(data, bags, [trial(number) for number in numbers])


def bench_population(root: Path, configs: int, threads: int) -> None:
    """Processes one after another, as separate programs would be run."""
    make_task(root, 40, 64, 128)

    def process(numbers: list[int]) -> float:
        began_s = time.perf_counter()
        words = [str(number) for number in numbers]
        command = [sys.executable, __file__, "--threads", str(threads), "--trials", *words]
        subprocess.run([*command, "--root", str(root)], check=True)
        return time.perf_counter() - began_s

    together = process(list(range(configs)))
    apart = sum(process([number]) for number in range(configs))
    report(
        f"{configs} configurations in one trial against {configs} trials, start included",
        apart / together,
        4,
        seconds_together=round(together, 1),
        seconds_apart=round(apart, 1),
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bags", type=int, default=24)
    parser.add_argument("--patches", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--configs", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trials", type=int, nargs="*", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--root", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.trials:
        run_trials(given.root, given.trials)
        return
    with tempfile.TemporaryDirectory() as folder:
        names = ("load", "abmil", "small", "transmil", "packed", "population")
        roots = {name: Path(folder) / name for name in names}
        for root in roots.values():
            root.mkdir()
        sizes = (given.bags, given.patches, given.dim)
        bench_loading(roots["load"], 10_000, given.dim, given.rounds)
        bench_epoch(roots["abmil"], "abmil", *sizes, given.rounds)
        bench_epoch(roots["small"], "abmil", 48, 100, given.dim, given.rounds)
        bench_epoch(roots["transmil"], "transmil", 16, given.patches, given.dim, given.rounds)
        bench_packed(roots["packed"], given.dim, given.rounds)
        bench_population(roots["population"], given.configs, given.threads)


if __name__ == "__main__":
    main()
