"""A tiny stage-1 model and batch, a step over its chunks, and the same step in one plain pass."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mstar.losses.cases import MODALITIES, CaseEmbeddings
from mstar.losses.stage1 import LossConfig, LossParts, stage1_loss
from mstar.models.aggregator import Aggregator, AggregatorConfig
from mstar.models.gene_encoder import GeneEncoder, GeneEncoderConfig
from mstar.models.multimodal import MultimodalBatch, MultimodalModel
from mstar.models.text_encoder import TextEncoder, TextEncoderConfig
from mstar.pretrain.cached_step import Chunk, LossOf, cached_step, on_device
from mstar.training.engines import PlainEngine, average_gradients, world_size
from mstar.training.seeds import reseed

DIM, FEATURES, GENES, PATCHES, TOKENS = 16, 8, 20, 12, 6
SEED, STEP = 3, 7
ALL = frozenset(MODALITIES)
# what the cases of a batch have, and their types
HELD = (
    ALL,
    ALL - {"text"},
    ALL,
    ALL - {"gene"},
    ALL,
    ALL - {"wsi"},
    ALL,
    ALL,
    ALL - {"gene"},
    ALL,
)
CASES = tuple(range(len(HELD)))
LAYOUTS = {
    "one chunk": [CASES],
    "two": [CASES[:5], CASES[5:]],
    "unequal": [CASES[:1], CASES[1:8], CASES[8:]],
    "one case each": [(case,) for case in CASES],
    "empty last": [CASES[:6], CASES[6:], ()],
    "empty between": [CASES[:6], (), CASES[6:]],
    "chunks that lack a modality": [(1,), (3, 8), (5,), (0, 2, 4, 6, 7, 9)],
}


class ToyBert(nn.Module):
    """Takes and gives what a transformers model does, dropout included, without its import."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=10)
        self.words = nn.Embedding(50, 10)
        self.mix = nn.Sequential(nn.Linear(10, 10), nn.GELU(), nn.Dropout(dropout))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        weight = attention_mask[..., None] / attention_mask.sum(1, keepdim=True)[..., None]
        mean = (self.words(input_ids) * weight).sum(1, keepdim=True)
        return SimpleNamespace(last_hidden_state=self.mix(mean))


class KeepsGradients(PlainEngine):
    """Remembers the gradients of the step, as they are after averaging over ranks."""

    def step(self) -> float:
        trained = [p for p in self.module.parameters() if p.requires_grad]
        if world_size() > 1:
            average_gradients(trained)
        self.gradients = {
            name: p.grad.clone() for name, p in self.module.named_parameters() if p.grad is not None
        }
        return super().step()


def make_model(*, dropout: float = 0.3, without: str = "", redraw_every: int = 1) -> Any:
    torch.manual_seed(0)
    aggregator = AggregatorConfig(
        input_dim=FEATURES,
        dim=DIM,
        heads=2,
        landmarks=4,
        input_dropout=dropout,
        attention_dropout=dropout,
    )
    gene = GeneEncoderConfig(
        num_genes=GENES,
        dim=12,
        heads=2,
        head_dim=8,
        random_features=16,
        output_dim=DIM,
        gene_vectors="learned",
        redraw_every=redraw_every,
    )
    text = TextEncoderConfig(name="toy", output_dim=DIM, gradient_checkpointing=False)
    return MultimodalModel(
        None if without == "wsi" else Aggregator(aggregator),
        None if without == "text" else TextEncoder(text, ToyBert(dropout)),
        None if without == "gene" else GeneEncoder(gene),
    )


def make_engine(model: nn.Module, rate: float = 0.0) -> KeepsGradients:
    return KeepsGradients(model, torch.optim.SGD(model.parameters(), lr=rate), grad_clip=0.0)


def chunk_of(cases: Sequence[int], *, without: str = "") -> Chunk:
    """Some cases of the batch; every input depends on its case alone. Features are float16."""
    fields: dict[str, Any] = {}
    places = {
        name: [place for place, case in enumerate(cases) if name in HELD[case] - {without}]
        for name in MODALITIES
    }

    def drawn(name: str, make: Callable[[torch.Generator], Tensor]) -> Tensor:
        seeds = [cases[place] for place in places[name]]
        return torch.stack([make(torch.Generator().manual_seed(seed)) for seed in seeds])

    if places["wsi"]:
        bags = drawn("wsi", lambda g: torch.randn(PATCHES, FEATURES, generator=g))
        fields |= {"bags": bags.half(), "bag_mask": torch.ones(bags.shape[:2], dtype=torch.bool)}
    if places["text"]:
        tokens = drawn("text", lambda g: torch.randint(1, 50, (TOKENS,), generator=g))
        fields |= {"tokens": tokens, "token_mask": torch.ones_like(tokens, dtype=torch.bool)}
    if places["gene"]:
        rows = drawn("gene", lambda g: torch.randint(0, 6, (GENES,), generator=g))
        fields |= {"expression": rows}
    keys = {"wsi": "bag_cases", "text": "token_cases", "gene": "expression_cases"}
    fields |= {keys[name]: torch.tensor(where) for name, where in places.items() if where}
    return Chunk(
        batch=MultimodalBatch(num_cases=len(cases), **fields),
        case_ids=tuple(f"case-{case}" for case in cases),
        cancer=torch.tensor([case % 3 for case in cases], dtype=torch.int64),
    )


def loss_of(cases: CaseEmbeddings, scale: Tensor) -> LossParts:
    return stage1_loss(cases, scale, LossConfig())


def step_of(
    model: MultimodalModel,
    chunks: Sequence[Chunk],
    *,
    rank: int = 0,
    rate: float = 0.0,
    loss: LossOf = loss_of,
) -> tuple[Tensor, dict[str, Tensor], CaseEmbeddings]:
    engine = make_engine(model, rate)
    parts, cases, norm = cached_step(
        engine, chunks, loss, seed=SEED, step=STEP, rank=rank, precision="fp32"
    )
    flat = torch.cat([g.flatten() for g in engine.gradients.values()])
    assert norm == pytest.approx(float(flat.norm()), rel=1e-5)
    return parts.total.detach(), engine.gradients, cases


def plain_step(
    model: MultimodalModel, chunks: dict[tuple[int, int], Chunk]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The reference: all chunks, by rank and place, kept in one graph, and one backward pass."""
    model.train()
    model.redraw(STEP)
    outputs = []
    for (rank, place), chunk in chunks.items():
        reseed("dropout", SEED, STEP, rank, place)
        outputs.append(model(on_device(chunk.batch, torch.device("cpu"))))
    names = (*MODALITIES, *(f"has_{name}" for name in MODALITIES))
    cases = CaseEmbeddings(
        **{name: torch.cat([getattr(output, name) for output in outputs]) for name in names},
        cancer=torch.cat([chunk.cancer for chunk in chunks.values()]),
    )
    total = loss_of(cases, outputs[0].logit_scale).total
    total.backward()
    return total.detach(), {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


def assert_same(
    found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]
) -> None:
    """Loss to 1e-6; every gradient to 1e-5 of the largest number in it."""
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        apart = float((found[1][name] - gradient).abs().max())
        assert apart <= 1e-5 * float(gradient.abs().max()) + 1e-8, name
