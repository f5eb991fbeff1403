"""The stage-1 model: aggregator, text encoder and gene encoder under one forward contract.

A batch is of cases, and a case has whichever modalities it has: each modality comes with the rows
that are there and the cases they belong to. Every modality comes out with one row per case, zeros
where it is absent, and a mask that says so. Vectors are float32 and not normalised.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn

from mstar.errors import ConfigError
from mstar.models.aggregator import Aggregator
from mstar.models.gene_encoder import GeneEncoder
from mstar.models.text_encoder import TextEncoder

INITIAL_SCALE = 1 / 0.07
LARGEST_SCALE = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MultimodalBatch:
    """The modalities of a batch of cases; None (with its mask and cases) where no case has one.

    num_cases: cases of the batch.
    bags, bag_mask: patch features, padded at the end; False where a row is padding.
    bag_cases: the case of each bag, 0 to num_cases − 1, each at most once; so for the others.
    tokens, token_mask: token ids of reports, padded; False where a token is padding.
    token_cases: the case of each report.
    expression: expression ids of RNA rows.
    expression_cases: the case of each RNA row.
    """

    num_cases: int
    bags: Float[Tensor, "bag patch feature"] | None = None
    bag_mask: Bool[Tensor, "bag patch"] | None = None
    bag_cases: Int64[Tensor, " bag"] | None = None
    tokens: Int64[Tensor, "report token"] | None = None
    token_mask: Bool[Tensor, "report token"] | None = None
    token_cases: Int64[Tensor, " report"] | None = None
    expression: Int64[Tensor, "row gene"] | None = None
    expression_cases: Int64[Tensor, " row"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MultimodalOutput:
    """The vectors of a batch's cases.

    wsi, text, gene: one row per case, zeros where the case has no such modality.
    has_wsi, has_text, has_gene: which cases have it.
    logit_scale: what cosines are multiplied with, at most 100.
    """

    wsi: Float32[Tensor, "case dim"]
    text: Float32[Tensor, "case dim"]
    gene: Float32[Tensor, "case dim"]
    has_wsi: Bool[Tensor, " case"]
    has_text: Bool[Tensor, " case"]
    has_gene: Bool[Tensor, " case"]
    logit_scale: Float32[Tensor, ""]


class LogitScale(nn.Module):
    """The learned inverse temperature, kept as its logarithm and at most 100."""

    def __init__(self, initial: float = INITIAL_SCALE) -> None:
        """`initial`: 1/0.07 as in CLIP."""
        super().__init__()
        # one number in a row: DeepSpeed cannot send parameters without a dimension
        self.log_scale = nn.Parameter(torch.tensor([math.log(initial)]))

    def forward(self) -> Float32[Tensor, ""]:
        """The scale. Its gradient passes the clamp, so that it can come back from there."""
        log = self.log_scale.float()[0]
        clamped = log.clamp(max=math.log(LARGEST_SCALE))
        return (log + (clamped - log).detach()).exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring the parameter itself back to the clamp; to be called after each optimiser step."""
        self.log_scale.clamp_(max=math.log(LARGEST_SCALE))

    def at_clamp(self) -> bool:
        """Whether the scale has run into its bound, which is worth a line in the log."""
        return float(self.log_scale.detach()) >= math.log(LARGEST_SCALE) - 1e-6


class MultimodalModel(nn.Module):
    """The encoders of two or three modalities and their shared temperature."""

    def __init__(
        self,
        aggregator: Aggregator | None,
        text_encoder: TextEncoder | None,
        gene_encoder: GeneEncoder | None,
        *,
        initial_scale: float = INITIAL_SCALE,
    ) -> None:
        """None for a modality that is left out; at least two are needed, of one output length.

        Raises:
            ConfigError: too few encoders, or vectors that cannot be compared.
        """
        super().__init__()
        dims = {
            name: dim
            for name, dim in (
                ("aggregator", aggregator and aggregator.config.dim),
                ("text encoder", text_encoder and text_encoder.config.output_dim),
                ("gene encoder", gene_encoder and gene_encoder.config.output_dim),
            )
            if dim
        }
        if len(dims) < 2 or len(set(dims.values())) > 1:
            found = ", ".join(f"{name} {dim}" for name, dim in dims.items()) or "none"
            raise ConfigError(
                "the multimodal model: expected two or three encoders with vectors of one length, "
                f"got {found}. Choose modalities and output lengths that go together."
            )
        self.dim = next(iter(dims.values()))
        self.aggregator, self.text_encoder = aggregator, text_encoder
        self.gene_encoder = gene_encoder
        self.logit_scale = LogitScale(initial_scale)

    def forward(self, batch: MultimodalBatch) -> MultimodalOutput:
        """The vectors of a batch's cases.

        An encoder without rows in this batch gets gradients of zero rather than none, so that
        all ranks reduce the same parameters.

        Raises:
            ConfigError: the batch has a modality that the model has no encoder for.
        """
        _refuse_unknown(self, batch)
        wsi, has_wsi = self._place(self._slides(batch), batch.bag_cases, batch, self.aggregator)
        text, has_text = self._place(
            self._reports(batch), batch.token_cases, batch, self.text_encoder
        )
        gene, has_gene = self._place(
            self._rna(batch), batch.expression_cases, batch, self.gene_encoder
        )
        return MultimodalOutput(
            wsi=wsi,
            text=text,
            gene=gene,
            has_wsi=has_wsi,
            has_text=has_text,
            has_gene=has_gene,
            logit_scale=self.logit_scale(),
        )

    def redraw(self, step: int) -> bool:
        """`GeneEncoder.redraw`, where there is one: once per optimiser step, on every rank."""
        return self.gene_encoder is not None and self.gene_encoder.redraw(step)

    def _slides(self, batch: MultimodalBatch) -> Float[Tensor, "bag dim"] | None:
        if self.aggregator is None or batch.bags is None or not len(batch.bags):
            return None
        slide: Tensor = self.aggregator(batch.bags, batch.bag_mask).slide
        return slide

    def _reports(self, batch: MultimodalBatch) -> Float[Tensor, "report dim"] | None:
        if self.text_encoder is None or batch.tokens is None or not len(batch.tokens):
            return None
        mask = batch.token_mask
        mask = torch.ones_like(batch.tokens, dtype=torch.bool) if mask is None else mask
        report: Tensor = self.text_encoder(batch.tokens, mask)
        return report

    def _rna(self, batch: MultimodalBatch) -> Float[Tensor, "row dim"] | None:
        if self.gene_encoder is None or batch.expression is None or not len(batch.expression):
            return None
        row: Tensor = self.gene_encoder(batch.expression)
        return row

    def _place(
        self,
        rows: Float[Tensor, "row dim"] | None,
        cases: Int64[Tensor, " row"] | None,
        batch: MultimodalBatch,
        encoder: nn.Module | None,
    ) -> tuple[Float32[Tensor, "case dim"], Bool[Tensor, " case"]]:
        """One row per case, and which of them are there."""
        device = self.logit_scale.log_scale.device
        placed = torch.zeros(batch.num_cases, self.dim, device=device)
        has = torch.zeros(batch.num_cases, dtype=torch.bool, device=device)
        if rows is None:
            return placed + zero_of(encoder.parameters() if encoder else ()), has
        assert cases is not None, "rows without their cases"
        assert len(cases) == len(rows), "a case per row"
        return placed.index_copy(0, cases, rows.float()), has.index_fill(0, cases, True)


def zero_of(parameters: Iterable[nn.Parameter]) -> Tensor | float:
    """Zero, with gradients of zero for all these parameters."""
    return sum((p.flatten()[:1].sum() * 0 for p in parameters if p.requires_grad), 0.0)


def _refuse_unknown(model: MultimodalModel, batch: MultimodalBatch) -> None:
    given = {
        "slides": (batch.bags, model.aggregator),
        "reports": (batch.tokens, model.text_encoder),
        "RNA": (batch.expression, model.gene_encoder),
    }
    for name, (rows, encoder) in given.items():
        if rows is not None and encoder is None:
            raise ConfigError(
                f"the batch has {name}, and the model no encoder for them. Leave that modality "
                "out of the batch, or give the model its encoder."
            )
