"""The cases of all ranks on every rank, with gradients, so that all of them are negatives.

Every rank computes the loss of the whole batch and sends each row's gradient back to the rank the
row came from, where the gradients of all ranks are summed. The engine then averages parameters'
gradients over ranks: together that is the gradient of one process that had the whole batch.

Ranks may have different numbers of cases: rows are padded for the transfer and the padding is
dropped on arrival. Without a process group, or with one rank, nothing is done. A modality's rows
need gradients on all ranks or on none, or the backward pass would wait for ever.
"""

from dataclasses import fields
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from mstar.losses.cases import CaseEmbeddings


def gather_cases(cases: CaseEmbeddings, group: dist.ProcessGroup | None = None) -> CaseEmbeddings:
    """The cases of all ranks, in the order of the ranks; every rank has to call it."""
    if world_size(group) == 1:
        return cases
    counts = gather_counts(len(cases.cancer), cases.cancer.device, group)
    return CaseEmbeddings(
        **{
            field.name: gather_rows(getattr(cases, field.name), counts, group)
            for field in fields(CaseEmbeddings)
        }
    )


def gather_rows(
    rows: Shaped[Tensor, " row *rest"],
    counts: list[int],
    group: dist.ProcessGroup | None = None,
) -> Shaped[Tensor, " all_rows *rest"]:
    """The rows of all ranks in the order of the ranks, `counts` of them from each."""
    if world_size(group) == 1:
        return rows
    as_sent = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
    missing = max(counts) - len(rows)
    padded = torch.cat([as_sent, as_sent.new_zeros(missing, *as_sent.shape[1:])])
    arrived: Tensor = _AllGather.apply(padded, group)  # type: ignore[no-untyped-call]
    kept = [block[:count] for block, count in zip(arrived, counts, strict=True)]
    return torch.cat(kept).to(rows.dtype)


def gather_counts(
    count: int, device: torch.device, group: dist.ProcessGroup | None = None
) -> list[int]:
    """How many rows each rank has."""
    if world_size(group) == 1:
        return [count]
    own = torch.tensor([count], device=device)
    counts = [torch.empty_like(own) for _ in range(world_size(group))]
    dist.all_gather(counts, own, group=group)
    return [int(c) for c in counts]


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Ranks of the group; 1 without one."""
    if not dist.is_available() or not dist.is_initialized():
        return 1
    return dist.get_world_size(group)


class _AllGather(torch.autograd.Function):
    """[row …] of every rank to [rank row …]; the backward pass sums over ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        arrived = [torch.empty_like(rows) for _ in range(world_size(group))]
        dist.all_gather(arrived, rows.contiguous(), group=group)
        return torch.stack(arrived)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        summed = gradients[0].contiguous()
        dist.all_reduce(summed, group=ctx.group)
        return summed[dist.get_rank(ctx.group)], None
