"""SNN: gene expression alone, by a self-normalising network (Klambauer et al. 2017).

logits = C · SNN(genes) + c

The arm without slides that fusion is compared with. It takes the genes of the groups side by side
where there are groups (as fusion does), else all of them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mstar.errors import ConfigError
from mstar.models.heads.contract import GeneLayout, GroupedGenes, HeadOutput, read_bags
from mstar.models.heads.gene_layers import GeneScale, SnnLayer, given_genes


@dataclass(frozen=True, slots=True, kw_only=True)
class SnnConfig:
    """Options of the network of genes."""

    genes: Literal["auto", "groups", "all"] = "auto"
    """Which genes: those of the groups, all, or auto: of the groups where there are any."""
    dim: int = 256
    """Width of both layers (MCAT's and Porpoise's: 256)."""
    dropout: float = 0.25
    """AlphaDropout after each layer."""


class Snn(nn.Module):
    """Two self-normalising layers and a classifier; patches are not looked at."""

    def __init__(
        self, config: SnnConfig, input_dim: int, num_outputs: int, layout: GeneLayout
    ) -> None:
        """Draws the weights."""
        super().__init__()
        if config.genes == "groups" and not layout.groups:
            raise ConfigError("head snn: genes=groups needs a signature table, got no groups.")
        self.input_dim = input_dim
        self.grouped = bool(layout.groups) and config.genes != "all"
        self.scale = GeneScale(layout)
        inputs = sum(layout.groups) if self.grouped else layout.genes
        self.network = nn.Sequential(
            SnnLayer(inputs, config.dim, config.dropout),
            SnnLayer(config.dim, config.dim, config.dropout),
        )
        self.classifier = nn.Linear(config.dim, num_outputs)

    def learn_genes(self, values: Float[Tensor, "case gene"]) -> None:
        """Take mean and spread of every gene from the training split."""
        self.scale.learn(values)

    def forward(
        self,
        x: Float[Tensor, "row dim"],
        offsets: Int64[Tensor, " edge"],
        labels: Int64[Tensor, " bag"] | None = None,
        genes: GroupedGenes | None = None,
    ) -> HeadOutput:
        """Scores of the cases whose bags these are."""
        genes = given_genes(genes, len(read_bags(x, offsets, self.input_dim)))
        values = torch.cat(self.scale.groups(genes), dim=1) if self.grouped else self.scale(genes)
        return HeadOutput(logits=self.classifier(self.network(values)))
