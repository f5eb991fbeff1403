"""A model and one bag of patches: what every way to score patches is given."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from mstar.losses.survival import discrete_risk
from mstar.models.heads import GeneHead, GroupedGenes, HeadOutput

RISK = "risk"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """One model, one bag.

    name: of the head. scores: how its logits become scores (`downstream.objectives`).
    x: the bag's rows, in float32. genes: of its case, for heads that read them.
    coords_l0: where the patches are, to find neighbours.
    output_names: of the head's outputs. group_names: of the groups of genes.
    passes: bags that occlusion may send through the head, at most.
    """

    name: str
    head: nn.Module
    scores: str
    x: Float32[Tensor, "patch dim"]
    coords_l0: Int64[Tensor, "patch 2"]
    output_names: tuple[str, ...]
    group_names: tuple[str, ...] = ()
    genes: GroupedGenes | None = None
    pooled: bool = False
    passes: int = 256

    @property
    def target_names(self) -> tuple[str, ...]:
        """What gradients and occlusion speak of: each class, or the risk."""
        return self.output_names if self.scores == "softmax" else (RISK,)

    def output(
        self, x: Float[Tensor, "row dim"], sizes: tuple[int, ...] | None = None
    ) -> HeadOutput:
        """What the head says of bags of these rows; one bag where no sizes are given."""
        offsets = torch.tensor([0, *(sizes or (len(x),))]).cumsum(0)
        more: tuple[GroupedGenes, ...] = ()
        if isinstance(self.head, GeneHead):
            assert self.genes is not None
            bags = len(offsets) - 1
            values = self.genes.values.expand(bags, -1)
            more = (GroupedGenes(values=values, columns=self.genes.columns),)
        said: HeadOutput = self.head(x, offsets, None, *more)
        return said

    def targets(
        self, x: Float[Tensor, "row dim"], sizes: tuple[int, ...] | None = None
    ) -> Float[Tensor, "bag target"]:
        """Logits less their mean over the classes, or the risk."""
        logits = self.output(x, sizes).logits.float()
        if self.scores == "softmax":
            return logits - logits.mean(1, keepdim=True)
        return discrete_risk(logits)[:, None] if self.scores == "discrete" else logits
