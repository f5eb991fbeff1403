"""Time and memory of one case in each stage-1 encoder at the paper's sizes.

    python tests/benchmarks/bench_stage1.py [--cases 1] [--rounds 2] [--device cpu] [--threads 1]

One JSON line per encoder: parameters, seconds of a forward pass without gradients, seconds of a
forward and backward pass, and the highest memory above that of the model and its gradients. Every
encoder runs in a process of its own, since a process never gives its highest memory back. Weights
are drawn: they cost what trained ones cost.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

PATCHES, FEATURES, TOKENS, GENES = 4096, 1024, 512, 17_425


def make_aggregator(cases: int) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """The aggregator and bags of 4,096 patches."""
    from mstar.models.aggregator import Aggregator, AggregatorConfig

    bags = torch.randn(cases, PATCHES, FEATURES)
    return Aggregator(AggregatorConfig()), lambda model: model(bags.to(device_of(model))).slide


def make_text(cases: int) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """A BERT of BioBERT's size and reports of 512 tokens, layers recomputed."""
    from mstar.models.torchvision_ops import declare_missing_ops

    declare_missing_ops()
    from transformers import BertConfig, BertModel

    from mstar.models.text_encoder import TextEncoder, TextEncoderConfig

    bert = BertModel(BertConfig(vocab_size=28_996), add_pooling_layer=False)
    tokens = torch.randint(0, 28_996, (cases, TOKENS))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    model = TextEncoder(TextEncoderConfig(), bert)
    return model, lambda m: m(tokens.to(device_of(m)), mask.to(device_of(m)))


def make_gene(cases: int) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """The Performer and rows of 17,425 genes."""
    from mstar.models.gene_encoder import GeneEncoder, GeneEncoderConfig

    rows = torch.randint(0, 6, (cases, GENES))
    model = GeneEncoder(GeneEncoderConfig(), torch.randn(GENES, 200))
    return model, lambda m: m(rows.to(device_of(m)))


MAKE = {"aggregator": make_aggregator, "text_encoder": make_text, "gene_encoder": make_gene}


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def highest_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, cases: int, rounds: int, device_name: str, threads: int) -> dict[str, Any]:
    """One encoder, in this process."""
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    model, call = MAKE[name](cases)
    model.to(device).train()
    for parameter in model.parameters():  # gradients are there in every step but the first
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    before = highest_bytes(device)
    forward_s, both_s = [], []
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        for _ in range(rounds):
            with torch.no_grad():
                forward_s.append(seconds(lambda: call(model).sum(), device))
            both_s.append(seconds(lambda: call(model).float().sum().backward(), device))
    return {
        "encoder": name,
        "device": device_name,
        "threads": threads,
        "cases": cases,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "forward_s": round(min(forward_s), 3),
        "forward_backward_s": round(min(both_s), 3),
        "memory_mib": round((highest_bytes(device) - before) / 2**20),
    }


def seconds(do: Callable[[], object], device: torch.device) -> float:
    began_s = time.perf_counter()
    do()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began_s


def main() -> None:
    """Print a line for every encoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    for name in MAKE:
        arguments = (name, given.cases, given.rounds, given.device, given.threads)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(json.dumps(pool.apply(measure, arguments)), flush=True)


if __name__ == "__main__":
    main()
