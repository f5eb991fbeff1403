"""Nearest class prototype of a bag's mean features (SimpleShot, Wang et al. 2019, with CL2N).

prototype(c) = mean of the training bags' vectors of class c
logit(c)     = −‖x − prototype(c)‖² / τ
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mstar.errors import ConfigError
from mstar.models.heads.contract import HeadOutput
from mstar.models.heads.mean_space import MeanSpace, check_fitted, check_labels

FARTHEST = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrototypeConfig:
    """Options of the prototypes."""

    temperature: float = 0.1
    """τ, which makes probabilities of distances; it changes no ranking of classes. A choice."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        if not self.temperature > 0:
            raise ConfigError(f"prototype temperature: expected above 0, got {self.temperature}")


class Prototypes(nn.Module):
    """One vector per class."""

    prototypes: Tensor
    present: Tensor

    def __init__(self, config: PrototypeConfig, input_dim: int, num_outputs: int) -> None:
        """Without prototypes until `fit` or a state is loaded."""
        super().__init__()
        self.config = config
        self.space = MeanSpace(input_dim)
        self.register_buffer("prototypes", torch.zeros(num_outputs, input_dim))
        self.register_buffer("present", torch.zeros(num_outputs, dtype=torch.bool))

    def fit(
        self,
        x: Float[Tensor, "row dim"],
        offsets: Int64[Tensor, " edge"],
        labels: Int64[Tensor, " bag"],
    ) -> None:
        """The mean vector of each class; one without a bag stays as far as can be."""
        check_labels(labels, len(offsets) - 1, len(self.present))
        vectors = self.space.fit(x, offsets)
        labels = labels.to(vectors.device)
        sums = torch.zeros_like(self.prototypes).index_add(0, labels, vectors)
        counts = labels.bincount(minlength=len(sums))
        self.prototypes = sums / counts.clamp(min=1)[:, None]
        self.present = counts > 0

    def forward(
        self,
        x: Float[Tensor, "row dim"],
        offsets: Int64[Tensor, " edge"],
        labels: Int64[Tensor, " bag"] | None = None,
    ) -> HeadOutput:
        """Minus the squared distances, over τ."""
        check_fitted(bool(self.present.any()), "prototype")
        vectors = self.space(x, offsets)
        apart = (vectors[:, None, :] - self.prototypes).square().sum(2)
        apart = apart.masked_fill(~self.present, FARTHEST)
        return HeadOutput(logits=-apart / self.config.temperature)
