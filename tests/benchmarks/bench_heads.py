"""MIL heads: packed batches against one bag at a time, exact attention against Nyström.

    python tests/benchmarks/bench_heads.py [--rounds 5] [--quick]

One JSON line per ratio, each with its target. A step is forward, loss and backward, in float32 on
one thread, in seconds of the processor. The ways take turns and the fastest round of each counts,
so that other work on the machine slows both.

packed      8 bags of ABMIL in one batch, against the same bags in eight. Both leave the same
            gradient; the optimiser is not timed.
plain       one bag through our ABMIL against the same layers written down in PyTorch: what the
            packed form costs where there is nothing to pack.
attention   one attention layer of TransMIL (dim 512, 8 heads, 256 landmarks) on 1,024 tokens:
            exact, against the package that the public TransMIL uses, and against ours.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping

import torch
from nystrom_attention import NystromAttention as PackageAttention
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mstar.models.heads import build_head
from mstar.models.nystrom import AttentionKind, NystromAttention

BAGS = 8
TOKENS, DIM, HEADS, LANDMARKS = 1024, 512, 8, 256
SIZES = {"300-3,000": (300, 3000), "60-300": (60, 300)}


def fastest(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Processor seconds of each way's fastest round; they take turns."""
    best = dict.fromkeys(ways, float("inf"))
    for number in range(rounds + 1):
        for name, way in ways.items():
            begin = time.process_time()
            way()
            if number:  # the first round warms up
                best[name] = min(best[name], time.process_time() - begin)
    return best


def report(row: str, ratio: float, target: float | None, seconds: Mapping[str, float]) -> None:
    """One line of JSON."""
    ms = {name: round(value * 1e3, 2) for name, value in seconds.items()}
    line = {"bench": "heads", "row": row, "ratio": round(ratio, 2), "target": target, "ms": ms}
    print(json.dumps(line), flush=True)


def drawn_bags(low: int, high: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bags with sizes spread evenly over a range, as offsets, rows and labels."""
    sizes = torch.linspace(low, high, BAGS).long()
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    return torch.randn(int(offsets[-1]), dim), offsets, torch.arange(BAGS) % 2


def bench_packed(name: str, dim: int, rounds: int) -> None:
    """A batch of packed bags against its bags."""
    for label, (low, high) in SIZES.items():
        x, offsets, labels = drawn_bags(low, high, dim)
        head = build_head(name, {}, input_dim=dim, num_outputs=2)
        singles = [
            (x[first:last], torch.tensor([0, last - first]), labels[[place]])
            for place, (first, last) in enumerate(
                zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
            )
        ]

        def step(
            x: Tensor, offsets: Tensor, labels: Tensor, share: float, head: nn.Module = head
        ) -> None:
            output = head(x, offsets, labels)
            loss = cross_entropy(output.logits, labels)
            extra = output.extra_loss
            ((loss if extra is None else loss + extra) * share).backward()

        def packed(head: nn.Module = head, batch: tuple = (x, offsets, labels)) -> None:
            head.zero_grad()
            step(*batch, 1.0)

        def one_by_one(head: nn.Module = head, bags: list = singles) -> None:
            head.zero_grad()
            for bag in bags:
                step(*bag, 1 / BAGS)

        seconds = fastest({"packed": packed, "one_by_one": one_by_one}, rounds)
        ratio = seconds["one_by_one"] / seconds["packed"]
        target = 1.0 if name == "abmil" or high < 1000 else None  # large bags fill the cores anyway
        report(f"{name}, 8 bags of {label}: packed against one by one", ratio, target, seconds)


class PlainAbmil(nn.Module):
    """ABMIL as one writes it down for one bag."""

    def __init__(self, dim: int) -> None:
        """The paper's sizes."""
        super().__init__()
        self.feature = nn.Sequential(nn.Linear(dim, 512), nn.ReLU(), nn.Dropout(0.25))
        self.attention = nn.Sequential(nn.Linear(512, 128), nn.Tanh(), nn.Linear(128, 1))
        self.classifier = nn.Linear(512, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of one bag."""
        h = self.feature(x)
        logits: Tensor = self.classifier(self.attention(h).softmax(0).T @ h)
        return logits


def bench_plain(dim: int, rounds: int) -> None:
    """Our ABMIL on one bag against the plain one."""
    for size in (200, 2000):
        x, offsets, label = torch.randn(size, dim), torch.tensor([0, size]), torch.tensor([1])
        ours = build_head("abmil", {}, input_dim=dim, num_outputs=2)
        plain = PlainAbmil(dim)
        ways = {
            "plain": lambda x=x, y=label, plain=plain: cross_entropy(plain(x), y).backward(),
            "ours": lambda x=x, y=label, o=offsets, ours=ours: cross_entropy(
                ours(x, o).logits, y
            ).backward(),
        }
        seconds = fastest(ways, 4 * rounds)
        ratio = seconds["plain"] / seconds["ours"]
        report(f"abmil, one bag of {size:,}: plain PyTorch over ours", ratio, 0.9, seconds)


def attention_layer(kind: AttentionKind) -> NystromAttention:
    """Our layer with TransMIL's sizes."""
    return NystromAttention(
        dim=DIM,
        heads=HEADS,
        landmarks=LANDMARKS,
        inverse_iterations=6,
        dropout=0.1,
        mode="public",
        attention=kind,
        inverse_scale="bag",
    )


def bench_attention(rounds: int) -> None:
    """The same layer three ways."""
    package = PackageAttention(
        dim=DIM,
        dim_head=DIM // HEADS,
        heads=HEADS,
        num_landmarks=LANDMARKS,
        pinv_iterations=6,
        residual=True,
        dropout=0.1,
    )
    layers: dict[str, nn.Module] = {
        "package": package,
        "nystrom": attention_layer("nystrom"),
        "exact": attention_layer("exact"),
    }
    tokens = torch.randn(1, TOKENS, DIM, requires_grad=True)
    ways = {
        name: lambda layer=layer: layer(tokens).square().mean().backward()
        for name, layer in layers.items()
    }
    seconds = fastest(ways, rounds)
    for other, row in (("package", "released Nyström"), ("nystrom", "our Nyström")):
        ratio = seconds[other] / seconds["exact"]
        name = f"attention of {TOKENS:,} tokens: exact against {row}"
        report(name, ratio, 2.0 if other == "package" else 1.0, seconds)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--quick", action="store_true", help="one head, fewer rounds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rounds = 2 if args.quick else args.rounds
    for name in ("abmil",) if args.quick else ("abmil", "abmil_gated", "clam_sb", "dsmil"):
        bench_packed(name, args.dim, rounds)
    bench_plain(args.dim, rounds)
    bench_attention(rounds)


if __name__ == "__main__":
    main()
