"""Multi-head attention, and the same over the strongest slots of a memory.

Keys and values can be made once and used again: the decoder keeps them from step to step.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention


class KeysValues(NamedTuple):
    """Keys and values of a sequence."""

    keys: Float[Tensor, "batch head key part"]
    values: Float[Tensor, "batch head key part"]


class Attention(nn.Module):
    """Queries, keys, values and output: four linear maps with bias."""

    def __init__(self, width: int, heads: int, drop: float) -> None:
        """`drop`: of the weights of attention, in training."""
        super().__init__()
        self.heads, self.drop = heads, drop
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def keys_values(self, rows: Float[Tensor, "batch key width"]) -> KeysValues:
        """What `forward` attends to."""
        return KeysValues(self._split(self.key(rows)), self._split(self.value(rows)))

    def forward(
        self,
        queries: Float[Tensor, "batch query width"],
        seen: KeysValues,
        mask: Bool[Tensor, "..."] | None = None,
        *,
        causal: bool = False,
    ) -> Float[Tensor, "batch query width"]:
        """Each query's weighted mean of the values; `mask` is True where a key may be seen."""
        heads = scaled_dot_product_attention(
            self._split(self.query(queries)),
            seen.keys,
            seen.values,
            attn_mask=mask,
            dropout_p=self.drop if self.training else 0.0,
            is_causal=causal,
        )
        return self._joined(heads)

    def _split(self, rows: Float[Tensor, "batch row width"]) -> Float[Tensor, "batch head row d"]:
        return rows.view(*rows.shape[:2], self.heads, -1).transpose(1, 2)

    def _joined(self, rows: Float[Tensor, "batch head row d"]) -> Float[Tensor, "batch row width"]:
        result: Tensor = self.out(rows.transpose(1, 2).flatten(2))
        return result


class SharedMemory(Attention):
    """Slots that patches and words read alike: what the two have in common is learnt there.

    A query reads the `top` slots that it is most similar to, in each head for itself.
    """

    def __init__(self, width: int, heads: int, drop: float, *, slots: int, top: int) -> None:
        """Slots are drawn as word vectors are, with length 1 in the mean."""
        super().__init__(width, heads, drop)
        self.slots = nn.Parameter(torch.randn(slots, width) / math.sqrt(width))
        self.top = top

    def read(
        self, queries: Float[Tensor, "batch query width"], slots: KeysValues
    ) -> Float[Tensor, "batch query width"]:
        """What the queries find; `slots` are `self.keys_values(self.slots[None])`."""
        asked = self._split(self.query(queries)) / math.sqrt(slots.keys.shape[-1])
        scores = (asked @ slots.keys.transpose(-1, -2)).float()
        if self.top < scores.shape[-1]:
            last = scores.detach().topk(self.top, dim=-1, sorted=False).values.amin(-1, True)
            scores = scores.masked_fill(scores < last, float("-inf"))
        weights = scores.softmax(-1).to(asked.dtype)
        weights = dropout(weights, self.drop, self.training)
        return self._joined(weights @ slots.values)


class Layer(nn.Module):
    """Attention within a sequence, then a feed-forward block, each normalised before."""

    def __init__(self, width: int, heads: int, ff: int, drop: float) -> None:
        """The fields of `HistGenConfig`."""
        super().__init__()
        self.norm_attention, self.norm_ff = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, drop)
        self.ff = feed_forward(width, ff, drop)
        self.dropout = nn.Dropout(drop)

    def forward(
        self,
        rows: Float[Tensor, "batch row width"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch row width"]:
        """The rows, each having seen the others of its sequence."""
        normed = self.norm_attention(rows)
        seen = self.attention(normed, self.attention.keys_values(normed), mask)
        rows = rows + self.dropout(seen)
        result: Tensor = rows + self.dropout(self.ff(self.norm_ff(rows)))
        return result


def feed_forward(width: int, hidden: int, drop: float) -> nn.Sequential:
    """Linear, ReLU, dropout, linear."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(drop), nn.Linear(hidden, width)
    )
