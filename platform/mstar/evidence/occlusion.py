"""Occlusion (Zeiler and Fergus 2014): what a target loses when patches are left out.

    score_i = (t(bag) − t(bag without block B)) / |B|      for every patch i of block B

A block is one patch as long as the bag has no more patches than passes are allowed; of larger bags
it is a patch with its neighbours, so that the cost is bounded: `passes` bags through the head.
Heads that see the mean of a bag at most need no bag: the means without each patch are worked out,
and every patch is a block of its own. Without its only patch a bag is nothing: the score is 0.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mstar.evidence.asked import Asked

ROWS_AT_ONCE, MEANS_AT_ONCE = 65_536, 8_192


@torch.no_grad()
def scores(asked: Asked) -> dict[str, Float[Tensor, " patch"]]:
    """Target → a number per patch."""
    rows, names = len(asked.x), asked.target_names
    if rows == 1:
        return {name: asked.x.new_zeros(1) for name in names}
    whole = asked.targets(asked.x)
    lost = _pooled(asked, whole) if asked.pooled else _in_blocks(asked, whole)
    return dict(zip(names, lost.unbind(1), strict=True))


def _pooled(asked: Asked, whole: Float[Tensor, "1 target"]) -> Float[Tensor, "patch target"]:
    """The mean without a patch is known from the mean: a bag of one row stands for the others."""
    count = len(asked.x)
    total = asked.x.double().sum(0)
    parts = []
    for start in range(0, count, MEANS_AT_ONCE):
        rows = asked.x[start : start + MEANS_AT_ONCE]
        means = ((total - rows.double()) / (count - 1)).float()
        parts.append(whole - asked.targets(means, (1,) * len(means)))
    return torch.cat(parts)


def _in_blocks(asked: Asked, whole: Float[Tensor, "1 target"]) -> Float[Tensor, "patch target"]:
    lost = whole.new_empty(len(asked.x), whole.shape[1])
    blocks = neighbours(asked.coords_l0, asked.passes)
    at_once = max(1, ROWS_AT_ONCE // len(asked.x))
    for start in range(0, len(blocks), at_once):
        group = blocks[start : start + at_once]
        kept = [_without(len(asked.x), block) for block in group]
        said = asked.targets(asked.x[torch.cat(kept)], tuple(map(len, kept)))
        for block, one in zip(group, said, strict=True):
            lost[block] = (whole[0] - one) / len(block)
    return lost


def _without(count: int, block: Int64[Tensor, " _"]) -> Int64[Tensor, " _"]:
    kept = torch.ones(count, dtype=torch.bool)
    kept[block] = False
    return kept.nonzero()[:, 0]


def neighbours(coords: Int64[Tensor, "patch 2"], most: int) -> list[Int64[Tensor, " _"]]:
    """Patches in blocks of neighbours, as many as `most` allows: halved along the longer side.

    At least two blocks, so that no bag is left empty.
    """
    assert len(coords) > 1
    most = max(2, most)
    if len(coords) <= most:
        return list(torch.arange(len(coords))[:, None].unbind())
    blocks = [torch.arange(len(coords))]
    while 2 * len(blocks) <= most:
        blocks = [half for block in blocks for half in _halves(coords, block)]
    return blocks


def _halves(
    coords: Int64[Tensor, "patch 2"], block: Int64[Tensor, " _"]
) -> tuple[Int64[Tensor, " _"], ...]:
    if len(block) < 2:
        return (block,)
    own = coords[block]
    side = int((own.amax(0) - own.amin(0)).argmax())
    order = block[own[:, side].argsort(stable=True)]
    middle = len(order) // 2
    return order[:middle], order[middle:]
