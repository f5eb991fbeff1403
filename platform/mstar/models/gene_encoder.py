"""The RNA encoder: a Performer over gene tokens, read at a CLS token, one linear projection.

A token is the gene's name vector (Gene2Vec, frozen or trained) plus the vector of its expression
bin, as in scBERT. The CLS token has a zero name vector and expression id 0. There is no other
notion of position, so whether it comes first or last changes nothing but the order of sums.

Only the CLS token is read, so the last layer computes only its query and its feed-forward: with
one layer that is all queries but one left out, at the same result (tested against the package).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from mstar.errors import ConfigError, FeatureError
from mstar.models.favor import draw_projection, favor_attention

EXPRESSION_TOKENS = 7  # bins 0 to 5 and one mask id, as in scBERT
CLS_EXPRESSION_ID = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneEncoderConfig:
    """What a gene encoder is and how it computes."""

    num_genes: int = 17_425
    """Genes of a row, in the order of their name vectors."""
    dim: int = 200
    """Length of a token; that of the name vectors."""
    depth: int = 1
    """Performer layers; one gives the published parameter count."""
    heads: int = 10
    """Attention heads."""
    head_dim: int = 64
    """Depth of a head."""
    feed_forward_factor: int = 4
    """Width of the feed-forward layer, in token lengths."""
    random_features: int = 266
    """Random features of FAVOR+; 266 is int(64 ln 64), the package's default."""
    expression_tokens: int = EXPRESSION_TOKENS
    """Expression ids: bins and the mask id."""
    output_dim: int = 512
    """Length of a case's vector."""
    gene_vectors: Literal["frozen", "learned"] = "frozen"
    """Whether the name vectors are trained."""
    cls_token: Literal["trailing", "leading"] = "trailing"
    """Where the CLS token stands; scBERT's is the last. A choice."""
    redraw_every: int = 1000
    """Optimiser steps between two drawings of the random features; 0 for never. A choice."""
    redraw_seed: int = 0
    """What the random features are drawn from, equal on all ranks."""
    checkpoint_cases: int = 1
    """Cases computed at once, recomputed in the backward pass: memory grows with these, not with
    the batch. 0 keeps everything of the whole batch. A choice."""


class GeneEncoder(nn.Module):
    """Rows of expression ids in, the cases' vectors out."""

    projections: Float[Tensor, "layer feature depth"]
    redraws: Int64[Tensor, ""]
    gene_table: Float[Tensor, "gene dim"]

    def __init__(
        self, config: GeneEncoderConfig, gene_vectors: Float[Tensor, "gene dim"] | None = None
    ) -> None:
        """Draws the weights.

        Args:
            config: what to build.
            gene_vectors: the genes' name vectors; None only where they are learned.

        Raises:
            ConfigError: the vectors are not those of the config.
        """
        super().__init__()
        self.config = config
        table = _table(config, gene_vectors)
        if config.gene_vectors == "learned":
            self.gene_table = nn.Parameter(table)
        else:
            self.register_buffer("gene_table", table)
        self.expression = nn.Embedding(config.expression_tokens, config.dim)
        if config.gene_vectors == "learned":
            _start_in_order(self.expression.weight)
        self.performer = _performer(config)
        self.norm = nn.LayerNorm(config.dim)
        self.proj_gene = nn.Linear(config.dim, config.output_dim)
        self.register_buffer("projections", _projections(config, 0))
        self.register_buffer("redraws", torch.zeros((), dtype=torch.int64))

    def redraw(self, step: int) -> bool:
        """Draw the random features of this optimiser step, where the schedule has new ones.

        To be called once per optimiser step, before its first forward pass and on every rank;
        never between a forward pass and its backward pass. Evaluation keeps what training had.

        Args:
            step: optimiser steps done since training began, across resumes.

        Returns:
            Whether they were drawn anew.
        """
        wanted = step // self.config.redraw_every if self.config.redraw_every else 0
        if not self.training or wanted == int(self.redraws):
            return False
        with torch.no_grad():
            self.projections.copy_(_projections(self.config, wanted))
            self.redraws.fill_(wanted)
        return True

    def forward(self, expression: Int64[Tensor, "case gene"]) -> Float[Tensor, "case dim"]:
        """The projected CLS tokens of cases, each from its expression ids.

        Raises:
            FeatureError: the rows have another number of genes.
        """
        if expression.shape[1] != self.config.num_genes:
            raise FeatureError(
                f"the gene encoder expects rows of {self.config.num_genes:,} genes, got "
                f"{expression.shape[1]:,}. Use an expression store of its genes."
            )
        at_once = self.config.checkpoint_cases or len(expression)
        if not self.training or not torch.is_grad_enabled():
            read = [self._read(rows) for rows in torch.split(expression, at_once)]
        elif not self.config.checkpoint_cases:
            read = [self._read(expression)]
        else:  # nothing random inside, so no generator state has to be kept
            read = [
                checkpoint(self._read, rows, use_reentrant=False, preserve_rng_state=False)
                for rows in torch.split(expression, at_once)
            ]
        result: Tensor = self.proj_gene(self.norm(torch.cat(read)))
        return result

    def _read(self, expression: Int64[Tensor, "case gene"]) -> Float[Tensor, "case width"]:
        """The CLS token after the last layer."""
        sides = (1, 0) if self.config.cls_token == "leading" else (0, 1)
        ids = pad(expression, sides, value=CLS_EXPRESSION_ID)
        tokens = pad(self.gene_table, (0, 0, *sides)) + self.expression(ids)
        *before, last = zip(self.performer.net.layers, self.projections, strict=True)
        for (attention, feed_forward), projection in before:
            tokens = tokens + _attend(attention, tokens, tokens, projection)
            tokens = tokens + feed_forward(tokens)
        (attention, feed_forward), projection = last
        cls = tokens[:, :1] if self.config.cls_token == "leading" else tokens[:, -1:]
        cls = cls + _attend(attention, cls, tokens, projection)
        result: Tensor = (cls + feed_forward(cls))[:, 0]
        return result


def _attend(
    layer: Any,
    readers: Float[Tensor, "case reader dim"],
    tokens: Float[Tensor, "case token dim"],
    projection: Float[Tensor, "feature depth"],
) -> Float[Tensor, "case reader dim"]:
    """One attention layer of the package, for some of its queries."""
    attention = layer.fn
    normed = layer.norm(tokens)
    queries, keys, values = (
        linear(x).view(*x.shape[:2], attention.heads, -1).transpose(1, 2)
        for linear, x in (
            (attention.to_q, layer.norm(readers)),
            (attention.to_k, normed),
            (attention.to_v, normed),
        )
    )
    mixed = favor_attention(queries, keys, values, projection)
    result: Tensor = attention.to_out(mixed.transpose(1, 2).flatten(2))
    return result


@torch.no_grad()
def _start_in_order(expression: Float[Tensor, "token dim"]) -> None:
    """A random walk along the bins, as long as a learned name.

    Neighbouring bins start alike, so that a gene that is a little higher looks a little different;
    with vectors drawn apart the encoder is a hash, which learns its training cases by heart. At the
    usual length of sqrt(dim) a token would hardly tell which gene it is.
    """
    num_tokens, dim = expression.shape
    expression.copy_(torch.randn(num_tokens, dim).cumsum(0) / math.sqrt(num_tokens * dim))


def _performer(config: GeneEncoderConfig) -> Any:
    """The package's layers, without its projections and their redrawing.

    The package counts forward calls and draws from the global generator, so ranks would part; and
    its updater holds the layers a second time, which would double every key of the state dict.
    """
    from performer_pytorch import Performer

    performer = Performer(
        dim=config.dim,
        depth=config.depth,
        heads=config.heads,
        dim_head=config.head_dim,
        ff_mult=config.feed_forward_factor,
        nb_features=config.random_features,
        qkv_bias=False,
        auto_check_redraw=False,
    )
    del performer.proj_updater
    for attention, _ in performer.net.layers:
        del attention.fn.fast_attention
    return performer


def _projections(config: GeneEncoderConfig, redraws: int) -> Float[Tensor, "layer feature depth"]:
    """The random features of every layer after so many redrawings."""
    return torch.stack(
        [
            draw_projection(
                (config.redraw_seed, redraws, layer), config.random_features, config.head_dim
            )
            for layer in range(config.depth)
        ]
    )


def _table(
    config: GeneEncoderConfig, vectors: Float[Tensor, "gene dim"] | None
) -> Float[Tensor, "gene dim"]:
    expected = (config.num_genes, config.dim)
    if vectors is None and config.gene_vectors == "learned":
        drawn: Tensor = torch.randn(expected) / math.sqrt(config.dim)
        return drawn
    if vectors is None:
        raise ConfigError("gene vectors are frozen, and none are given. Give them, or learn them.")
    if tuple(vectors.shape) != expected:
        raise ConfigError(
            f"gene vectors: expected {expected[0]:,} × {expected[1]} numbers, got "
            f"{' × '.join(f'{n:,}' for n in vectors.shape)}. Give one vector per gene of the store."
        )
    table: Tensor = vectors.detach().float().clone()
    return table
