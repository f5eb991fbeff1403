"""Cross-entropy over bags, with weights of the classes.

    L = (1 / bags) Σ w_y · −log softmax(logits)_y

The sum is divided by the number of bags, not by their weights as PyTorch does: with one bag in a
batch the weights would cancel.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from mstar.errors import ConfigError


def class_weights(
    labels: Int64[Tensor, " bag"], num_classes: int, kind: str
) -> Float[Tensor, " class"] | None:
    """Weights of the classes from the training labels.

    `balanced`: bags / (classes present · bags of the class), so that every class that is present
    weighs the same and the mean weight of a bag is one; 0 for absent classes. `none`: None.
    """
    if kind == "none":
        return None
    if kind != "balanced":
        raise ConfigError(f"class_weights: expected none or balanced, got {kind!r}")
    counts = labels.bincount(minlength=num_classes).float()
    present = counts > 0
    weights = len(labels) / (present.sum() * counts.clamp(min=1))
    return weights * present


def cross_entropy(
    logits: Float[Tensor, "bag class"],
    labels: Int64[Tensor, " bag"],
    weights: Float[Tensor, " class"] | None = None,
) -> Float[Tensor, ""]:
    """The weighted cross-entropy, averaged over bags, in float32 or wider."""
    with torch.autocast(logits.device.type, enabled=False):
        wide = logits if logits.dtype == torch.float64 else logits.float()
        losses = functional.cross_entropy(wide, labels, reduction="none")
        if weights is not None:
            losses = losses * weights.to(losses)[labels]
        return losses.mean()
