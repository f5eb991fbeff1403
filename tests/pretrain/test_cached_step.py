"""A step over chunks equals one plain backward pass over the whole batch, on one rank or two."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mstar.losses.cases import MODALITIES
from mstar.models.multimodal import MultimodalModel
from mstar.models.text_encoder import TextEncoderConfig, pretrained_text_encoder
from mstar.pretrain.cached_step import Chunk
from support.ranks import run_ranks
from support.stage1_steps import (
    CASES,
    DIM,
    LAYOUTS,
    STEP,
    assert_same,
    chunk_of,
    make_model,
    plain_step,
    step_of,
)
from support.threads import one_thread
from support.tiny_bert import write_tiny_bert


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums of a few numbers: threads would only wait for one another."""
    with one_thread():
        yield


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
