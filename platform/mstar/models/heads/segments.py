"""Means, softmax, weighted sums and orders within the bags of a packed batch.

No loop over bags on the CPU, and nothing of one bag enters a number of another, not even its NaN
(which is why a weighted sum is not a product with a block-diagonal matrix).
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import embedding_bag

from mstar.models.heads.contract import Bags, made_for_cpu


def bag_means(rows: Float[Tensor, "row dim"], bags: Bags) -> Float[Tensor, "bag dim"]:
    """The mean row of each bag, at least in float32."""
    if rows.dtype in (torch.float16, torch.bfloat16):
        # a bag at a time: float32 copies of all rows of a cohort would not fit
        return torch.stack([bag.float().mean(0) for bag in bags.cut(rows)])
    if made_for_cpu(rows):
        places = torch.arange(len(rows))
        sums = embedding_bag(places, rows, bags.offsets, mode="sum", include_last_offset=True)
        return sums / bags.offsets.diff()[:, None]
    return torch.stack([bag.mean(0) for bag in bags.cut(rows)])


def bag_softmax(scores: Float[Tensor, "row class"], bags: Bags) -> Float[Tensor, "row class"]:
    """Softmax of each column within each bag, so that it sums to one there."""
    wide = scores.double()  # 100,000 small terms are added up; a column costs nothing
    largest = _largest(wide.detach(), bags)
    raised = (wide - largest[bags.of_row]).exp()
    total = raised.new_zeros(len(bags), scores.shape[1]).index_add(0, bags.of_row, raised)
    return (raised / total[bags.of_row]).to(scores.dtype)


def weighted_sums(
    weights: Float[Tensor, "row class"], rows: Float[Tensor, "row dim"], bags: Bags
) -> Float[Tensor, "bag class dim"]:
    """The rows of each bag, added up with the weights of each class."""
    weights = weights.to(rows.dtype)
    if made_for_cpu(rows):  # fused: the products of weights and rows are never stored
        places = torch.arange(len(rows))
        sums = [
            embedding_bag(
                places,
                rows,
                bags.offsets,
                mode="sum",
                per_sample_weights=column.contiguous(),
                include_last_offset=True,
            )
            for column in weights.unbind(1)
        ]
        return torch.stack(sums, dim=1)
    pairs = zip(bags.cut(weights), bags.cut(rows), strict=True)
    return torch.stack([weight.T @ row for weight, row in pairs])


def _largest(scores: Float[Tensor, "row class"], bags: Bags) -> Float[Tensor, "bag class"]:
    """The largest score of each bag and column."""
    lowest = scores.new_full((len(bags), scores.shape[1]), float("-inf"))
    index = bags.of_row[:, None].expand_as(scores)
    return lowest.scatter_reduce(0, index, scores, "amax")


def largest_rows(scores: Float[Tensor, "row class"], bags: Bags) -> Int64[Tensor, "bag class"]:
    """Per bag and column the row with the largest score, the first of equals."""
    largest = _largest(scores.detach(), bags)
    place = torch.arange(len(scores), device=scores.device)[:, None].expand_as(scores)
    reached = place.masked_fill(scores.detach() < largest[bags.of_row], len(scores))
    last = (bags.offsets[1:] - 1)[:, None].expand(-1, scores.shape[1])
    index = bags.of_row[:, None].expand_as(scores)
    return last.scatter_reduce(0, index, reached, "amin", include_self=True)


def rows_by_score(scores: Float[Tensor, " row"], bags: Bags) -> Int64[Tensor, " row"]:
    """The rows, bag after bag, each bag's from the highest score to the lowest."""
    order = scores.detach().argsort(descending=True, stable=True)
    return order[bags.of_row[order].argsort(stable=True)]


def places_in_bag(bags: Bags) -> Int64[Tensor, " row"]:
    """0, 1, 2 … within each bag."""
    rows = torch.arange(len(bags.of_row), device=bags.of_row.device)
    return rows - bags.offsets[bags.of_row]
