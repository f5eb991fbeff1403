"""The linear probe: one linear layer on the mean of a bag's features.

logits = W · mean(x) + b
"""

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor, nn

from mstar.models.heads.contract import HeadOutput, read_bags
from mstar.models.heads.layers import Dropout, draw_weights
from mstar.models.heads.segments import bag_means


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearConfig:
    """Options of the linear probe."""

    dropout: float = 0.0
    """Dropout on the mean features."""


class LinearProbe(nn.Module):
    """Mean pooling and a linear layer."""

    def __init__(self, config: LinearConfig, input_dim: int, num_outputs: int) -> None:
        """Draws the weights."""
        super().__init__()
        self.input_dim = input_dim
        self.dropout = Dropout(config.dropout)
        self.classifier = nn.Linear(input_dim, num_outputs)
        draw_weights(self)

    def forward(
        self,
        x: Float[Tensor, "row dim"],
        offsets: Int64[Tensor, " edge"],
        labels: Int64[Tensor, " bag"] | None = None,
    ) -> HeadOutput:
        """Scores of packed bags."""
        means = bag_means(x, read_bags(x, offsets, self.input_dim))
        return HeadOutput(logits=self.classifier(self.dropout(means)))
