"""What it saves that the report encoder's last layer computes [CLS] alone (`first_token.py`).

    PYTHONPATH=tests python tests/benchmarks/bench_first_token.py [--rounds 4]

One JSON line per size: CPU seconds of a forward and backward pass, all tokens over [CLS] alone, the
median over rounds; the two take turns. Weights are drawn: they cost what trained ones cost.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from mstar.models.text_encoder import TextEncoder, TextEncoderConfig
from mstar.models.torchvision_ops import declare_missing_ops

THREADS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A BERT and the reports of one pass."""

    name: str
    bert: dict[str, Any]
    reports: int
    tokens: int
    checkpointing: bool


SIZES = (
    Size(
        name="one layer of 64, 64 reports of up to 400 tokens",
        bert={
            "vocab_size": 2000,
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "attention_probs_dropout_prob": 0.0,
        },
        reports=64,
        tokens=400,
        checkpointing=False,
    ),
    Size(
        name="BioBERT's size, a report of 512 tokens",
        bert={"vocab_size": 28_996},
        reports=1,
        tokens=512,
        checkpointing=True,
    ),
)


class WholeTextEncoder(TextEncoder):
    """The same, every token computed in the last layer too."""

    def __init__(self, config: TextEncoderConfig, bert: Any) -> None:
        super().__init__(config, bert)
        vars(self.bert.encoder.layer[-1]).pop("forward")  # type: ignore[union-attr, index]
        self._first_only = False


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    for size in SIZES:
        measure(size, given.rounds)


def measure(size: Size, rounds: int) -> None:
    """One line; a round before the first warms up."""
    models = [build(kind, size) for kind in (WholeTextEncoder, TextEncoder)]
    torch.manual_seed(0)
    tokens = torch.randint(5, 2000, (size.reports, size.tokens))
    lengths = torch.randint(size.tokens * 7 // 10, size.tokens + 1, (size.reports, 1))
    mask = torch.arange(size.tokens) < lengths
    spent = [[step_s(model, tokens, mask) for model in models] for _ in range(rounds + 1)][1:]
    row = {"bench": "report encoder", "row": f"all tokens / [CLS] alone: {size.name}"}
    ratio = round(median(whole / first for whole, first in spent), 2)
    print(json.dumps(row | {"ratio": ratio, "target": 1.0, "s": spent}), flush=True)


def build(kind: type[TextEncoder], size: Size) -> TextEncoder:
    """A text encoder with drawn weights."""
    declare_missing_ops()
    from transformers import BertConfig, BertModel

    config = TextEncoderConfig(gradient_checkpointing=size.checkpointing)
    return kind(config, BertModel(BertConfig(**size.bert), add_pooling_layer=False)).train()


def step_s(model: TextEncoder, tokens: Tensor, mask: Tensor) -> float:
    """CPU seconds of a forward and backward pass."""
    began_s = time.process_time()
    model(tokens, mask).square().sum().backward()
    return time.process_time() - began_s


if __name__ == "__main__":
    main()
