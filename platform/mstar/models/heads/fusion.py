"""How the vector of a slide and that of its genes become one.

    ConcatFusion      two linear layers on both, side by side     MCAT (Chen et al. 2021)
    KroneckerFusion   the outer product of [o1; 1] and [o2; 1]    the same, `bilinear`
    LowRankFusion     that product in few terms, to the logits    Porpoise (Chen et al. 2022)

In the latter two each vector is first shortened and let through as far as both say it should:

    o = Dropout(ReLU(W_o (sigmoid(W_z [h_slide; h_genes]) ⊙ ReLU(W_h h))))
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from mstar.errors import ConfigError
from mstar.models.heads.layers import Dropout


class ConcatFusion(nn.Sequential):
    """Linear, ReLU, twice."""

    def __init__(self, dim: int) -> None:
        """`dim`: length of either vector, and of the joint one."""
        super().__init__(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())

    def forward(  # type: ignore[override]
        self, slide: Float[Tensor, "bag dim"], genes: Float[Tensor, "bag dim"]
    ) -> Float[Tensor, "bag dim"]:
        """The joint vector."""
        joint: Tensor = super().forward(torch.cat([slide, genes], dim=1))  # type: ignore[no-untyped-call]
        return joint


class Gate(nn.Module):
    """One modality, shortened, and let through as far as both say it should."""

    def __init__(self, dim: int, short: int, dropout: float) -> None:
        """`short`: length of what comes out."""
        super().__init__()
        self.own = nn.Linear(dim, short)
        self.both = nn.Linear(2 * dim, short)
        self.out = nn.Linear(short, short)
        self.dropout = Dropout(dropout)

    def forward(
        self, own: Float[Tensor, "bag dim"], both: Float[Tensor, "bag both"]
    ) -> Float[Tensor, "bag short"]:
        """`both`: slide and genes side by side."""
        kept = self.both(both).sigmoid() * self.own(own).relu()
        result: Tensor = self.dropout(self.out(kept).relu())
        return result


class Gates(nn.Module):
    """The gate of the slide and that of the genes; a 1 is added to what they let through."""

    def __init__(self, dim: int, scale: int, dropout: float) -> None:
        """`scale`: vectors become so many times shorter."""
        super().__init__()
        if scale < 1 or dim % scale:
            raise ConfigError(f"fusion scale {scale}: expected a divisor of {dim}")
        self.slide = Gate(dim, dim // scale, dropout)
        self.genes = Gate(dim, dim // scale, dropout)

    def forward(
        self, slide: Float[Tensor, "bag dim"], genes: Float[Tensor, "bag dim"]
    ) -> tuple[Float[Tensor, "bag short_1"], Float[Tensor, "bag short_1"]]:
        """[o1; 1] and [o2; 1]."""
        both = torch.cat([slide, genes], dim=1)
        let_through = self.slide(slide, both), self.genes(genes, both)
        first, second = (pad(o, (0, 1), value=1.0) for o in let_through)
        return first, second


class KroneckerFusion(nn.Module):
    """Every product of a number of the slide with one of the genes, and two linear layers."""

    def __init__(self, dim: int, scale: int, dropout: float) -> None:
        """`scale`: vectors become so many times shorter before they are multiplied."""
        super().__init__()
        self.gates = Gates(dim, scale, dropout)
        self.layers = nn.Sequential(
            Dropout(dropout),
            nn.Linear((dim // scale + 1) ** 2, dim),
            nn.ReLU(),
            Dropout(dropout),
            nn.Linear(dim, dim),
            nn.ReLU(),
            Dropout(dropout),
        )

    def forward(
        self, slide: Float[Tensor, "bag dim"], genes: Float[Tensor, "bag dim"]
    ) -> Float[Tensor, "bag dim"]:
        """The joint vector."""
        first, second = self.gates(slide, genes)
        products = (first[:, :, None] * second[:, None, :]).flatten(1)
        joint: Tensor = self.layers(products)
        return joint


class LowRankFusion(nn.Module):
    """y = Σ_r w_r (F1_r' [1; o1]) ⊙ (F2_r' [1; o2]) + b: the outer product, never written out."""

    def __init__(self, dim: int, outputs: int, scale: int, rank: int, dropout: float) -> None:
        """`outputs`: length of y. Raises ConfigError for a rank below 1."""
        super().__init__()
        if rank < 1:
            raise ConfigError(f"fusion rank {rank}: expected 1 or more")
        self.gates = Gates(dim, scale, dropout)
        short = dim // scale + 1
        self.slide_factors = nn.Parameter(torch.empty(rank, short, outputs))
        self.gene_factors = nn.Parameter(torch.empty(rank, short, outputs))
        self.weights = nn.Parameter(torch.empty(1, rank))
        self.bias = nn.Parameter(torch.zeros(outputs))
        for factors in (self.slide_factors, self.gene_factors, self.weights):
            nn.init.xavier_normal_(factors)

    def forward(
        self, slide: Float[Tensor, "bag dim"], genes: Float[Tensor, "bag dim"]
    ) -> Float[Tensor, "bag output"]:
        """The logits y."""
        first, second = self.gates(slide, genes)
        left = torch.einsum("bs,rso->bro", first, self.slide_factors)
        right = torch.einsum("bs,rso->bro", second, self.gene_factors)
        y: Tensor = (self.weights[0, :, None] * left * right).sum(1) + self.bias
        return y
