"""The parts that heads begin with: the feature layer, the attention network, the first weights."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout, gelu

from mstar.errors import ConfigError
from mstar.models.heads.contract import computable, made_for_cpu

Activation = Literal["relu", "gelu"]
BLOCK_ROWS = 1024
_BYTE = 256


class Dropout(nn.Dropout):
    """Dropout whose rate is a tensor too, so that heads of different rates can take one step.

    On a CPU it is torch's; elsewhere a number goes where a uniform draw is below the rate.
    """

    def __init__(self, rate: float) -> None:
        """`rate`: share of the numbers that go."""
        if not 0 <= rate < 1:
            raise ConfigError(f"head dropout: expected from 0 to below 1, got {rate}")
        super().__init__(rate)
        self.register_buffer("rate", torch.tensor(rate), persistent=False)
        self.rate: Tensor

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The numbers that stay, scaled; all of them in evaluation."""
        if not self.training:
            return x
        if made_for_cpu(x):
            return dropout(x, self.p)
        kept = torch.rand_like(x) >= self.rate
        return x * kept / (1 - self.rate)


class FeatureLayer(nn.Module):
    """Linear, ReLU or GELU, dropout: what most MIL heads do to every patch first.

    On a CPU the three are one step over some rows at a time, forwards and backwards, so that what
    one of them leaves is still in the cache for the next. Stored half-precision rows become float32
    there, never all at once, and the result itself says where the gradient passes: nothing else as
    large as the bag is kept. A random byte decides on each number, so the rate of the dropout is
    rounded to 1/256.
    """

    def __init__(
        self, input_dim: int, hidden: int, dropout: float, activation: Activation = "relu"
    ) -> None:
        """The fields of a head's config."""
        super().__init__()
        self.linear = nn.Linear(input_dim, hidden)
        self.dropout, self.activation = Dropout(dropout), activation

    def forward(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row hidden"]:
        """The patches' vectors."""
        rate = self.dropout.p if self.training else 0.0
        plain = not made_for_cpu(x) or torch.is_autocast_enabled("cpu")
        if plain or self.activation == "gelu":
            rows = self.linear(computable(x))
            bent = gelu(rows) if self.activation == "gelu" else rows.relu_()
            result: Tensor = self.dropout(bent)
            return result
        dropped = min(round(rate * _BYTE), _BYTE - 1)
        linear = self.linear
        fused: Tensor = _LinearReluDropout.apply(  # type: ignore[no-untyped-call]
            x, linear.weight, linear.bias, dropped
        )
        return fused


class _LinearReluDropout(torch.autograd.Function):
    """What is positive in the result was kept, and scaled; nothing else has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dropped: int) -> Tensor:
        scale = _BYTE / (_BYTE - dropped)
        out = weight.new_empty(len(x), len(weight))
        for rows, h in _blocks(x, out):
            torch.addmm(bias, rows.to(weight.dtype), weight.T, out=h)
            h.relu_()
            if dropped:
                h.mul_(random_bytes(h.shape) >= dropped).mul_(scale)
        ctx.save_for_backward(x, weight, out)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight, out = ctx.saved_tensors
        of_weight, of_bias = torch.zeros_like(weight), weight.new_zeros(len(weight))
        of_x = []
        for rows, h, pull in _blocks(x, out, gradient):
            passed = torch.ops.aten.threshold_backward(pull, h, 0)
            of_weight.addmm_(passed.T, rows.to(weight.dtype))
            of_bias += passed.sum(0)
            if ctx.needs_input_grad[0]:
                of_x.append((passed @ weight).mul_(ctx.scale).to(x.dtype))
        own = torch.cat(of_x) if of_x else None
        return own, of_weight.mul_(ctx.scale), of_bias.mul_(ctx.scale), None


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some rows of each at a time."""
    return zip(*(torch.split(tensor, BLOCK_ROWS) for tensor in tensors), strict=True)


def random_bytes(shape: torch.Size) -> UInt8[Tensor, "..."]:
    """Random bytes from the global generator, eight for the price of a number."""
    words = torch.empty(-(-shape.numel() // 8), dtype=torch.int64)
    words.random_(torch.iinfo(torch.int64).min, None)  # the whole range
    return words.view(torch.uint8)[: shape.numel()].view(shape)


class AttentionNetwork(nn.Module):
    """Scores of patches by attention-based MIL (Ilse et al. 2018, equations 8 and 9).

    plain: w' tanh(V h); gated: w' (tanh(V h) ⊙ sigmoid(U h)). One score per branch.
    """

    def __init__(
        self, hidden: int, attention_dim: int, branches: int, *, gated: bool, dropout: float = 0.0
    ) -> None:
        """`branches`: one for all classes together, or one for each."""
        super().__init__()
        self.tanh = nn.Sequential(nn.Linear(hidden, attention_dim), nn.Tanh(), Dropout(dropout))
        self.gate = (
            nn.Sequential(nn.Linear(hidden, attention_dim), nn.Sigmoid(), Dropout(dropout))
            if gated
            else None
        )
        self.score = nn.Linear(attention_dim, branches)

    def forward(self, rows: Float[Tensor, "row dim"]) -> Float[Tensor, "row branch"]:
        """The scores before their softmax."""
        seen = self.tanh(rows)
        if self.gate is not None:
            seen = seen * self.gate(rows)
        result: Tensor = self.score(seen)
        return result


def draw_weights(head: nn.Module) -> None:
    """Xavier-normal matrices and zero biases, as in the aggregator."""
    with torch.no_grad():
        for module in head.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
