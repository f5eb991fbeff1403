"""CMTA: cross-modal translation and alignment (Zhou and Chen 2023).

    H = patches, two layers to 256;  G = six groups of genes, each SNN → 1024 → 256
    P, H' = encoder(CLS ‖ H);   Q, G' = encoder(CLS ‖ G)          each modality by itself
    H'' = H' asks G';           G'' = G' asks H'                  cross-attention, one head
    P̂ = decoder(CLS ‖ H'');    Q̂ = decoder(CLS ‖ G'')           each as the other tells it
    logits = C · fusion((P + P̂) / 2, (Q + Q̂) / 2)
    extra loss = L1(P̂, P) + L1(Q̂, Q), with P and Q held fixed

Encoders and decoders are two Nyström layers; those of patches have a PPEG between. As in TransMIL
the size of a bag alone says whether its attention is exact (`attention`).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from mstar.errors import ConfigError
from mstar.models.aggregator import AggregatorConfig, TransformerLayer
from mstar.models.heads.contract import GeneLayout, GroupedGenes, HeadOutput
from mstar.models.heads.fusion import ConcatFusion
from mstar.models.heads.gene_layers import GroupEncoders, GroupHead
from mstar.models.heads.layers import FeatureLayer
from mstar.models.heads.transmil import BagAttention
from mstar.models.nystrom import Mode
from mstar.models.ppeg import PositionGrid


@dataclass(frozen=True, slots=True, kw_only=True)
class CmtaConfig:
    """Options of CMTA."""

    dim: int = 256
    """Length of the vectors of patches and groups (published: 256)."""
    gene_hidden: int = 1024
    """Width of the first layer of each group's network (published: 1024)."""
    heads: int = 8
    """Attention heads of encoders and decoders (published: 8)."""
    landmarks: int = 128
    """Landmarks of the Nyström approximation (published: 128)."""
    dropout: float = 0.25
    """Dropout after the first layers (published: 0.25)."""
    attention_dropout: float = 0.1
    """Dropout after each attention layer (as in TransMIL)."""
    alignment: float = 1.0
    """Weight of the L1 alignment in training (published: 1); 0 leaves it out."""
    mode: Mode = "public"
    """How a bag becomes a square grid: `public` repeats its first patches and lets them count,
    `masked` leaves cells empty."""
    attention: BagAttention = "auto"
    """`nystrom` as published, `exact`, or `auto`: exact for small bags."""
    exact_up_to: int = 2048
    """With `auto`: patches of the largest bag with exact attention."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        if self.heads < 1 or self.dim % self.heads or self.alignment < 0:
            raise ConfigError(
                f"cmta: expected heads that divide dim and alignment from 0 up, got {self.heads}, "
                f"{self.dim} and {self.alignment}"
            )


class Coder(nn.Module):
    """Two transformer layers over a CLS token and the tokens of bags of one size."""

    def __init__(self, config: CmtaConfig, *, grid: bool) -> None:
        """`grid`: with a PPEG between the layers."""
        super().__init__()
        sizes = AggregatorConfig(
            dim=config.dim,
            heads=config.heads,
            landmarks=config.landmarks,
            attention_dropout=config.attention_dropout,
            mode=config.mode,
        )
        self.config = config
        self.cls = nn.Parameter(torch.randn(1, 1, config.dim) * 1e-6)
        self.layer1, self.layer2 = TransformerLayer(sizes), TransformerLayer(sizes)
        self.position = PositionGrid(config.dim) if grid else None
        self.norm = nn.LayerNorm(config.dim)

    def forward(
        self, tokens: Float[Tensor, "bag token dim"]
    ) -> tuple[Float[Tensor, "bag dim"], Float[Tensor, "bag token dim"]]:
        """The CLS token, and the others."""
        count = tokens.shape[1]
        self._attend(count)
        cls = self.cls.to(tokens.dtype).expand(len(tokens), -1, -1)
        mixed = self.layer1(torch.cat([cls, self._squared(tokens)], dim=1), None)
        if self.position is not None:
            mixed = torch.cat([mixed[:, :1], self._placed(mixed[:, 1:])], dim=1)
        done = self.norm(self.layer2(mixed, None))
        return done[:, 0], done[:, 1 : count + 1]

    def _attend(self, count: int) -> None:
        """The size of the bag decides where the options leave it to that."""
        kind = self.config.attention
        if kind == "auto":
            kind = "exact" if count <= self.config.exact_up_to else "nystrom"
        self.layer1.attn.attention = self.layer2.attn.attention = kind

    def _squared(self, tokens: Float[Tensor, "bag token dim"]) -> Float[Tensor, "bag more dim"]:
        """`public`: the first tokens come again at the end, up to a square number."""
        if self.position is None or self.config.mode == "masked":
            return tokens
        count = tokens.shape[1]
        side = math.isqrt(count - 1) + 1
        return torch.cat([tokens, tokens[:, : side * side - count]], dim=1)

    def _placed(self, tokens: Float[Tensor, "bag token dim"]) -> Float[Tensor, "bag token dim"]:
        assert self.position is not None
        lengths = None
        if self.config.mode == "masked":
            lengths = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
        placed: Tensor = self.position(tokens, lengths)
        return placed


class Cmta(GroupHead):
    """Each modality is encoded, translated into the other, and held to what that one says."""

    def __init__(
        self, config: CmtaConfig, input_dim: int, num_outputs: int, layout: GeneLayout
    ) -> None:
        """Draws the weights."""
        super().__init__("cmta", input_dim, layout)
        self.config, dim = config, config.dim
        self.feature = FeatureLayer(input_dim, dim, config.dropout)
        self.second = FeatureLayer(dim, dim, config.dropout)
        self.genes = GroupEncoders(layout, config.gene_hidden, dim, config.dropout)
        self.slide_encoder = Coder(config, grid=True)
        self.slide_decoder = Coder(config, grid=True)
        self.gene_encoder = Coder(config, grid=False)
        self.gene_decoder = Coder(config, grid=False)
        self.slide_asks = nn.MultiheadAttention(dim, 1, batch_first=True)
        self.genes_ask = nn.MultiheadAttention(dim, 1, batch_first=True)
        self.fusion = ConcatFusion(dim)
        self.classifier = nn.Linear(dim, num_outputs)

    def forward(
        self,
        x: Float[Tensor, "row dim"],
        offsets: Int64[Tensor, " edge"],
        labels: Int64[Tensor, " bag"] | None = None,
        genes: GroupedGenes | None = None,
    ) -> HeadOutput:
        """Scores of packed bags; in training the alignment too."""
        bags, groups = self.read(x, offsets, genes)
        patches = self.second(self.feature(x))
        gene, of_groups = self.gene_encoder(groups)
        told = [self._tell(own, g) for own, g in zip(bags.cut(patches), of_groups, strict=True)]
        slide, slide_hat, answered = (torch.cat(part) for part in zip(*told, strict=True))
        gene_hat, _ = self.gene_decoder(answered)
        joint = self.fusion((slide + slide_hat) / 2, (gene + gene_hat) / 2)
        extra = None
        if self.training and self.config.alignment:
            apart = l1_loss(slide_hat, slide.detach()) + l1_loss(gene_hat, gene.detach())
            extra = self.config.alignment * apart
        return HeadOutput(logits=self.classifier(joint), extra_loss=extra)

    def _tell(
        self, patches: Float[Tensor, "patch hidden"], of_groups: Float[Tensor, "group hidden"]
    ) -> tuple[
        Float[Tensor, "1 hidden"], Float[Tensor, "1 hidden"], Float[Tensor, "1 group hidden"]
    ]:
        """What the slide of one bag says, what it says in the genes' words, and its answer to them.

        Bags go through it one at a time, as in TransMIL; of groups there are as many in each.
        """
        slide, of_patches = self.slide_encoder(patches[None])
        asked, _ = self.slide_asks(of_patches, of_groups[None], of_groups[None], need_weights=False)
        answered, _ = self.genes_ask(of_groups[None], of_patches, of_patches, need_weights=False)
        return slide, self.slide_decoder(asked)[0], answered
