"""The slide aggregator: TransMIL, from the features of a bag to one vector and new patch tokens.

State-dict names are those of the public TransMIL, so published aggregators load. Two modes
(`AggregatorConfig.mode`) give different numbers from the same weights: an aggregator is used in the
mode it was trained in, which every export records (`mstar.models.stage1_files`).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mstar.errors import ConfigError, FeatureError
from mstar.models.nystrom import AttentionKind, InverseScale, Mode, NystromAttention
from mstar.models.ppeg import PositionGrid

CLS_STD = 1e-6
MODES = ("public", "masked")
ATTENTIONS = ("nystrom", "exact")
INVERSE_SCALES = ("bag", "tensor")


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorConfig:
    """What an aggregator is and how it computes."""

    input_dim: int = 1024
    """Length of a patch's feature vector."""
    dim: int = 512
    """Length of a token, and of the slide vector."""
    heads: int = 8
    """Attention heads; `dim` is divided among them."""
    landmarks: int = 256
    """Landmarks of the Nyström approximation."""
    inverse_iterations: int = 6
    """Steps of the pseudo-inverse's iteration."""
    input_dropout: float = 0.25
    """Dropout after the input layer, as in the authors' downstream module; a choice."""
    attention_dropout: float = 0.1
    """Dropout after each attention layer; a choice."""
    mode: Mode = "public"
    """`public` equals the public module on one bag: padding counts. `masked`: it does not."""
    attention: AttentionKind = "nystrom"
    """`nystrom` as published, or `exact` attention with the same weights."""
    inverse_scale: InverseScale = "bag"
    """Where the pseudo-inverse's scale is taken: `bag`, or `tensor`, the published code's, which
    makes a bag depend on the others of its batch. On one bag they are the same. Masked: `bag`."""
    num_classes: int = 0
    """Outputs of the optional classifier `_fc2`; 0 for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorOutput:
    """What an aggregator makes of bags.

    slide: the CLS token after the last LayerNorm.
    patches: the patch tokens after the same LayerNorm, in the order of the input. `masked`: zeros
        where the input was padding. `public`: padding has tokens too.
    logits: the classifier's, when there is one.
    """

    slide: Float[Tensor, "bag dim"]
    patches: Float[Tensor, "bag patch dim"]
    logits: Float[Tensor, "bag label"] | None


class TransformerLayer(nn.Module):
    """Tokens plus the attention of their normalised selves; TransMIL has no feed-forward block."""

    def __init__(self, config: AggregatorConfig) -> None:
        """One layer of the aggregator."""
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.attn = NystromAttention(
            dim=config.dim,
            heads=config.heads,
            landmarks=config.landmarks,
            inverse_iterations=config.inverse_iterations,
            dropout=config.attention_dropout,
            mode=config.mode,
            attention=config.attention,
            inverse_scale=config.inverse_scale,
        )

    def forward(
        self, tokens: Float[Tensor, "bag token dim"], lengths: Int64[Tensor, " bag"] | None
    ) -> Float[Tensor, "bag token dim"]:
        """The tokens after this layer."""
        attended: Tensor = self.attn(self.norm(tokens), lengths)
        return tokens + attended


class Aggregator(nn.Module):
    """Two-layer TransMIL."""

    def __init__(self, config: AggregatorConfig) -> None:
        """Draws the weights: xavier-normal matrices, zero biases, a CLS token of about zero."""
        super().__init__()
        _check(config)
        self.config = config
        self._fc1 = nn.Sequential(
            nn.Linear(config.input_dim, config.dim), nn.ReLU(), nn.Dropout(config.input_dropout)
        )
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.dim) * CLS_STD)
        self.layer1 = TransformerLayer(config)
        self.pos_layer = PositionGrid(config.dim)
        self.layer2 = TransformerLayer(config)
        self.norm = nn.LayerNorm(config.dim)
        if config.num_classes:
            self._fc2 = nn.Linear(config.dim, config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        bags: Float[Tensor, "bag patch feature"],
        mask: Bool[Tensor, "bag patch"] | None = None,
    ) -> AggregatorOutput:
        """The slide vectors and the re-embedded patch tokens of bags.

        Args:
            bags: patch features, padded at the end to a common number of patches.
            mask: False where a row is padding; what lies there is not looked at. `public` puts the
                mean of the bag there (the paper's padding) and lets it count. None: no padding.

        Raises:
            FeatureError: a bag is empty, padded elsewhere than at its end, or of another dimension.
        """
        if bags.shape[2] != self.config.input_dim:
            raise FeatureError(
                f"the aggregator expects features of {self.config.input_dim} numbers, got "
                f"{bags.shape[2]}. Use the features of the encoder it was made for."
            )
        lengths = None if mask is None else _lengths(mask)
        if self.config.mode == "public":
            tokens = self._run_public(_mean_padded(bags, mask, lengths))
        else:
            tokens = self._run_masked(bags, mask, lengths)
        slide = tokens[:, 0]
        logits = self._fc2(slide) if self.config.num_classes else None
        return AggregatorOutput(slide=slide, patches=tokens[:, 1:], logits=logits)

    def _run_public(
        self, bags: Float[Tensor, "bag patch feature"]
    ) -> Float[Tensor, "bag token dim"]:
        """All rows count; the first ones come again at the end, up to a square number."""
        patches = bags.shape[1]
        hidden = self._fc1(bags)
        side = math.isqrt(patches - 1) + 1
        hidden = torch.cat([hidden, hidden[:, : side * side - patches]], dim=1)
        tokens = self.layer1(self._with_cls(hidden), None)
        tokens = torch.cat([tokens[:, :1], self.pos_layer(tokens[:, 1:])], dim=1)
        tokens = self.layer2(tokens, None)
        result: Tensor = self.norm(tokens[:, : patches + 1])
        return result

    def _run_masked(
        self,
        bags: Float[Tensor, "bag patch feature"],
        mask: Bool[Tensor, "bag patch"] | None,
        lengths: Int64[Tensor, " bag"] | None,
    ) -> Float[Tensor, "bag token dim"]:
        """Only the rows of the mask count; empty cells of the grid stay empty."""
        if mask is not None and bool(mask.all()):
            mask = None
        if mask is not None:
            bags = bags.masked_fill(~mask[:, :, None], 0)
        hidden = self._fc1(bags)
        if lengths is None:
            lengths = torch.full((len(bags),), bags.shape[1], device=bags.device)
        counted = None if mask is None else lengths + 1
        mixed = self.layer1(self._with_cls(hidden), counted)
        mixed = torch.cat([mixed[:, :1], self.pos_layer(mixed[:, 1:], lengths)], dim=1)
        tokens: Tensor = self.norm(self.layer2(mixed, counted))
        if mask is None:
            return tokens
        return torch.cat([tokens[:, :1], tokens[:, 1:].masked_fill(~mask[:, :, None], 0)], dim=1)

    def _with_cls(self, hidden: Float[Tensor, "bag patch dim"]) -> Float[Tensor, "bag token dim"]:
        cls = self.cls_token.to(hidden.dtype).expand(len(hidden), -1, -1)
        return torch.cat([cls, hidden], dim=1)


def _lengths(mask: Bool[Tensor, "bag patch"]) -> Int64[Tensor, " bag"]:
    """Rows that count in each bag; they have to come first."""
    lengths = mask.sum(1)
    if not bool((lengths > 0).all()):
        empty = (lengths == 0).nonzero().flatten().tolist()
        raise FeatureError(f"bags {empty} of the batch have no patches. Leave them out.")
    if not torch.equal(mask, torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]):
        raise FeatureError("a bag is padded before its end. Put its patches first.")
    return lengths


def _mean_padded(
    bags: Float[Tensor, "bag patch feature"],
    mask: Bool[Tensor, "bag patch"] | None,
    lengths: Int64[Tensor, " bag"] | None,
) -> Float[Tensor, "bag patch feature"]:
    """Padding replaced by the mean of the bag's own patches."""
    if mask is None or lengths is None:
        return bags
    kept = bags.masked_fill(~mask[:, :, None], 0)
    means = kept.float().sum(1, keepdim=True) / lengths[:, None, None]
    return torch.where(mask[:, :, None], kept, means.to(bags.dtype))


def _check(config: AggregatorConfig) -> None:
    """Refuses what cannot be meant."""
    for field, allowed in (
        ("mode", MODES),
        ("attention", ATTENTIONS),
        ("inverse_scale", INVERSE_SCALES),
    ):
        value = getattr(config, field)
        if value not in allowed:
            raise ConfigError(f"aggregator {field}: expected {' or '.join(allowed)}, got {value!r}")
    if config.mode == "masked" and config.inverse_scale == "tensor":
        raise ConfigError(
            "aggregator: mode masked makes bags independent, inverse_scale tensor ties them "
            "together. Use inverse_scale bag."
        )
    if config.dim % config.heads:
        raise ConfigError(
            f"aggregator: dim {config.dim} cannot be divided among {config.heads} heads. "
            "Choose a multiple."
        )
