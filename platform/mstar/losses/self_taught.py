"""The loss of stage 2: the student imitates the teacher (A) and does not forget (B).

    A   between f(p), the student's projected feature, and the teacher's stored target
    B   between p, the student's feature, and that of the anchor (EMA copy), which gets no gradient

    a_plus_lambda_b    A + λ B            one_minus_lambda   (1 − λ) A + λ B
    lambda_a           λ A + (1 − λ) B

The paper names neither the form of A and B nor which mix its λ = 0.6 belongs to. Every row has a
weight; rows of weight 0 (padding, broken rows) contribute nothing, whatever their target holds.
Sums are divided by the weight of the whole batch over all passes and ranks, so that neither the
number of passes nor that of ranks changes the loss. All in float32, also under autocast.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn.functional import cosine_similarity, smooth_l1_loss

from mstar.errors import ConfigError

Form = Literal["cosine", "smooth_l1", "l1", "l2"]
Mixing = Literal["a_plus_lambda_b", "one_minus_lambda", "lambda_a"]
FORMS = ("cosine", "smooth_l1", "l1", "l2")
MIXINGS = ("a_plus_lambda_b", "one_minus_lambda", "lambda_a")
_SMALLEST_STD = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTaughtLossConfig:
    """Forms and balance of the stage-2 loss."""

    a: Form = "cosine"
    """Loss A: 1 − cosine, or smooth L1, L1 or squared difference averaged over dimensions. A
    choice; cosine is free of scale, so that A and B are commensurate."""
    b: Form = "cosine"
    """Loss B, likewise."""
    balance: float = 0.6
    """λ, which balances A and B (paper: 0.6)."""
    mixing: Mixing = "a_plus_lambda_b"
    """How λ mixes them: A + λ B, (1 − λ) A + λ B, or λ A + (1 − λ) B. A choice."""
    standardise: bool = False
    """Give every dimension of the targets mean 0 and deviation 1 over all shards; advised for
    smooth_l1, l1 and l2. The exported projection undoes it. A choice."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        for name, value, allowed in (
            ("a", self.a, FORMS),
            ("b", self.b, FORMS),
            ("mixing", self.mixing, MIXINGS),
        ):
            if value not in allowed:
                raise ConfigError(f"loss {name}: expected {' or '.join(allowed)}, got {value!r}")
        most = float("inf") if self.mixing == "a_plus_lambda_b" else 1.0
        if not 0 <= self.balance <= most:
            raise ConfigError(
                f"loss balance: expected λ from 0 to {most:g} for {self.mixing}, got {self.balance}"
            )

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of A and of B."""
        balance = self.balance
        return {
            "a_plus_lambda_b": (1.0, balance),
            "one_minus_lambda": (1 - balance, balance),
            "lambda_a": (balance, 1 - balance),
        }[self.mixing]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetStatistics:
    """Mean and standard deviation of every dimension of the targets."""

    mean: Float32[Tensor, " target"]
    std: Float32[Tensor, " target"]

    def standardise(
        self, targets: Float[Tensor, "patch target"]
    ) -> Float32[Tensor, "patch target"]:
        """Targets with mean 0 and deviation 1 in each dimension."""
        mean, std = self.mean.to(targets.device), self.std.to(targets.device)
        return (targets.float() - mean) / std.clamp(min=_SMALLEST_STD)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTaughtParts:
    """A pass's share of the loss of the batch, and what it is made of.

    total: with gradient. a, b: without their weights. cosine_a, cosine_b: mean similarities,
    whatever the form. All but `total` are detached; summed over passes and ranks they are those of
    the batch.
    """

    total: Float32[Tensor, ""]
    a: Float32[Tensor, ""]
    b: Float32[Tensor, ""]
    cosine_a: Float32[Tensor, ""]
    cosine_b: Float32[Tensor, ""]


def self_taught_loss(
    projected: Float[Tensor, "patch target"],
    targets: Float[Tensor, "patch target"],
    features: Float[Tensor, "patch dim"],
    anchor: Float[Tensor, "patch dim"],
    weights: Float[Tensor, " patch"],
    *,
    total_weight: Float[Tensor, ""],
    config: SelfTaughtLossConfig,
    statistics: TargetStatistics | None = None,
) -> SelfTaughtParts:
    """The share of some rows in the loss of the batch.

    Args:
        projected: f(p) of the student.
        targets: of the teacher, as stored.
        features: p of the student.
        anchor: p̄ of the EMA copy.
        weights: of the rows, 0 for padding.
        total_weight: of the whole batch, over all passes and ranks.
        config: forms and balance.
        statistics: of the targets; needed when they are standardised.
    """
    with torch.autocast(projected.device.type, enabled=False):
        real = (weights > 0)[:, None]
        wanted = targets.float().masked_fill(~real, 0)
        if config.standardise:
            assert statistics is not None, "standardising needs the targets' statistics"
            wanted = statistics.standardise(wanted)
        still = anchor.detach().float()
        mine, own = projected.float(), features.float()
        share = weights.float() / total_weight.float().clamp(min=1e-12)
        a = (share * row_losses(mine, wanted, config.a)).sum()
        b = (share * row_losses(own, still, config.b)).sum()
        weight_a, weight_b = config.weights
        total = weight_a * a + weight_b * b
        with torch.no_grad():
            cosine_a = (share * cosine_similarity(mine, wanted, dim=1)).sum()
            cosine_b = (share * cosine_similarity(own, still, dim=1)).sum()
    return SelfTaughtParts(
        total=total, a=a.detach(), b=b.detach(), cosine_a=cosine_a, cosine_b=cosine_b
    )


def row_losses(
    found: Float32[Tensor, "patch dim"], wanted: Float32[Tensor, "patch dim"], form: Form
) -> Float32[Tensor, " patch"]:
    """The discrepancy of each row; over dimensions it is averaged, so that A and B compare."""
    if form == "cosine":
        return 1 - cosine_similarity(found, wanted, dim=1)
    if form == "smooth_l1":
        return smooth_l1_loss(found, wanted, reduction="none").mean(1)
    apart = found - wanted
    return (apart.abs() if form == "l1" else apart.square()).mean(1)
