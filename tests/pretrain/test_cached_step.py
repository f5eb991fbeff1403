"""A step over chunks equals one plain backward pass over the whole batch, on one rank or two."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mstar.errors import TrainingError
from mstar.losses.cases import MODALITIES, CaseEmbeddings
from mstar.losses.stage1 import LossConfig, LossParts, stage1_loss
from mstar.models.aggregator import Aggregator, AggregatorConfig
from mstar.models.gene_encoder import GeneEncoder, GeneEncoderConfig
from mstar.models.multimodal import MultimodalBatch, MultimodalModel
from mstar.models.text_encoder import TextEncoder, TextEncoderConfig, pretrained_text_encoder
from mstar.pretrain.cached_step import Chunk, LossOf, cached_step, loss_metrics, on_device
from mstar.training.engines import PlainEngine, average_gradients, world_size
from mstar.training.seeds import reseed
from support.ranks import run_ranks
from support.tiny_bert import write_tiny_bert

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


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of a few numbers: threads would only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


LAYOUTS = {
    "one chunk": [CASES],
    "two": [CASES[:5], CASES[5:]],
    "unequal": [CASES[:1], CASES[1:8], CASES[8:]],
    "one case each": [(case,) for case in CASES],
    "empty last": [CASES[:6], CASES[6:], ()],
    "empty between": [CASES[:6], (), CASES[6:]],
    "chunks that lack a modality": [(1,), (3, 8), (5,), (0, 2, 4, 6, 7, 9)],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_equal_one_backward_pass_with_dropout(layout: str) -> None:
    chunks = [chunk_of(cases) for cases in LAYOUTS[layout]]
    total, gradients, cases = step_of(make_model(), chunks)
    expected = plain_step(make_model(), {(0, i): chunk for i, chunk in enumerate(chunks)})
    assert_same((total, gradients), expected)
    assert len(cases.cancer) == len(CASES)
    assert not any(cases.vectors(name).requires_grad for name in MODALITIES)
    assert all(float(g.abs().max()) > 1e-6 for n, g in gradients.items() if "bias" not in n)


@pytest.mark.parametrize("without", MODALITIES)
def test_a_modality_may_be_left_out(without: str) -> None:
    chunks = [chunk_of(cases, without=without) for cases in (CASES[:4], CASES[4:8], CASES[8:])]
    found = step_of(make_model(without=without), chunks)
    expected = plain_step(
        make_model(without=without), {(0, i): chunk for i, chunk in enumerate(chunks)}
    )
    assert_same(found[:2], expected)
    assert not found[2].has(without).any()


@settings(max_examples=6, deadline=None)
@given(cuts=st.lists(st.integers(0, len(CASES)), max_size=5))
def test_without_dropout_any_cut_gives_the_same_step(cuts: list[int]) -> None:
    """`chunk_cases` bounds memory and changes no result."""
    ends = [0, *sorted(cuts), len(CASES)]
    pieces = [CASES[start:stop] for start, stop in pairwise(ends)]
    whole = step_of(make_model(dropout=0.0), [chunk_of(CASES)])
    assert_same(step_of(make_model(dropout=0.0), [chunk_of(p) for p in pieces])[:2], whole[:2])


def test_dropout_is_on_and_differs_between_steps_and_chunks() -> None:
    chunks = [chunk_of(CASES[:5]), chunk_of(CASES[5:])]
    with_dropout, without = make_model(), make_model(dropout=0.0)
    assert not torch.allclose(step_of(with_dropout, chunks)[0], step_of(without, chunks)[0])
    twice = [chunk_of(CASES[:1]), chunk_of(CASES[:1])]
    cases = step_of(make_model(), twice)[2]
    assert not torch.allclose(cases.wsi[0], cases.wsi[1]), "chunks draw apart"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_real_bert_replays_its_dropout(tmp_path: Any, checkpointing: bool) -> None:
    folder = write_tiny_bert(tmp_path, ["a"], hidden=16, layers=2)
    config = TextEncoderConfig(
        name=str(folder), output_dim=DIM, gradient_checkpointing=checkpointing
    )

    def model() -> MultimodalModel:
        made = make_model()
        torch.manual_seed(1)
        made.text_encoder = pretrained_text_encoder(config)
        return made

    chunks = [chunk_of(CASES[:4]), chunk_of(CASES[4:])]
    found = step_of(model(), chunks)
    expected = plain_step(model(), {(0, i): chunk for i, chunk in enumerate(chunks)})
    assert_same(found[:2], expected)


# What the ranks of a group work on: rank → chunks. The first rank has fewer, or no cases.
SHARES = {
    "one chunk": [[CASES[:4]], [CASES[4:]]],
    "chunks": [[CASES[:3], CASES[3:4]], [CASES[4:8], CASES[8:]]],
    "a rank without cases": [[(), ()], [CASES[:5], CASES[5:]]],
    "a rank without RNA": [[(3, 8), ()], [(0, 1, 2), (4, 5, 6, 7, 9)]],
}


def step_of_rank() -> dict[str, Any]:
    """Every layout of SHARES on this rank, dropout on; and the parameters after a real step."""
    import torch.distributed as dist

    rank = dist.get_rank()
    found: dict[str, Any] = {}
    for layout, shares in SHARES.items():
        chunks = [chunk_of(cases) for cases in shares[rank]]
        total, gradients, cases = step_of(make_model(), chunks, rank=rank)
        found[layout] = total, gradients, cases.wsi
    model = make_model(dropout=0.0)
    step_of(model, [chunk_of(cases) for cases in SHARES["chunks"][rank]], rank=rank, rate=0.1)
    found["after"] = model.state_dict()
    return found


def test_two_ranks_give_the_loss_and_gradients_of_one() -> None:
    ranks = run_ranks(step_of_rank, 2)
    for layout, shares in SHARES.items():
        chunks = {
            (rank, place): chunk_of(cases)
            for rank, share in enumerate(shares)
            for place, cases in enumerate(share)
        }
        expected = plain_step(make_model(), chunks)
        for found in ranks:
            assert_same(found[layout][:2], expected)
            assert len(found[layout][2]) == len(CASES)
    alone = make_model(dropout=0.0)
    step_of(alone, [chunk_of(CASES[:5]), chunk_of(CASES[5:])], rate=0.1)
    for found in ranks:
        # the CLS token starts at 1e-6: rounding of its gradient is not small beside it
        torch.testing.assert_close(found["after"], alone.state_dict(), rtol=1e-5, atol=5e-6)


def test_random_features_are_drawn_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    seen: list[Tensor] = []
    read = model.gene_encoder._read
    monkeypatch.setattr(
        model.gene_encoder,
        "_read",
        lambda rows: (seen.append(model.gene_encoder.projections.clone()), read(rows))[1],
    )
    step_of(model, [chunk_of(CASES[:5]), chunk_of(CASES[5:])])
    assert len(seen) > 2
    assert all(torch.equal(one, seen[0]) for one in seen)
    assert int(model.gene_encoder.redraws) == STEP
    assert not torch.equal(seen[0], make_model().gene_encoder.projections), "drawn for this step"


def test_activations_are_those_of_one_chunk() -> None:
    """Bytes held for the backward pass at any moment: of a chunk, not of the batch."""

    def most_held(chunks: list[Chunk]) -> int:
        held, most = 0, 0

        class Held:
            def __init__(self, tensor: Tensor) -> None:
                nonlocal held, most
                self.tensor, self.size = tensor, tensor.numel()
                held += self.size
                most = max(most, held)

            def __del__(self) -> None:
                nonlocal held
                held -= self.size

        with torch.autograd.graph.saved_tensors_hooks(Held, lambda one: one.tensor):
            step_of(make_model(), chunks)
        return most

    assert most_held([chunk_of((case,)) for case in CASES]) < 0.3 * most_held([chunk_of(CASES)])


@pytest.mark.parametrize("num_chunks", [1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_case_with_nan_is_named_and_nothing_is_updated(num_chunks: int, value: float) -> None:
    model = make_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    cases = [CASES] if num_chunks == 1 else [CASES[:5], CASES[5:]]
    chunks = [chunk_of(some) for some in cases]
    place = chunks[-1].case_ids.index("case-7")
    bags, bag_cases = chunks[-1].batch.bags, chunks[-1].batch.bag_cases
    assert bags is not None
    assert bag_cases is not None
    bags[int((bag_cases == place).nonzero())] = value
    with pytest.raises(TrainingError, match=r"step 7: expected finite wsi vectors.*\(case-7\)"):
        step_of(model, chunks, rate=0.1)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_gradient_that_is_not_finite_ends_the_run() -> None:
    """The loss may be finite all the same; such parameters must not reach a checkpoint."""

    def broken(cases: CaseEmbeddings, scale: Tensor) -> LossParts:
        total = loss_of(cases, scale).total + (cases.wsi * 0).sum().sqrt()
        return LossParts(total=total, parts={}, counts={}, skipped=())

    engine = make_engine(make_model())
    with pytest.raises(TrainingError, match=r"step 7: expected a finite gradient, got norm"):
        cached_step(
            engine, [chunk_of(CASES)], broken, seed=SEED, step=STEP, rank=0, precision="fp32"
        )


@pytest.mark.parametrize("layout", ["one chunk", "unequal"])
def test_the_temperature_has_the_slope_of_the_loss(layout: str) -> None:
    chunks = [chunk_of(cases) for cases in LAYOUTS[layout]]

    def loss_at(log_scale: float) -> float:
        model = make_model(dropout=0.0)
        model.logit_scale.log_scale.data.fill_(log_scale)
        with torch.no_grad():
            return float(plain_loss(model, chunks))

    model = make_model(dropout=0.0)
    slope = step_of(model, chunks)[1]["logit_scale.log_scale"]
    at = math.log(1 / 0.07)
    assert float(slope) == pytest.approx((loss_at(at + 1e-2) - loss_at(at - 1e-2)) / 2e-2, rel=1e-2)


@pytest.mark.parametrize("layout", ["one chunk", "unequal"])
def test_the_temperature_stays_below_its_bound_and_can_leave_it(layout: str) -> None:
    def pushes(sign: float) -> LossOf:
        def push(cases: CaseEmbeddings, scale: Tensor) -> LossParts:
            total = loss_of(cases, scale).total * 0 + sign * scale
            return LossParts(total=total, parts={}, counts={}, skipped=())

        return push

    chunks, model = [chunk_of(cases) for cases in LAYOUTS[layout]], make_model()
    scale = model.logit_scale.log_scale
    scale.data.fill_(math.log(99))
    step_of(model, chunks, rate=0.01, loss=pushes(-1))
    assert float(scale.detach()) == pytest.approx(math.log(100))
    gradients = step_of(model, chunks, rate=0.01, loss=pushes(1))[1]
    assert float(gradients["logit_scale.log_scale"]) == pytest.approx(100, rel=1e-5)
    assert float(scale.detach()) == pytest.approx(math.log(100) - 1, rel=1e-5)


def plain_loss(model: MultimodalModel, chunks: Sequence[Chunk]) -> Tensor:
    model.train()
    model.redraw(STEP)
    outputs = [model(on_device(chunk.batch, torch.device("cpu"))) for chunk in chunks]
    names = (*MODALITIES, *(f"has_{name}" for name in MODALITIES))
    cases = CaseEmbeddings(
        **{name: torch.cat([getattr(output, name) for output in outputs]) for name in names},
        cancer=torch.cat([chunk.cancer for chunk in chunks]),
    )
    return loss_of(cases, outputs[0].logit_scale).total


def test_features_travel_as_stored() -> None:
    batch = chunk_of(CASES).batch
    moved = on_device(batch, torch.device("cpu"))
    assert batch.bags is not None
    assert moved.bags is not None
    assert (batch.bags.dtype, moved.bags.dtype) == (torch.float16, torch.float32)
    assert moved.num_cases == batch.num_cases
    assert on_device(MultimodalBatch(num_cases=0), torch.device("meta")).bags is None


def test_the_numbers_of_a_step_are_named() -> None:
    engine = make_engine(make_model())
    parts, _, norm = cached_step(
        engine, [chunk_of(CASES)], loss_of, seed=SEED, step=STEP, rank=0, precision="fp32"
    )
    found = loss_metrics(parts, 14.0, norm)
    pairs = {"wsi_text": 8.0, "wsi_gene": 7.0, "text_gene": 7.0}
    assert {name: found[f"pairs.{name}"] for name in pairs} == pairs
    total = sum(found[f"loss.{name}"] for name in (*pairs, "triplet"))
    assert found["loss"] == pytest.approx(total, rel=1e-5)
    assert (found["logit_scale"], found["grad_norm"]) == (14.0, norm)
