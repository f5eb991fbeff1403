"""The loss of stage 1: three contrasts between modalities and one between cancer types, added."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mstar.errors import ConfigError
from mstar.losses.cases import MODALITIES, CaseEmbeddings
from mstar.losses.contrastive import PAIRS, pair_losses
from mstar.losses.triplet import MissingPolicy, triplet_loss

TRIPLET = "triplet"


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Weights and settings of the stage-1 loss."""

    wsi_text_weight: float = 1.0
    """Weight of the slide–report contrast; 0 leaves it out. The paper adds, which is read as 1."""
    wsi_gene_weight: float = 1.0
    """Weight of the slide–RNA contrast; 0 leaves it out."""
    text_gene_weight: float = 1.0
    """Weight of the report–RNA contrast; 0 leaves it out."""
    triplet_weight: float = 1.0
    """Weight of the triplet loss between cancer types; 0 leaves it out."""
    triplet_margin: float = 0.3
    """By how much another type should be farther than the own one; printed in the paper."""
    triplet_missing: MissingPolicy = "same_set"
    """Cases with different modalities: `same_set` does not compare them, `zero_fill` does, with
    zeros for what is absent. A choice."""
    triplet_fewest_modalities: int = 2
    """Cases with fewer modalities take no part in the triplets. A choice."""

    def __post_init__(self) -> None:
        """Refuse weights and settings that cannot be meant."""
        for name, weight in {**self.weights(), "margin": self.triplet_margin}.items():
            if not weight >= 0:
                raise ConfigError(f"loss {name}: expected a number from 0 up, got {weight}.")
        if self.triplet_missing not in ("same_set", "zero_fill"):
            raise ConfigError(
                f"loss triplet_missing: expected same_set or zero_fill, got {self.triplet_missing}."
            )

    def weights(self) -> dict[str, float]:
        """Weight of each part by its name."""
        return {name: getattr(self, f"{name}_weight") for name in (*PAIRS, TRIPLET)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LossParts:
    """A loss and what it is made of.

    total: the weighted sum; zero (with a gradient of zero) when every part was skipped.
    parts: the parts by name, without their weights.
    counts: cases of each pairing, anchors of the triplets.
    skipped: parts that were asked for and had too few cases.
    """

    total: Float[Tensor, ""]
    parts: Mapping[str, Float[Tensor, ""]]
    counts: Mapping[str, int]
    skipped: tuple[str, ...]


def stage1_loss(cases: CaseEmbeddings, scale: Float[Tensor, ""], config: LossConfig) -> LossParts:
    """The loss of a whole batch: gather the cases of all ranks first (`mstar.losses.gather`).

    Args:
        cases: of the whole batch.
        scale: what cosines are multiplied with (the inverse temperature).
        config: weights and settings.
    """
    weights = {name: weight for name, weight in config.weights().items() if weight}
    losses, counts = pair_losses(cases, scale)
    if TRIPLET in weights:
        triplet, counts[TRIPLET] = triplet_loss(
            cases,
            margin=config.triplet_margin,
            missing=config.triplet_missing,
            fewest_modalities=config.triplet_fewest_modalities,
        )
        losses |= {} if triplet is None else {TRIPLET: triplet}
    parts = {name: losses[name] for name in weights if name in losses}
    total = _zero(cases, scale)
    for name, loss in parts.items():
        total = total + weights[name] * loss
    return LossParts(
        total=total,
        parts=parts,
        counts=counts,
        skipped=tuple(name for name in weights if name not in losses),
    )


def _zero(cases: CaseEmbeddings, scale: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Zero, tied to every input, so that a backward pass always reaches all of them."""
    tied = [
        cases.vectors(name).masked_fill(~cases.has(name)[:, None], 0).float().sum() * 0
        for name in MODALITIES
    ]
    return torch.stack([*tied, scale.float() * 0]).sum()
