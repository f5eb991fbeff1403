"""ABMIL: attention-based multiple instance learning (Ilse et al. 2018), plain and gated.

    h = Dropout(ReLU(W x))
    a = softmax over the bag of  w' tanh(V h)                      equation 8, plain
                             or  w' (tanh(V h) ⊙ sigmoid(U h))     equation 9, gated
    logits = C · Σ a h + c

`abmil` has the sizes of the mSTAR paper: 512 hidden, plain attention over 128.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor, nn

from mstar.models.heads.contract import HeadOutput, read_bags
from mstar.models.heads.layers import Activation, AttentionNetwork, FeatureLayer, draw_weights
from mstar.models.heads.segments import bag_softmax, weighted_sums


@dataclass(frozen=True, slots=True, kw_only=True)
class AbmilConfig:
    """Options of ABMIL."""

    hidden: int = 512
    """Length of a patch's vector after the first layer (paper: 512)."""
    attention_dim: int = 128
    """Length inside the attention network (paper: 128)."""
    dropout: float = 0.25
    """Dropout after the first layer (paper: 0.25)."""
    activation: Activation = "relu"
    """After the first layer: relu or gelu."""


class Abmil(nn.Module):
    """One softmax over the bag says what each patch is worth."""

    def __init__(
        self, config: AbmilConfig, input_dim: int, num_outputs: int, *, gated: bool
    ) -> None:
        """Draws the weights."""
        super().__init__()
        self.input_dim = input_dim
        self.feature = FeatureLayer(input_dim, config.hidden, config.dropout, config.activation)
        self.attention = AttentionNetwork(config.hidden, config.attention_dim, 1, gated=gated)
        self.classifier = nn.Linear(config.hidden, num_outputs)
        draw_weights(self)

    def forward(
        self,
        x: Float[Tensor, "row dim"],
        offsets: Int64[Tensor, " edge"],
        labels: Int64[Tensor, " bag"] | None = None,
    ) -> HeadOutput:
        """Scores and attention of packed bags."""
        bags = read_bags(x, offsets, self.input_dim)
        h = self.feature(x)  # [row, hidden]
        a = bag_softmax(self.attention(h), bags)  # [row, 1]
        z = weighted_sums(a, h, bags)[:, 0]  # [bag, hidden]
        return HeadOutput(logits=self.classifier(z), attention=a[:, 0])


def build_abmil(config: AbmilConfig, input_dim: int, num_outputs: int) -> Abmil:
    """The mSTAR paper's ABMIL."""
    return Abmil(config, input_dim, num_outputs, gated=False)


def build_abmil_gated(config: AbmilConfig, input_dim: int, num_outputs: int) -> Abmil:
    """The same sizes with a gate."""
    return Abmil(config, input_dim, num_outputs, gated=True)
