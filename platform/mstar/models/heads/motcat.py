"""MOTCat: optimal-transport co-attention between patches and genes (Xu and Chen 2023).

MCAT, but for how patches are carried to the six groups of genes: by the plan of an unbalanced
optimal transport between all patches and all groups,

    Ĥ = P' H,   P = plan(H, G)     (`mstar.models.heads.transport`)

which sees the bag as a whole. Large bags are cut into micro-batches of near-equal size at random
(in evaluation by a fixed permutation), each with a plan of its own: the loss is the mean of the
chunks' losses, and the bag's survival curve, so its risk, the mean of the chunks' curves.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from mstar.errors import ConfigError
from mstar.models.heads.contract import Bags, GeneLayout, GroupedGenes, HeadOutput, read_bags
from mstar.models.heads.mcat import Mcat, McatConfig
from mstar.models.heads.transport import transport_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class MotcatConfig(McatConfig):
    """Options of MOTCat: those of MCAT, and of the transport."""

    reg: float = 0.1
    """Weight of the entropy in the transport (paper: 0.1)."""
    tau: float = 0.5
    """Weight of its marginals (paper: 0.5)."""
    chunk_patches: int = 16_384
    """Patches of a micro-batch: a bag of N is cut into N // this + 1 (paper's code: 16,384)."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        if not self.reg > 0 or not self.tau > 0 or self.chunk_patches < 1:
            raise ConfigError(
                "motcat: expected reg and tau above 0 and chunk_patches of at least 1, got "
                f"{self.reg}, {self.tau} and {self.chunk_patches}"
            )


class Transport(nn.Module):
    """Patches are carried to groups by a transport plan; it has no weights."""

    def __init__(self, reg: float, tau: float) -> None:
        """See `transport_plan`."""
        super().__init__()
        self.reg, self.tau = reg, tau

    def forward(
        self, patches: Float[Tensor, "patch dim"], groups: Float[Tensor, "group dim"]
    ) -> tuple[Float[Tensor, "group dim"], Float[Tensor, "patch group"]]:
        """What reaches each group, and the share of each patch in it."""
        plan = transport_plan(patches, groups, self.reg, self.tau)
        return plan.T @ patches, plan / plan.sum(0, keepdim=True)


class Motcat(Mcat):
    """MCAT with transport in the place of attention, and micro-batches."""

    def __init__(
        self, config: MotcatConfig, input_dim: int, num_outputs: int, layout: GeneLayout
    ) -> None:
        """Draws the weights."""
        super().__init__(config, input_dim, num_outputs, layout)
        self.chunk_patches = config.chunk_patches

    def make_meeting(self, config: McatConfig) -> nn.Module:
        """Transport."""
        assert isinstance(config, MotcatConfig)
        return Transport(config.reg, config.tau)

    def forward(
        self,
        x: Float[Tensor, "row dim"],
        offsets: Int64[Tensor, " edge"],
        labels: Int64[Tensor, " bag"] | None = None,
        genes: GroupedGenes | None = None,
    ) -> HeadOutput:
        """Scores of packed bags; attention has a column for each group."""
        bags, groups = self.read(x, offsets, genes)
        patches = self.feature(x)
        counts = [size // self.chunk_patches + 1 for size in bags.sizes]
        if max(counts) == 1:
            logits, attention = self.logits(patches, groups, bags)
            return HeadOutput(logits=logits, attention=attention)
        return self._in_chunks(patches, groups, bags, counts)

    def _in_chunks(
        self,
        patches: Float[Tensor, "row hidden"],
        groups: Float[Tensor, "bag group hidden"],
        bags: Bags,
        counts: list[int],
    ) -> HeadOutput:
        """Chunks are bags of their own, with the genes of their bag."""
        order = shuffled_rows(bags, fixed=not self.training)
        sizes = [
            size // count + (place < size % count)
            for size, count in zip(bags.sizes, counts, strict=True)
            for place in range(count)
        ]
        edges = torch.tensor([0, *sizes]).cumsum(0)
        chunks = read_bags(patches[order], edges, patches.shape[1])
        repeats = torch.tensor(counts, device=groups.device)
        logits, shares = self.logits(
            patches[order], groups.repeat_interleave(repeats, dim=0), chunks
        )
        own = torch.split(logits, counts)
        attention = torch.empty_like(shares).index_copy(0, order, shares)
        return HeadOutput(
            logits=torch.stack([mean_of_curves(chunk) for chunk in own]),
            attention=attention / repeats[bags.of_row][:, None],
            chunks=own,
        )


def shuffled_rows(bags: Bags, *, fixed: bool) -> Int64[Tensor, " row"]:
    """The rows of each bag in random order, the bags in theirs; `fixed`: always the same one."""
    generator = torch.Generator().manual_seed(0) if fixed else None
    order, start = [], 0
    for size in bags.sizes:
        if fixed and generator is not None:
            generator.manual_seed(size)  # a bag's order is its own, whatever it is packed with
        order.append(start + torch.randperm(size, generator=generator))
        start += size
    return torch.cat(order).to(bags.of_row.device)


def mean_of_curves(logits: Float[Tensor, "chunk output"]) -> Float[Tensor, " output"]:
    """Hazard logits whose survival curve is the mean of the chunks'; of one risk, the mean.

    S̄_k = mean of S_k;  h̄_k = 1 − S̄_k / S̄_{k−1};  logit = log h̄ − log(1 − h̄)
    """
    if len(logits) == 1 or logits.shape[1] == 1:
        return logits.mean(0)
    curves = logsigmoid(-logits.float()).cumsum(1)
    log_mean = curves.logsumexp(0) - torch.log(torch.tensor(float(len(logits))))
    log_stay = log_mean.diff(prepend=log_mean.new_zeros(1)).clamp(max=-1e-7)  # log(1 − h̄)
    return (torch.log(-torch.expm1(log_stay)) - log_stay).to(logits.dtype)
