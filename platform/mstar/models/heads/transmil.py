"""TransMIL (Shao et al. 2021): two transformer layers over the patches of a bag, and a CLS token.

    h = Dropout(ReLU(W x));  CLS ‖ h → layer → PPEG on a square grid → layer → LayerNorm
    logits = C · CLS + c

The network is `mstar.models.aggregator`. Bags go through it one at a time and as they are: the
square of its grid and its landmarks are those of the bag, not of a padded batch.

`auto` attention is exact for bags of up to `exact_up_to` patches, where it is faster, and Nyström
above. The size of the bag alone decides, so that a model gives the same numbers on any device.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mstar.models.aggregator import Aggregator, AggregatorConfig
from mstar.models.heads.contract import Bags, HeadOutput, computable, read_bags
from mstar.models.nystrom import AttentionKind, Mode

BagAttention = Literal["auto", "nystrom", "exact"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransMilConfig:
    """Options of TransMIL."""

    dim: int = 512
    """Length of a token (paper: 512)."""
    heads: int = 8
    """Attention heads (paper: 8)."""
    landmarks: int = 256
    """Landmarks of the Nyström approximation (paper: 256)."""
    input_dropout: float = 0.25
    """Dropout after the first layer (paper: 0.25)."""
    attention_dropout: float = 0.1
    """Dropout after each attention layer (public code: 0.1)."""
    mode: Mode = "public"
    """How a bag becomes a square grid: `public` repeats its first patches and lets them count,
    `masked` leaves cells empty."""
    attention: BagAttention = "auto"
    """`nystrom` as published, `exact`, or `auto`: exact for small bags."""
    exact_up_to: int = 2048
    """With `auto`: patches of the largest bag with exact attention. About where a CPU crosses over;
    a GPU does at about 16,000."""


class TransMil(nn.Module):
    """The aggregator with a classifier."""

    def __init__(self, config: TransMilConfig, input_dim: int, num_outputs: int) -> None:
        """Draws the weights."""
        super().__init__()
        self.config, self.input_dim = config, input_dim
        self.aggregator = Aggregator(
            AggregatorConfig(
                input_dim=input_dim,
                dim=config.dim,
                heads=config.heads,
                landmarks=config.landmarks,
                input_dropout=config.input_dropout,
                attention_dropout=config.attention_dropout,
                mode=config.mode,
                num_classes=num_outputs,
            )
        )

    def forward(
        self,
        x: Float[Tensor, "row dim"],
        offsets: Int64[Tensor, " edge"],
        labels: Int64[Tensor, " bag"] | None = None,
    ) -> HeadOutput:
        """Scores of packed bags."""
        bags = read_bags(x, offsets, self.input_dim)
        slides = slide_vectors(
            self.aggregator, x, bags, self.config.attention, self.config.exact_up_to
        )
        return HeadOutput(logits=self.aggregator._fc2(slides))


def slide_vectors(
    aggregator: Aggregator,
    x: Float[Tensor, "row dim"],
    bags: Bags,
    attention: str,
    exact_up_to: int,
) -> Float[Tensor, "bag token"]:
    """The CLS token of each bag, one bag after the other."""
    slides = []
    for bag in bags.cut(x):
        if attention == "auto":
            attend(aggregator, "exact" if len(bag) <= exact_up_to else "nystrom")
        elif attention in ("nystrom", "exact"):
            attend(aggregator, "exact" if attention == "exact" else "nystrom")
        slides.append(aggregator(computable(bag)[None]).slide)
    return torch.cat(slides)


def attend(aggregator: Aggregator, kind: AttentionKind) -> None:
    """Let both layers attend in this way from now on; the weights serve either."""
    for layer in (aggregator.layer1, aggregator.layer2):
        layer.attn.attention = kind
