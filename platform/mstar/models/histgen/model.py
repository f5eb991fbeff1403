"""The report generator: bags and the beginning of a text in, scores of the next token out."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mstar.models.heads.contract import HeadOutput, read_bags
from mstar.models.heads.layers import draw_weights
from mstar.models.histgen.attention import SharedMemory
from mstar.models.histgen.config import HistGenConfig
from mstar.models.histgen.decoder import Decoder
from mstar.models.histgen.encoder import Encoded, Encoder


class HistGen(nn.Module):
    """Local–global encoder, memory that both sides share, Transformer decoder."""

    def __init__(self, config: HistGenConfig, input_dim: int, vocabulary: int) -> None:
        """Draw the weights from torch's global generator.

        Args:
            config: sizes.
            input_dim: length of a patch's features.
            vocabulary: number of tokens, special ones among them.
        """
        super().__init__()
        c = config
        self.config, self.input_dim, self.vocabulary = config, input_dim, vocabulary
        self.encoder = Encoder(c, input_dim)
        self.memory = SharedMemory(
            c.width, c.heads, c.dropout, slots=c.memory_slots, top=c.memory_top
        )
        self.decoder = Decoder(c, vocabulary)
        draw_weights(self)

    def encode(self, x: Float[Tensor, "row dim"], offsets: Int64[Tensor, " edge"]) -> Encoded:
        """The regions of packed bags."""
        encoded: Encoded = self.encoder(x, read_bags(x, offsets, self.input_dim), self.memory)
        return encoded

    def forward(
        self,
        x: Float[Tensor, "row dim"],
        offsets: Int64[Tensor, " edge"],
        tokens: Int64[Tensor, "bag token"],
    ) -> HeadOutput:
        """Teacher-forced: scores [bag, token, vocabulary] of what follows each token of a text."""
        state = self.decoder.begin(self.encode(x, offsets), self.memory)
        return HeadOutput(logits=self.decoder(tokens, state, self.memory)[0])


def count_parameters(config: HistGenConfig, input_dim: int, vocabulary: int) -> int:
    """Trainable numbers, without building the model's arrays."""
    with torch.device("meta"):
        model = HistGen(config, input_dim, vocabulary)
    return sum(parameter.numel() for parameter in model.parameters())
