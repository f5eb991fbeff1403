"""Where bags are compared without training: mean features, centred, at unit length.

The feature transformation CL2N of SimpleShot (Wang et al. 2019): the mean of the training bags is
subtracted, then each vector is divided by its length.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mstar.errors import FeatureError, TrainingError
from mstar.models.heads.contract import read_bags
from mstar.models.heads.segments import bag_means

_SHORTEST = 1e-12


class MeanSpace(nn.Module):
    """Bags to unit vectors."""

    centre: Tensor

    def __init__(self, input_dim: int) -> None:
        """Centred on zero until `fit`."""
        super().__init__()
        self.input_dim = input_dim
        self.register_buffer("centre", torch.zeros(input_dim))

    @torch.no_grad()
    def fit(
        self, x: Float[Tensor, "row dim"], offsets: Int64[Tensor, " edge"]
    ) -> Float[Tensor, "bag dim"]:
        """Centre on these bags; returns their vectors."""
        means = bag_means(x, read_bags(x, offsets, self.input_dim))
        self.centre = means.mean(0).to(self.centre.dtype)
        return self._unit(means)

    def forward(
        self, x: Float[Tensor, "row dim"], offsets: Int64[Tensor, " edge"]
    ) -> Float[Tensor, "bag dim"]:
        """The vectors of packed bags."""
        return self._unit(bag_means(x, read_bags(x, offsets, self.input_dim)))

    def _unit(self, means: Float[Tensor, "bag dim"]) -> Float[Tensor, "bag dim"]:
        apart = means - self.centre
        length = torch.linalg.vector_norm(apart, dim=1, keepdim=True)
        unit: Tensor = apart / length.clamp(min=_SHORTEST)
        return unit


def check_labels(labels: Int64[Tensor, " bag"], bags: int, classes: int) -> None:
    """Refuse labels that cannot be those of the bags."""
    if len(labels) != bags:
        raise FeatureError(f"expected a label for each of {bags} bags, got {len(labels)}.")
    if not bool(((labels >= 0) & (labels < classes)).all()):
        raise FeatureError(
            f"labels: expected codes from 0 to {classes - 1}, got "
            f"{int(labels.min())} to {int(labels.max())}. Use the codes of the task row."
        )


def check_fitted(fitted: bool, head: str) -> None:
    """Refuse to answer before the training bags were seen."""
    if not fitted:
        raise TrainingError(f"head {head} has seen no training bags. Call fit, or load its state.")
