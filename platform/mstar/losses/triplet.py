"""Inter-cancer contrast: cases of one cancer type closer together than to those of any other.

A case is the concatenation of its modalities' unit vectors. For every anchor the farthest case of
its type and the nearest case of another type are taken (batch-hard), and

    L = mean over anchors of max(0, d(a, a⁺) − d(a, a⁻) + margin),   d the Euclidean distance,

in float32 whatever the engine's dtype. Anchors that lack a positive or a negative are left out.

Cases differ in which modalities they have. `same_set` compares only cases with the same ones, so
that a distance always sums over the same modalities. `zero_fill` compares all, zeros in the place
of what is absent: then the lack of a modality is itself a distance of 1.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from mstar.losses.cases import MODALITIES, CaseEmbeddings, unit

MissingPolicy = Literal["same_set", "zero_fill"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Triplets:
    """Rows of the anchors that have both, their farthest positives, their nearest negatives."""

    anchor: Int64[Tensor, " anchor"]
    positive: Int64[Tensor, " anchor"]
    negative: Int64[Tensor, " anchor"]


def triplet_loss(
    cases: CaseEmbeddings,
    *,
    margin: float,
    missing: MissingPolicy,
    fewest_modalities: int = 2,
) -> tuple[Float[Tensor, ""] | None, int]:
    """The batch-hard triplet loss.

    Args:
        cases: of the whole batch, from all ranks.
        margin: by how much the negative should be farther than the positive.
        missing: how cases with different modalities are compared.
        fewest_modalities: cases with fewer take no part.

    Returns:
        The loss, None when no case has both a positive and a negative; and how many anchors had.
    """
    with torch.autocast(cases.wsi.device.type, enabled=False):
        vectors = concatenated(cases)
        positives, negatives = allowed_pairs(cases, missing, fewest_modalities)
        triplets = hardest(vectors.detach(), positives, negatives)
        if not len(triplets.anchor):
            return None, 0
        anchor = vectors[triplets.anchor]
        far = (anchor - vectors[triplets.positive]).norm(dim=1)
        near = (anchor - vectors[triplets.negative]).norm(dim=1)
        return (far - near + margin).relu().mean(), len(anchor)


def concatenated(cases: CaseEmbeddings) -> Float32[Tensor, "case all_dims"]:
    """The unit vectors of every modality side by side, zeros where one is absent."""
    has = cases.stacked_has()
    return torch.cat(
        [
            unit(cases.vectors(name).masked_fill(~has[:, [place]], 0))
            for place, name in enumerate(MODALITIES)
        ],
        dim=1,
    )


def allowed_pairs(
    cases: CaseEmbeddings, missing: MissingPolicy, fewest_modalities: int
) -> tuple[Bool[Tensor, "case other"], Bool[Tensor, "case other"]]:
    """Which cases may be positives, and which negatives, of which anchors."""
    has, cancer = cases.stacked_has(), cases.cancer
    takes_part = (has.sum(1) >= fewest_modalities) & (cancer >= 0)
    pairs = takes_part[:, None] & takes_part[None, :]
    if missing == "same_set":
        pairs &= (has[:, None] == has[None, :]).all(2)
    same_type = cancer[:, None] == cancer[None, :]
    itself = torch.eye(len(cancer), dtype=torch.bool, device=cancer.device)
    return pairs & same_type & ~itself, pairs & ~same_type


def hardest(
    vectors: Float32[Tensor, "case dim"],
    positives: Bool[Tensor, "case other"],
    negatives: Bool[Tensor, "case other"],
) -> Triplets:
    """The farthest positive and the nearest negative of every anchor that has both."""
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    anchor = (positives.any(1) & negatives.any(1)).nonzero().flatten()
    farthest = distances.masked_fill(~positives, -torch.inf)[anchor]
    nearest = distances.masked_fill(~negatives, torch.inf)[anchor]
    if not len(anchor):
        return Triplets(anchor=anchor, positive=anchor, negative=anchor)
    return Triplets(anchor=anchor, positive=farthest.argmax(1), negative=nearest.argmin(1))
