"""Porpoise: attention pooling of patches, a network of genes, low-rank bilinear fusion.

(Chen et al. 2022)

    h = ρ(Σ a H),  H = Dropout(ReLU(W Dropout(x))),  a = gated attention over 256
    g = SNN of all genes, without groups
    logits = low-rank fusion of h and g            (`mstar.models.heads.fusion`)

The article of mSTAR speaks of 25 hidden numbers for RNA and dropout 0.1; the code it was run with
has 256, and 0.10 on the features, 0.25 elsewhere. The latter are the defaults.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor, nn

from mstar.models.heads.contract import (
    GeneLayout,
    GroupedGenes,
    HeadOutput,
    computable,
    read_bags,
)
from mstar.models.heads.fusion import LowRankFusion
from mstar.models.heads.gene_layers import GeneScale, SnnLayer, given_genes
from mstar.models.heads.layers import AttentionNetwork, Dropout, FeatureLayer
from mstar.models.heads.segments import bag_softmax, weighted_sums


@dataclass(frozen=True, slots=True, kw_only=True)
class PorpoiseConfig:
    """Options of Porpoise."""

    hidden: int = 512
    """Length of a patch's vector after the first layer (published: 512)."""
    dim: int = 256
    """Length of the slide's and the genes' vectors, and inside attention (published: 256)."""
    input_dropout: float = 0.1
    """Dropout on the features (published: 0.10)."""
    dropout: float = 0.25
    """Dropout elsewhere (published code: 0.25)."""
    fusion_scale: int = 8
    """Vectors become so many times shorter before they are multiplied (published: 8)."""
    rank: int = 16
    """Terms of the fusion (published: 16)."""


class Porpoise(nn.Module):
    """Two arms, and their product."""

    def __init__(
        self, config: PorpoiseConfig, input_dim: int, num_outputs: int, layout: GeneLayout
    ) -> None:
        """Draws the weights."""
        super().__init__()
        self.input_dim = input_dim
        self.input_dropout = Dropout(config.input_dropout)
        self.feature = FeatureLayer(input_dim, config.hidden, config.dropout)
        self.attention = AttentionNetwork(
            config.hidden, config.dim, 1, gated=True, dropout=config.dropout
        )
        self.of_slide = nn.Sequential(
            nn.Linear(config.hidden, config.dim), nn.ReLU(), Dropout(config.dropout)
        )
        self.scale = GeneScale(layout)
        self.of_genes = nn.Sequential(
            SnnLayer(layout.genes, config.dim, config.dropout),
            SnnLayer(config.dim, config.dim, config.dropout),
        )
        self.fusion = LowRankFusion(
            config.dim, num_outputs, config.fusion_scale, config.rank, config.dropout
        )

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
        """Scores and attention of packed bags."""
        bags = read_bags(x, offsets, self.input_dim)
        rows = self.input_dropout(computable(x)) if self.training else x
        h = self.feature(rows)  # [row, hidden]
        a = bag_softmax(self.attention(h), bags)  # [row, 1]
        slide = self.of_slide(weighted_sums(a, h, bags)[:, 0])
        of_genes = self.of_genes(self.scale(given_genes(genes, len(bags))))
        return HeadOutput(logits=self.fusion(slide, of_genes), attention=a[:, 0])
