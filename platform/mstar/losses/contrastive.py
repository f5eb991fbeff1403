"""Inter-modality contrast: within a pair of modalities, a case's two vectors find each other.

For the n cases that have both members, with unit vectors P and T and scale s,

    L = −1/(2n) Σ_i [ log softmax_j(s P_i·T_j)_i + log softmax_j(s T_i·P_j)_i ]

in float32 whatever the engine's dtype. A case that lacks a member is no anchor and no negative of
that pair. A pair with fewer than two cases has nothing to tell apart: it is skipped, and said.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from mstar.losses.cases import CaseEmbeddings, unit

PAIRS = {
    "wsi_text": ("wsi", "text"),
    "wsi_gene": ("wsi", "gene"),
    "text_gene": ("text", "gene"),
}
FEWEST_CASES = 2


def info_nce(
    first: Float[Tensor, "case dim"],
    second: Float[Tensor, "case dim"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """The symmetric InfoNCE of cases that all have both members."""
    with torch.autocast(first.device.type, enabled=False):
        logits = scale.float() * unit(first) @ unit(second).T
        own = torch.arange(len(logits), device=logits.device)
        return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def pair_losses(
    cases: CaseEmbeddings, scale: Float[Tensor, ""]
) -> tuple[dict[str, Float[Tensor, ""]], dict[str, int]]:
    """The InfoNCE of every pair of modalities that has enough cases.

    Returns:
        The losses by the pair's name (pairs that are skipped are not among them), and how many
        cases each pair has.
    """
    losses, counts = {}, {}
    for name, (first, second) in PAIRS.items():
        both = both_members(cases, first, second)
        counts[name] = int(both.sum())
        if counts[name] >= FEWEST_CASES:
            losses[name] = info_nce(cases.vectors(first)[both], cases.vectors(second)[both], scale)
    return losses, counts


def both_members(cases: CaseEmbeddings, first: str, second: str) -> Bool[Tensor, " case"]:
    """The cases that have both modalities."""
    return cases.has(first) & cases.has(second)
