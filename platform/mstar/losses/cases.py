"""The embeddings of a batch of cases, as every loss takes them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

MODALITIES = ("wsi", "text", "gene")
UNKNOWN_CANCER = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseEmbeddings:
    """One row per case and modality.

    wsi, text, gene: vectors, not normalised; what stands where a case lacks the modality is not
        looked at.
    has_wsi, has_text, has_gene: which cases have it.
    cancer: index of the cancer type; `UNKNOWN_CANCER` keeps a case out of the triplets.
    """

    wsi: Float[Tensor, "case dim"]
    text: Float[Tensor, "case dim"]
    gene: Float[Tensor, "case dim"]
    has_wsi: Bool[Tensor, " case"]
    has_text: Bool[Tensor, " case"]
    has_gene: Bool[Tensor, " case"]
    cancer: Int64[Tensor, " case"]

    def vectors(self, modality: str) -> Float[Tensor, "case dim"]:
        """The vectors of a modality by its name."""
        vectors: Tensor = getattr(self, modality)
        return vectors

    def has(self, modality: str) -> Bool[Tensor, " case"]:
        """Which cases have a modality, by its name."""
        has: Tensor = getattr(self, f"has_{modality}")
        return has

    def stacked_has(self) -> Bool[Tensor, "case modality"]:
        """Which cases have which modality, in the order of `MODALITIES`."""
        return torch.stack([self.has(name) for name in MODALITIES], dim=1)


def unit(vectors: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
    """Rows of length one, in float32; rows of zeros stay zeros."""
    return torch.nn.functional.normalize(vectors.float(), dim=1)
