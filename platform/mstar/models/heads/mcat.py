"""MCAT: multimodal co-attention transformer (Chen et al. 2021).

    H = Dropout(ReLU(W x))                      patches, 256
    G = SNN_1 … SNN_6 of six groups of genes    [group, 256]
    A = softmax(Q(G) K(H)' / 16);  Ĥ = A V(H)   each group looks for its patches
    h = ρ(gated attention over transformer(Ĥ));  g = the same of G, with weights of its own
    logits = C · fusion(h, g)                   `concat`, or `bilinear`: the outer product

Patches meet the transformers only as six sums, so a bag costs little more than its first layer.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mstar.models.heads.contract import Bags, GeneLayout, GroupedGenes, HeadOutput
from mstar.models.heads.fusion import ConcatFusion, KroneckerFusion
from mstar.models.heads.gene_layers import GroupEncoders, GroupHead
from mstar.models.heads.layers import AttentionNetwork, Dropout, FeatureLayer

Fusion = Literal["concat", "bilinear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class McatConfig:
    """Options of MCAT."""

    fusion: Fusion = "concat"
    """How the two vectors are joined: concat, or bilinear (paper: either)."""
    dim: int = 256
    """Length of the vectors of patches and groups (paper: 256)."""
    layers: int = 2
    """Layers of each set transformer (paper: 2)."""
    heads: int = 8
    """Attention heads of the set transformers (paper: 8)."""
    feed_forward: int = 512
    """Width inside their layers (paper: 512)."""
    dropout: float = 0.25
    """Dropout everywhere (paper: 0.25)."""
    fusion_scale: int = 8
    """With bilinear: vectors become so many times shorter first (paper: 8)."""


class SetPooling(nn.Module):
    """A transformer over the six vectors of a bag, and gated attention that sums them up."""

    def __init__(self, config: McatConfig) -> None:
        """Draws the weights."""
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            config.dim, config.heads, config.feed_forward, config.dropout, batch_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.attention = AttentionNetwork(
            config.dim, config.dim, 1, gated=True, dropout=config.dropout
        )
        self.out = nn.Sequential(
            nn.Linear(config.dim, config.dim), nn.ReLU(), Dropout(config.dropout)
        )

    def forward(self, vectors: Float[Tensor, "bag group dim"]) -> Float[Tensor, "bag dim"]:
        """One vector a bag."""
        mixed = self.transformer(vectors)
        weights = self.attention(mixed.flatten(0, 1)).view(mixed.shape[:2]).softmax(1)
        result: Tensor = self.out((weights[:, None] @ mixed)[:, 0])
        return result


class CoAttention(nn.Module):
    """Attention of one head, in which groups of genes ask and patches answer."""

    def __init__(self, dim: int) -> None:
        """`dim`: of patches and groups."""
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, 1, batch_first=True)

    def forward(
        self, patches: Float[Tensor, "patch dim"], groups: Float[Tensor, "group dim"]
    ) -> tuple[Float[Tensor, "group dim"], Float[Tensor, "patch group"]]:
        """What each group found in a bag, and where."""
        found, weights = self.attention(groups[None], patches[None], patches[None])
        return found[0], weights[0].T


class Mcat(GroupHead):
    """Genes ask for patches; both sides are summed up and joined."""

    def __init__(
        self, config: McatConfig, input_dim: int, num_outputs: int, layout: GeneLayout
    ) -> None:
        """Draws the weights."""
        super().__init__("mcat", input_dim, layout)
        self.feature = FeatureLayer(input_dim, config.dim, config.dropout)
        self.genes = GroupEncoders(layout, config.dim, config.dim, config.dropout)
        self.meet = self.make_meeting(config)
        self.of_slide, self.of_genes = SetPooling(config), SetPooling(config)
        self.fusion = (
            ConcatFusion(config.dim)
            if config.fusion == "concat"
            else KroneckerFusion(config.dim, config.fusion_scale, config.dropout)
        )
        self.classifier = nn.Linear(config.dim, num_outputs)

    def make_meeting(self, config: McatConfig) -> nn.Module:
        """What carries patches to groups: (patches, groups) → (found by each group, weights)."""
        return CoAttention(config.dim)

    def forward(
        self,
        x: Float[Tensor, "row dim"],
        offsets: Int64[Tensor, " edge"],
        labels: Int64[Tensor, " bag"] | None = None,
        genes: GroupedGenes | None = None,
    ) -> HeadOutput:
        """Scores of packed bags; attention has a column for each group."""
        bags, groups = self.read(x, offsets, genes)
        logits, attention = self.logits(self.feature(x), groups, bags)
        return HeadOutput(logits=logits, attention=attention)

    def logits(
        self,
        patches: Float[Tensor, "row hidden"],
        groups: Float[Tensor, "bag group hidden"],
        bags: Bags,
    ) -> tuple[Float[Tensor, "bag output"], Float[Tensor, "row group"]]:
        """From the vectors of patches and groups on."""
        met = [self.meet(own, g) for own, g in zip(bags.cut(patches), groups, strict=True)]
        found = torch.stack([one for one, _ in met])
        joint = self.fusion(self.of_slide(found), self.of_genes(groups))
        return self.classifier(joint), torch.cat([weights for _, weights in met])
