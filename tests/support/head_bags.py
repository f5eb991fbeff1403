"""Small packed batches, and small heads of every kind to give them to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mstar.models.aggregator import Aggregator, AggregatorConfig
from mstar.models.heads import (
    HEADS,
    GeneHead,
    GeneLayout,
    GroupedGenes,
    HeadOutput,
    build_head,
)
from mstar.models.heads.layers import Dropout
from mstar.models.stage1_files import save_aggregator

DIM, CLASSES = 12, 3
SIZES = (5, 1, 40, 17)
SMALL: Mapping[str, Mapping[str, Any]] = {
    "linear": {},
    "knn": {"neighbours": 2},
    "prototype": {},
    "abmil": {"hidden": 16, "attention_dim": 8},
    "abmil_gated": {"hidden": 16, "attention_dim": 8},
    "clam_sb": {"hidden": 16, "attention_dim": 8, "num_instances": 4},
    "clam_mb": {"hidden": 16, "attention_dim": 8, "num_instances": 4},
    "dsmil": {"hidden": 16, "query_dim": 8},
    "transmil": {"dim": 16, "heads": 2, "landmarks": 4, "exact_up_to": 16},
    "transmil_plus": {"attention": "auto", "exact_up_to": 16},
    "cox_linear": {},
    "snn": {"dim": 16, "dropout": 0.0},
    "mcat": {"dim": 16, "heads": 2, "feed_forward": 32, "dropout": 0.0, "fusion_scale": 4},
    "porpoise": {
        "hidden": 16, "dim": 16, "input_dropout": 0.0, "dropout": 0.0, "fusion_scale": 4, "rank": 3
    },
    "motcat": {"dim": 16, "heads": 2, "feed_forward": 32, "dropout": 0.0, "chunk_patches": 5000},
    "cmta": {
        "dim": 16, "gene_hidden": 24, "heads": 2, "landmarks": 4, "exact_up_to": 16,
        "dropout": 0.0, "attention_dropout": 0.0,
    },
}  # fmt: skip
COLUMNS = tuple(torch.tensor(group) for group in ([0, 1, 2], [3, 4], [5], [2, 6], [7, 8], [9]))
LAYOUT = GeneLayout(genes=DIM, groups=tuple(len(group) for group in COLUMNS))


def packed(sizes: Sequence[int] = SIZES, *, dim: int = DIM, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random features and offsets of bags of these sizes."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    return torch.randn(int(offsets[-1]), dim, generator=generator), offsets


def labels_of(bags: int) -> Tensor:
    """Classes in turn."""
    return torch.arange(bags) % CLASSES


def export_aggregator(folder: Path, dim: int = DIM) -> str:
    """A small aggregator as stage 1 leaves it."""
    torch.manual_seed(7)
    config = AggregatorConfig(input_dim=dim, dim=16, heads=2, landmarks=4)
    save_aggregator(str(folder), Aggregator(config))
    return str(folder)


def small_head(name: str, folder: Path, **options: object) -> nn.Module:
    """A small head in evaluation mode; without dropout when trained further. Fitted if need be."""
    torch.manual_seed(3)
    chosen = dict(SMALL[name]) | options
    if name == "transmil_plus":
        chosen["aggregator"] = export_aggregator(folder)
    outputs = 1 if name == "cox_linear" else CLASSES
    head = build_head(name, chosen, input_dim=DIM, num_outputs=outputs, genes=LAYOUT)
    for module in head.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, Dropout):
            module.rate.zero_()
    if name == "cox_linear":  # it begins at zero, where nothing can be told apart
        nn.init.normal_(next(head.parameters()))
    if not HEADS[name].trained:
        x, offsets = packed((3, 4, 5, 6, 7, 8), seed=1)
        head.fit(x, offsets, labels_of(6))  # type: ignore[operator]
    return head.eval()


def call(head: nn.Module, x: Tensor, offsets: Tensor, labels: Tensor | None = None) -> HeadOutput:
    """The output of a head, with its type; one that reads genes is given some of each bag's own."""
    more = (genes_of(x, offsets),) if isinstance(head, GeneHead) else ()
    output = head(x, offsets, labels, *more)
    assert isinstance(output, HeadOutput)
    return output


def genes_of(x: Tensor, offsets: Tensor) -> GroupedGenes:
    """Gene expression that goes with the bags wherever they are: it follows from their rows."""
    values = [bag.detach().float().mean(0) for bag in x.split(offsets.diff().tolist())]
    return GroupedGenes(values=torch.stack(values), columns=COLUMNS)


def one_at_a_time(
    head: nn.Module, x: Tensor, offsets: Tensor, labels: Tensor | None = None
) -> list[HeadOutput]:
    """The outputs of the bags, each alone."""
    pairs = list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
    return [
        call(
            head,
            x[first:last],
            torch.tensor([0, last - first]),
            None if labels is None else labels[[place]],
        )
        for place, (first, last) in enumerate(pairs)
    ]
