"""Cox's proportional hazards model on the mean of a bag's features (Cox 1972).

    log hazard ratio = w · mean(x)

There is no intercept: the partial likelihood does not see it. Trained with `cox_nll`, whose risk
sets are the bags of a batch, so a batch is many bags (best the whole training split).
"""

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor, nn

from mstar.models.heads.contract import HeadOutput, one_output, read_bags
from mstar.models.heads.layers import Dropout
from mstar.models.heads.segments import bag_means


@dataclass(frozen=True, slots=True, kw_only=True)
class CoxLinearConfig:
    """Options of the linear Cox model."""

    dropout: float = 0.0
    """Dropout on the mean features."""


class CoxLinear(nn.Module):
    """One risk per bag, linear in its mean features; it begins at no risk for anyone."""

    def __init__(self, config: CoxLinearConfig, input_dim: int, num_outputs: int) -> None:
        """Raises ConfigError for more than one output."""
        super().__init__()
        one_output("cox_linear", num_outputs)
        self.input_dim = input_dim
        self.dropout = Dropout(config.dropout)
        self.risk = nn.Linear(input_dim, 1, bias=False)
        nn.init.zeros_(self.risk.weight)  # the likelihood is concave: zero is as good as any

    def forward(
        self,
        x: Float[Tensor, "row dim"],
        offsets: Int64[Tensor, " edge"],
        labels: Int64[Tensor, " bag"] | None = None,
    ) -> HeadOutput:
        """Log hazard ratios of packed bags."""
        means = bag_means(x, read_bags(x, offsets, self.input_dim))
        return HeadOutput(logits=self.risk(self.dropout(means)))
