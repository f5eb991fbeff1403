"""Unbalanced optimal transport between the patches of a bag and its groups of genes.

    plan = argmin_P  ⟨P, C⟩ + reg · KL(P | a b') + tau · KL(P 1 | a) + tau · KL(P' 1 | b)

a and b are uniform, C the squared distances divided by the largest. POT iterates Sinkhorn-Knopp in
float64 where the features are. The plan has no gradient: what it carries has.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

ITERATIONS, THRESHOLD = 1000, 1e-6  # POT's own defaults


def transport_plan(
    patches: Float[Tensor, "patch dim"], groups: Float[Tensor, "group dim"], reg: float, tau: float
) -> Float[Tensor, "patch group"]:
    """How much of each patch goes to each group; the sum is about one.

    Args:
        patches: their vectors; each is shifted so that its smallest number is zero.
        groups: theirs, likewise.
        reg: weight of the entropy; smaller is sharper, and slower.
        tau: weight of the marginals; infinite would be balanced transport.
    """
    from ot.unbalanced import sinkhorn_knopp_unbalanced  # slow to import

    with torch.no_grad(), torch.autocast(patches.device.type, enabled=False):
        first, second = (v.double() - v.double().amin(1, keepdim=True) for v in (patches, groups))
        cost = torch.cdist(first, second).square()
        largest = cost.max()
        if not bool(torch.isfinite(largest)):  # POT would warn and guess
            return torch.full_like(cost, torch.nan).to(patches.dtype)
        cost = cost / largest.clamp(min=torch.finfo(cost.dtype).tiny)
        marginals = [cost.new_full((size,), 1 / size) for size in cost.shape]
        on_cpu = cost.device.type == "cpu"
        # many small steps, which numpy does faster than torch on a CPU
        given = [t.numpy() if on_cpu else t for t in (*marginals, cost)]
        plan = sinkhorn_knopp_unbalanced(*given, reg, tau, numItermax=ITERATIONS, stopThr=THRESHOLD)
        found: Tensor = torch.from_numpy(np.asarray(plan)) if on_cpu else plan
        return found.to(patches.dtype)
