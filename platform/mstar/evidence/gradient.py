"""Gradient × input (Shrikumar et al. 2016): how far each patch moves a target, to first order.

    score_i = Σ_j x_ij ∂t / ∂x_ij

Of a linear head on mean features it is exactly the patch's term of the sum. One pass forwards and
one backwards for each target; memory is that of a training step on the bag.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mstar.evidence.asked import Asked


def scores(asked: Asked) -> dict[str, Float[Tensor, " patch"]]:
    """Target → a number per patch."""
    with torch.enable_grad():
        x = asked.x.detach().clone().requires_grad_(True)
        said = asked.targets(x)[0]
        found = {}
        for at, name in enumerate(asked.target_names):
            (slope,) = torch.autograd.grad(said[at], x, retain_graph=at + 1 < len(said))
            found[name] = (slope * x.detach()).sum(1)
    return found
