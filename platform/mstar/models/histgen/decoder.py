"""The text side: words read the shared memory, themselves, and the regions of their slide.

Step by step (`DecoderState`) it gives the numbers of the whole text at once; keys and values of
what is written already, and of the regions, are made once and kept.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mstar.models.histgen.attention import Attention, KeysValues, SharedMemory, feed_forward
from mstar.models.histgen.config import HistGenConfig
from mstar.models.histgen.encoder import Encoded

_LONGEST_WAVE = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderState:
    """What is kept between two steps.

    written: keys and values of the text so far, of each layer; empty before the first token.
    regions: those of the slides' regions, of each layer; one row a text.
    mask: where a slide has regions.
    slots: those of the shared memory.
    length: tokens written.
    """

    written: tuple[KeysValues, ...]
    regions: tuple[KeysValues, ...]
    mask: Bool[Tensor, "text one two region"]
    slots: KeysValues
    length: int

    def chosen(self, rows: Int64[Tensor, " text"]) -> "DecoderState":
        """The state of some of the texts, in that order, each as often as it is named."""
        return replace(
            self,
            written=tuple(KeysValues(k[rows], v[rows]) for k, v in self.written),
            regions=tuple(KeysValues(k[rows], v[rows]) for k, v in self.regions),
            mask=self.mask[rows],
        )


class DecoderLayer(nn.Module):
    """Attention to the text before, to the regions, and a feed-forward block."""

    def __init__(self, config: HistGenConfig) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        c = config
        self.norms = nn.ModuleList(nn.LayerNorm(c.width) for _ in range(3))
        self.text = Attention(c.width, c.heads, c.dropout)
        self.slide = Attention(c.width, c.heads, c.dropout)
        self.ff = feed_forward(c.width, c.ff, c.dropout)
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self,
        rows: Float[Tensor, "text token width"],
        before: KeysValues | None,
        regions: KeysValues,
        mask: Bool[Tensor, "text one two region"],
    ) -> tuple[Float[Tensor, "text token width"], KeysValues]:
        """The tokens' rows, and the keys and values of the text with them."""
        normed = self.norms[0](rows)
        written = self.text.keys_values(normed)
        if before is not None:
            written = KeysValues(
                torch.cat([before.keys, written.keys], 2),
                torch.cat([before.values, written.values], 2),
            )
        seen = self.text(normed, written, causal=rows.shape[1] > 1)
        rows = rows + self.dropout(seen)
        rows = rows + self.dropout(self.slide(self.norms[1](rows), regions, mask))
        return rows + self.dropout(self.ff(self.norms[2](rows))), written


class Decoder(nn.Module):
    """From tokens to the scores of the next one."""

    def __init__(self, config: HistGenConfig, vocabulary: int) -> None:
        """`vocabulary`: number of tokens."""
        super().__init__()
        self.width = config.width
        self.words = nn.Embedding(vocabulary, config.width)
        nn.init.normal_(self.words.weight, std=config.width**-0.5)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(config.width, vocabulary)

    def begin(self, encoded: Encoded, memory: SharedMemory) -> DecoderState:
        """The state before the first token."""
        return DecoderState(
            written=(),
            regions=tuple(_keys_values(layer, encoded) for layer in self.layers),
            mask=encoded.mask[:, None, None, :],
            slots=memory.keys_values(memory.slots[None]),
            length=0,
        )

    def forward(
        self, tokens: Int64[Tensor, "text token"], state: DecoderState, memory: SharedMemory
    ) -> tuple[Float[Tensor, "text token vocabulary"], DecoderState]:
        """Scores of what follows each of the new tokens; a long text only from its beginning."""
        assert state.length == 0 or tokens.shape[1] == 1, "after the beginning: one at a time"
        words = self.words(tokens) * math.sqrt(self.width)
        rows = self.dropout(words + positions(state.length, tokens.shape[1], words))
        rows = rows + memory.read(rows, state.slots)
        kept = []
        for number, layer in enumerate(self.layers):
            before = state.written[number] if state.written else None
            rows, written = layer(rows, before, state.regions[number], state.mask)
            kept.append(written)
        after = replace(state, written=tuple(kept), length=state.length + tokens.shape[1])
        return self.out(self.norm(rows)), after


def positions(
    start: int, count: int, like: Float[Tensor, "text token width"]
) -> Float[Tensor, "token width"]:
    """Sines and cosines of the places in the text (Vaswani et al. 2017)."""
    half = like.shape[-1] // 2
    place = torch.arange(start, start + count, device=like.device, dtype=torch.float32)
    step = torch.arange(half, device=like.device, dtype=torch.float32) / half
    angle = place[:, None] * torch.exp(-math.log(_LONGEST_WAVE) * step)
    return torch.cat([angle.sin(), angle.cos()], 1).to(like.dtype)


def _keys_values(layer: nn.Module, encoded: Encoded) -> KeysValues:
    """The regions as a layer sees them."""
    assert isinstance(layer, DecoderLayer)
    return layer.slide.keys_values(encoded.tokens)
