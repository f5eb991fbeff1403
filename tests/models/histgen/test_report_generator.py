"""The report generator: published sizes, packed bags, long bags in parts, its memory."""

import dataclasses

import pytest
import torch

from mstar.errors import ConfigError, FeatureError
from mstar.models.heads.contract import read_bags
from mstar.models.histgen import HistGen, HistGenConfig
from mstar.models.histgen.encoder import cut_regions, evenly_spaced
from mstar.models.histgen.model import count_parameters
from support.report_models import DIM, SMALL, WORDS, bags_of, small_model

SIZES = [1, 13, 40, 4]


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def test_the_default_sizes_have_the_published_shapes_and_their_count() -> None:
    c, words = HistGenConfig(), 4000
    attention, norm = 4 * linear(512, 512), 2 * 512
    ff = linear(512, 512) + linear(512, 512)
    features = linear(1024, 2048) + linear(2048, 512)
    regions = 3 * (attention + ff + 2 * norm) + 512 + norm  # two local layers, one of the slide
    pooling = linear(512, 512) + linear(512, 1)
    memory = 2048 * 512 + attention
    decoder = 3 * (2 * attention + ff + 3 * norm) + norm + 512 * words + linear(512, words)
    expected = features + attention + regions + pooling + memory + decoder
    assert count_parameters(c, 1024, words) == expected == 23_286_689
    with torch.device("meta"):
        model = HistGen(c, 1024, words)
        x = torch.empty(300, 1024)
        assert model.encoder.map(x).shape == (300, 512)
    assert model.memory.slots.shape == (2048, 512)
    assert [len(model.decoder.layers), c.region_tokens, c.memory_top, c.prototypes] == [
        3, 96, 512, 512,
    ]  # fmt: skip


def test_scores_have_a_row_for_each_token_of_each_bag() -> None:
    x, offsets = bags_of(SIZES)
    tokens = torch.randint(WORDS, (len(SIZES), 7))
    assert small_model()(x, offsets, tokens).logits.shape == (len(SIZES), 7, WORDS)


@pytest.mark.parametrize("compat", [False, True])
def test_packed_bags_give_what_each_gives_alone(compat: bool) -> None:
    model = small_model(paper_region_token=compat)
    x, offsets = bags_of(SIZES)
    tokens = torch.randint(WORDS, (len(SIZES), 9))
    together = model(x, offsets, tokens).logits
    for at, size in enumerate(SIZES):
        own = x[int(offsets[at]) : int(offsets[at + 1])]
        alone = model(own, torch.tensor([0, size]), tokens[at : at + 1]).logits
        torch.testing.assert_close(together[at : at + 1], alone, atol=2e-6, rtol=1e-5)


def test_a_bag_in_parts_gives_the_numbers_and_gradients_of_the_whole() -> None:
    found = []
    for rows in (10_000, 7):
        model = small_model(checkpoint_rows=rows).train()
        x, offsets = bags_of([60, 3])
        logits = model(x, offsets, torch.arange(8).view(2, 4)).logits
        logits.square().mean().backward()
        found.append([logits.detach(), *(p.grad for p in model.parameters())])
    for whole, parts in zip(*found, strict=True):
        assert whole is not None
        assert parts is not None
        torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_and_reach_everything_from_a_bag_of_one_patch(
    precision: torch.dtype,
) -> None:
    model = small_model(memory_top=SMALL.memory_slots).train()
    x, offsets = bags_of([1])
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        logits = model(x.half(), offsets, torch.tensor([[1, 5, 6]])).logits
        loss = logits.float().logsumexp(-1).mean() - logits.float()[0, 1, 3]
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name


def test_the_regions_token_is_read_where_it_was_put() -> None:
    """With the authors' index the slide layer sees first patches, and never the token itself."""
    seen = {}
    for compat in (False, True):
        model = small_model(paper_region_token=compat)
        model.encoder.local[0].attention.value.weight.data.zero_()  # no token sees another
        x, offsets = bags_of([12])
        caught: list[torch.Tensor] = []
        model.encoder.slide.register_forward_hook(
            lambda module, given, result, kept=caught: kept.append(given[0])
        )
        model(x, offsets, torch.tensor([[1]]))
        model.encoder.region_token.data += 1.0
        model(x, offsets, torch.tensor([[1]]))
        seen[compat] = bool((caught[0] - caught[1]).abs().max() > 1e-3)
    assert seen == {False: True, True: False}


def test_regions_hold_runs_of_one_bag_and_their_own_token() -> None:
    x, offsets = bags_of([5, 1, 9])
    regions = cut_regions(read_bags(x, offsets, DIM), 5)
    assert regions.filled.sum(1).tolist() == [5, 2, 2, 5, 5, 2]
    assert regions.of_row.tolist() == [0] * 4 + [1] + [2] + [3] * 4 + [4] * 4 + [5]
    assert regions.slot.tolist() == [0, 1, 2, 3, 0, 0, 0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert regions.of_bag.tolist() == [0, 0, 1, 2, 2, 2]
    assert bool(regions.filled[:, -1].all())


def test_prototypes_are_evenly_spaced_and_all_where_few() -> None:
    assert evenly_spaced(3, 5).tolist() == [0, 1, 2]
    assert evenly_spaced(9, 5).tolist() == [0, 2, 4, 6, 8]
    assert evenly_spaced(50_000, 512).unique().numel() == 512
    assert evenly_spaced(50_000, 512)[[0, -1]].tolist() == [0, 49_999]
    assert evenly_spaced(7, 1).tolist() == [0]


def test_a_query_reads_its_strongest_slots_alone() -> None:
    model = small_model(memory_top=3, heads=1)
    memory, queries = model.memory, torch.randn(1, 2, SMALL.width)
    slots = memory.keys_values(memory.slots[None])
    scores = memory.query(queries)[0] @ memory.key(memory.slots).T
    chosen = scores.topk(3, 1).indices
    for query in range(2):
        values = slots.values.clone()
        other = [s for s in range(SMALL.memory_slots) if s not in chosen[query].tolist()]
        values[:, :, other] += 10.0
        torch.testing.assert_close(
            memory.read(queries, slots._replace(values=values))[:, query],
            memory.read(queries, slots)[:, query],
        )
        values[:, :, chosen[query, 0]] += 10.0
        moved = memory.read(queries, slots._replace(values=values))[:, query]
        assert not torch.allclose(moved, memory.read(queries, slots)[:, query])


def test_features_of_another_length_are_refused() -> None:
    with pytest.raises(FeatureError, match="made for features of 8 numbers, got 9"):
        small_model()(torch.randn(3, 9), torch.tensor([0, 3]), torch.tensor([[1]]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 30, "heads": 8}, "even multiple of heads 8"),
        ({"memory_top": 9000}, "expected 1 to memory_slots, 2048"),
        ({"region_tokens": 1}, "region_tokens of 2 or more"),
        ({"dropout": 1.0}, "expected 0 to below 1"),
        ({"decoder_layers": 0}, "expected 1 or more"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(change: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(HistGenConfig(), **change)
