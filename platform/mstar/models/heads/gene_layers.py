"""What heads do with gene expression before it meets the slide.

GeneScale      every gene at mean 0 and spread 1 over the training split
SnnLayer       Linear, ELU, AlphaDropout: a self-normalising layer (Klambauer et al. 2017)
GroupEncoders  a small self-normalising network for each group of genes (Chen et al. 2021)
GroupHead      what heads that read genes in groups begin with
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mstar.errors import ConfigError, FeatureError
from mstar.models.heads.contract import Bags, GeneLayout, GroupedGenes, read_bags


class GeneScale(nn.Module):
    """Standardises genes; what it learnt is part of the head's state.

    A gene that was not measured counts as the training mean, 0. So does every value of a gene that
    is constant over the training split: its spread is kept as infinity.
    """

    def __init__(self, layout: GeneLayout) -> None:
        """Before `learn`, values stay as they are."""
        super().__init__()
        self.layout = layout
        self.register_buffer("mean", torch.zeros(layout.genes))
        self.register_buffer("spread", torch.ones(layout.genes))
        self.mean: Tensor
        self.spread: Tensor

    @torch.no_grad()
    def learn(self, values: Float[Tensor, "case gene"]) -> None:
        """Take mean and standard deviation of each gene over the cases that have it."""
        self._check(values)
        wide = values.double()
        known = ~wide.isnan()
        count = known.sum(0).clamp(min=1)
        mean = wide.nan_to_num(0.0).sum(0) / count
        variance = ((wide - mean).nan_to_num(0.0).square() * known).sum(0) / count
        # rounding leaves a little variance to a constant gene
        constant = variance.sqrt() <= 1e-6 * (1 + mean.abs())
        self.mean.copy_(mean)
        self.spread.copy_(variance.sqrt().masked_fill(constant, math.inf))

    def forward(self, genes: GroupedGenes) -> Float[Tensor, "bag gene"]:
        """All genes, standardised."""
        self._check(genes.values)
        scaled: Tensor = (genes.values.float() - self.mean) / self.spread
        return torch.where(scaled.isnan(), 0.0, scaled)

    def groups(self, genes: GroupedGenes) -> list[Float[Tensor, "bag _"]]:
        """The standardised genes of each group."""
        sizes = tuple(len(columns) for columns in genes.columns)
        if sizes != self.layout.groups:
            raise FeatureError(
                f"the head was made for groups of {list(self.layout.groups)} genes, got "
                f"{list(sizes)}. Use the signature table that it was trained with."
            )
        scaled = self(genes)
        return [scaled[:, columns] for columns in genes.columns]

    def _check(self, values: Float[Tensor, "case gene"]) -> None:
        if values.shape[1] != self.layout.genes:
            raise FeatureError(
                f"the head was made for {self.layout.genes:,} genes, got {values.shape[1]:,}. Use "
                "the gene expression that it was trained with."
            )


def given_genes(genes: GroupedGenes | None, bags: int) -> GroupedGenes:
    """The genes of a batch.

    Raises:
        FeatureError: there are none, or not one row a bag.
    """
    if genes is None:
        raise FeatureError("the head reads gene expression, got none. Give it with the bags.")
    if len(genes.values) != bags:
        raise FeatureError(
            f"gene expression: expected a row for each of {bags} bags, got {len(genes.values)}"
        )
    return genes


class SnnLayer(nn.Sequential):
    """One layer of a self-normalising network, with its own first weights."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        """Weights are drawn with variance 1 / inputs, as such networks need; biases are zero."""
        linear = nn.Linear(inputs, outputs)
        nn.init.normal_(linear.weight, std=1 / math.sqrt(inputs))
        nn.init.zeros_(linear.bias)
        super().__init__(linear, nn.ELU(), nn.AlphaDropout(dropout))


class GroupEncoders(nn.Module):
    """One vector for each group of genes, by a network of two layers of its own."""

    def __init__(self, layout: GeneLayout, hidden: int, dim: int, dropout: float) -> None:
        """`hidden`: length between the two layers."""
        super().__init__()
        self.scale = GeneScale(layout)
        self.networks = nn.ModuleList(
            nn.Sequential(SnnLayer(size, hidden, dropout), SnnLayer(hidden, dim, dropout))
            for size in layout.groups
        )

    def forward(self, genes: GroupedGenes) -> Float[Tensor, "bag group dim"]:
        """The groups' vectors, in their order."""
        pairs = zip(self.networks, self.scale.groups(genes), strict=True)
        return torch.stack([network(values) for network, values in pairs], dim=1)


class GroupHead(nn.Module):
    """A head of patches and groups of genes; `genes` is set where its weights are drawn."""

    genes: GroupEncoders

    def __init__(self, name: str, input_dim: int, layout: GeneLayout) -> None:
        """Raises ConfigError where there are no groups."""
        super().__init__()
        needs_groups(name, layout)
        self.input_dim = input_dim

    def learn_genes(self, values: Float[Tensor, "case gene"]) -> None:
        """Take mean and spread of every gene from the training split."""
        self.genes.scale.learn(values)

    def read(
        self,
        x: Float[Tensor, "row dim"],
        offsets: Int64[Tensor, " edge"],
        genes: GroupedGenes | None,
    ) -> tuple[Bags, Float[Tensor, "bag group hidden"]]:
        """Where the bags of a batch lie, and the vectors of each one's groups."""
        bags = read_bags(x, offsets, self.input_dim)
        groups: Tensor = self.genes(given_genes(genes, len(bags)))
        return bags, groups


def needs_groups(head: str, layout: GeneLayout) -> None:
    """Raises ConfigError where a head that reads groups is built without any."""
    if not layout.groups or min(layout.groups) < 1:
        raise ConfigError(
            f"head {head}: it reads genes in groups, got groups of {list(layout.groups)}. Give a "
            "signature table whose every group has genes."
        )
