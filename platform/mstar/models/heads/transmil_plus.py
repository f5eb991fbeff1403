"""TransMIL+ ("mSTAR+" in the paper): TransMIL that starts from the aggregator of stage 1.

The aggregator is read from what `mstar stage1` exported (or from a published TransMIL), with its
own sizes and mode; a new linear layer on its CLS token gives the outputs. Features have to be those
of the encoder that stage 1 was trained on.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int64
from torch import Tensor, nn

from mstar.errors import ConfigError, WeightsError
from mstar.models.heads.contract import HeadOutput, read_bags
from mstar.models.heads.layers import draw_weights
from mstar.models.heads.transmil import slide_vectors
from mstar.models.stage1_files import load_aggregator


@dataclass(frozen=True, slots=True, kw_only=True)
class TransMilPlusConfig:
    """Options of TransMIL+."""

    aggregator: str = ""
    """Folder (or weights file) of the stage-1 aggregator, local or s3://."""
    freeze: bool = False
    """Train the new linear layer only."""
    attention: Literal["trained", "auto", "nystrom", "exact"] = "trained"
    """`trained`: the attention of stage 1. Another one changes what the first weights compute;
    `auto` is exact for bags of up to `exact_up_to` patches and Nyström above."""
    exact_up_to: int = 2048
    """With `auto`: patches of the largest bag with exact attention."""


class TransMilPlus(nn.Module):
    """A stage-1 aggregator and a new linear layer."""

    def __init__(self, config: TransMilPlusConfig, input_dim: int, num_outputs: int) -> None:
        """Reads the aggregator, draws the linear layer's weights.

        Raises:
            ConfigError: no aggregator is named.
            WeightsError: there is none, or it takes other features.
        """
        super().__init__()
        if not config.aggregator:
            raise ConfigError(
                "head transmil_plus: no aggregator to start from. Give the folder that "
                "`mstar stage1 --out` wrote as its option `aggregator`, or use transmil."
            )
        self.config, self.input_dim = config, input_dim
        self.aggregator = load_aggregator(config.aggregator)
        expected = self.aggregator.config.input_dim
        if expected != input_dim:
            raise WeightsError(
                f"{config.aggregator}: its aggregator takes features of {expected} numbers, these "
                f"have {input_dim}. Use the features that stage 1 was trained on, or transmil."
            )
        self.aggregator.requires_grad_(not config.freeze)
        self.classifier = nn.Linear(self.aggregator.config.dim, num_outputs)
        draw_weights(self.classifier)
        self.train()

    def forward(
        self,
        x: Float[Tensor, "row dim"],
        offsets: Int64[Tensor, " edge"],
        labels: Int64[Tensor, " bag"] | None = None,
    ) -> HeadOutput:
        """Scores of packed bags."""
        bags = read_bags(x, offsets, self.input_dim)
        slides = slide_vectors(
            self.aggregator, x, bags, self.config.attention, self.config.exact_up_to
        )
        return HeadOutput(logits=self.classifier(slides))
