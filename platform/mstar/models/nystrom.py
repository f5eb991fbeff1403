"""Attention over long bags: Nyström with landmarks in two modes, or exact, with the same weights.

The parameters are those of the package `nystrom-attention` (`to_qkv`, `to_out`, `res_conv`), which
the public TransMIL uses, so its weights load. The computation is our own (docs/adr/0006):

    out = softmax(Q Kl') · pinv(softmax(Ql Kl')) · (softmax(Ql K') V) + conv(V)

is multiplied from the right, so that no [token, landmark] × [landmark, landmark] product is made,
and its two outer factors are fused attention calls that never store their weights. The inner
factor and its inverse are computed in float32 whatever the engine's dtype: the iteration
overflows, and loses its convergence, in half precision.

Modes. `public`: every token counts; zeros in front fill the sequence up to a multiple of the
landmarks, enter the landmark means and are attended to. `masked`: only the first `lengths[bag]`
tokens count, nothing else enters a mean or a softmax, so a bag's result is its own.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

Mode = Literal["public", "masked"]
AttentionKind = Literal["nystrom", "exact"]
InverseScale = Literal["bag", "tensor"]

CONV_TOKENS = 33


class NystromAttention(nn.Module):
    """Self-attention of a bag's tokens, plus a depth-wise convolution of the values."""

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        landmarks: int,
        inverse_iterations: int,
        dropout: float,
        mode: Mode,
        attention: AttentionKind,
        inverse_scale: InverseScale,
    ) -> None:
        """The fields of `AggregatorConfig`."""
        super().__init__()
        self.heads, self.landmarks, self.inverse_iterations = heads, landmarks, inverse_iterations
        self.mode, self.attention, self.inverse_scale = mode, attention, inverse_scale
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))
        self.res_conv = nn.Conv2d(
            heads,
            heads,
            (CONV_TOKENS, 1),
            padding=(CONV_TOKENS // 2, 0),
            groups=heads,
            bias=False,
        )

    def forward(
        self,
        tokens: Float[Tensor, "bag token dim"],
        lengths: Int64[Tensor, " bag"] | None = None,
    ) -> Float[Tensor, "bag token dim"]:
        """The attended tokens.

        Args:
            tokens: normalised tokens.
            lengths: how many tokens at the front of each bag count; None for all. `masked` only.
        """
        assert lengths is None or self.mode == "masked", "public mode knows no masks"
        bag, token, dim = tokens.shape
        query, key, value = (
            part.view(bag, token, self.heads, -1).transpose(1, 2)
            for part in self.to_qkv(tokens).chunk(3, dim=-1)
        )
        valid = None
        if lengths is not None:
            valid = torch.arange(token, device=tokens.device) < lengths[:, None]
            value = value * valid[:, None, :, None].to(value.dtype)
        if self.attention == "exact":
            keys_seen = None if valid is None else valid[:, None, None, :]
            mixed = scaled_dot_product_attention(query, key, value, attn_mask=keys_seen)
        elif self.mode == "public":
            mixed = self._public(query, key, value)
        else:
            mixed = self._masked(query, key, value, lengths, valid)
        mixed = mixed + self.res_conv(value)
        result: Tensor = self.to_out(mixed.transpose(1, 2).reshape(bag, token, dim))
        return result

    def _public(
        self,
        query: Float[Tensor, "bag head token depth"],
        key: Float[Tensor, "bag head token depth"],
        value: Float[Tensor, "bag head token depth"],
    ) -> Float[Tensor, "bag head token depth"]:
        """Zeros in front, and no masks."""
        missing = -query.shape[2] % self.landmarks
        padded_key, padded_value = (pad(x, (0, 0, missing, 0)) for x in (key, value))
        bag, head, _, depth = query.shape
        ql, kl = (
            x.float().reshape(bag, head, self.landmarks, -1, depth).mean(3)
            for x in (pad(query, (0, 0, missing, 0)), padded_key)
        )
        summary = scaled_dot_product_attention(ql.to(key.dtype), padded_key, padded_value)
        mixed = self._inverse_times(ql, kl, summary, None)
        return scaled_dot_product_attention(query, kl.to(key.dtype), mixed.to(value.dtype))

    def _masked(
        self,
        query: Float[Tensor, "bag head token depth"],
        key: Float[Tensor, "bag head token depth"],
        value: Float[Tensor, "bag head token depth"],
        lengths: Int64[Tensor, " bag"] | None,
        valid: Bool[Tensor, "bag token"] | None,
    ) -> Float[Tensor, "bag head token depth"]:
        """The groups of `public`, without their zeros; groups that held only zeros drop out."""
        if lengths is None:
            lengths = torch.full((len(query),), query.shape[2], device=query.device)
        slots, taken = landmark_slots(lengths, self.landmarks)
        ql, kl = (_group_means(x.float(), slots, taken) for x in (query, key))
        alive = taken.any(2)
        tokens_seen = None if valid is None else valid[:, None, None, :]
        landmarks_seen = None if bool(alive.all()) else alive[:, None, None, :]
        summary = scaled_dot_product_attention(ql.to(key.dtype), key, value, attn_mask=tokens_seen)
        mixed = self._inverse_times(ql, kl, summary, alive)
        return scaled_dot_product_attention(
            query, kl.to(key.dtype), mixed.to(value.dtype), attn_mask=landmarks_seen
        )

    def _inverse_times(
        self,
        ql: Float[Tensor, "bag head landmark depth"],
        kl: Float[Tensor, "bag head landmark depth"],
        summary: Float[Tensor, "bag head landmark depth"],
        alive: Bool[Tensor, "bag landmark"] | None,
    ) -> Float[Tensor, "bag head landmark depth"]:
        """pinv(softmax(Ql Kl')) times the landmarks' summaries, in float32."""
        with torch.autocast(ql.device.type, enabled=False):
            scores = ql.float() @ kl.float().transpose(-1, -2) * ql.shape[-1] ** -0.5
            if alive is None:
                inner = scores.softmax(-1)
            else:  # landmarks without tokens become rows and columns of zeros, and stay zeros
                inner = scores.masked_fill(~alive[:, None, None, :], -torch.inf).softmax(-1)
                inner = inner * alive[:, None, :, None]
            inverse = pseudo_inverse(inner, self.inverse_iterations, scale=self.inverse_scale)
            return inverse @ summary.float()


def pseudo_inverse(
    matrices: Float[Tensor, "bag head landmark landmark"],
    iterations: int,
    *,
    scale: InverseScale,
) -> Float[Tensor, "bag head landmark landmark"]:
    """The Moore-Penrose inverse, approximated by Newton-Schulz steps of third order.

    Args:
        matrices: rows that sum to one (or zero).
        iterations: steps; six in the published code, few when attention is peaky.
        scale: the starting point is divided by the largest row sum times the largest column sum:
            of each bag, or (as published, where a bag then depends on its batch) of the tensor.
    """
    sums = [matrices.abs().sum(axis).flatten(1) for axis in (-1, -2)]
    largest = [s.amax(1) if scale == "bag" else s.amax().expand(len(s)) for s in sums]
    start = matrices.transpose(-1, -2) / (largest[0] * largest[1])[:, None, None, None]
    shape = matrices.shape
    x, z = matrices.flatten(0, 1), start.flatten(0, 1)
    identity = torch.eye(shape[-1], device=x.device, dtype=x.dtype).expand_as(x)
    for _ in range(iterations):
        xz = x @ z
        inner = torch.baddbmm(identity, xz, 7 * identity - xz, beta=15, alpha=-1)
        z = 0.25 * z @ torch.baddbmm(identity, xz, inner, beta=13, alpha=-1)
    return z.view(shape)


def landmark_slots(
    lengths: Int64[Tensor, " bag"], landmarks: int
) -> tuple[Int64[Tensor, "bag landmark slot"], Bool[Tensor, "bag landmark slot"]]:
    """Which tokens each landmark averages: consecutive groups, the first ones not full.

    Returns:
        The tokens' places, and which of the slots hold one.
    """
    per_landmark = -(-lengths // landmarks)
    missing = per_landmark * landmarks - lengths
    slot = torch.arange(int(per_landmark.max()), device=lengths.device)
    landmark = torch.arange(landmarks, device=lengths.device)
    first = landmark * per_landmark[:, None] - missing[:, None]
    places = first[:, :, None] + slot
    taken = (slot < per_landmark[:, None, None]) & (places >= 0)
    return places.clamp(min=0) * taken, taken


def _group_means(
    tokens: Float[Tensor, "bag head token depth"],
    slots: Int64[Tensor, "bag landmark slot"],
    taken: Bool[Tensor, "bag landmark slot"],
) -> Float[Tensor, "bag head landmark depth"]:
    """Means over the taken slots of each landmark; zero where none is taken."""
    bag, head, _, depth = tokens.shape
    index = slots.flatten(1)[:, None, :, None].expand(bag, head, -1, depth)
    grouped = tokens.gather(2, index).view(bag, head, *slots.shape[1:], depth)
    total = (grouped * taken[:, None, :, :, None]).sum(3)
    means: Tensor = total / taken.sum(2).clamp(min=1)[:, None, :, None]
    return means
