"""Greedy and beam search: against each other, against trying every text, and with kept states."""

import itertools

import pytest
import torch

from mstar.errors import ConfigError
from mstar.models.histgen import DecodingConfig, Generated, HistGen, generate, greedy
from support.report_models import bags_of, small_model

BEGIN, END = 1, 2
SIZES = [1, 13, 40, 4, 9]


def both(
    model: HistGen, sizes: list[int], config: DecodingConfig
) -> tuple[list[Generated], list[Generated]]:
    x, offsets = bags_of(sizes)
    found = [
        search(model, x, offsets, begin=BEGIN, end=END, config=config)
        for search in (greedy, generate)
    ]
    return found[0], found[1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block", [0, 2, 3])
def test_a_beam_of_one_is_greedy(seed: int, block: int) -> None:
    config = DecodingConfig(beam=1, max_new_tokens=25, block_ngrams=block)
    plain, beam = both(small_model(seed=seed), SIZES, config)
    assert [one.tokens for one in plain] == [one.tokens for one in beam]
    assert [one.ended for one in plain] == [one.ended for one in beam]
    torch.testing.assert_close(
        torch.tensor([one.log_probability for one in plain]),
        torch.tensor([one.log_probability for one in beam]),
    )


def test_kept_keys_and_values_give_what_the_whole_text_gives() -> None:
    model = small_model(seed=3)
    x, offsets = bags_of(SIZES)
    config = DecodingConfig(beam=1, max_new_tokens=12, block_ngrams=0)
    found = greedy(model, x, offsets, begin=BEGIN, end=END, config=config)
    text, done = torch.full((len(SIZES), 1), BEGIN), torch.zeros(len(SIZES), dtype=torch.bool)
    for _ in range(12):
        scores = model(x, offsets, text).logits[:, -1].detach()
        scores[:, BEGIN] = float("-inf")
        best = scores.argmax(-1).masked_fill(done, END)
        text, done = torch.cat([text, best[:, None]], 1), done | (best == END)
    for row, one in zip(text[:, 1:].tolist(), found, strict=True):
        assert tuple(row[: row.index(END)] if END in row else row) == one.tokens
    assert any(len(one.tokens) > 3 for one in found)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_texts(power: float) -> None:
    words, longest = 5, 3
    model = small_model(words=words, seed=5)
    x, offsets = bags_of([6])
    config = DecodingConfig(
        beam=words**longest, max_new_tokens=longest, block_ngrams=0, length_power=power
    )
    (found,) = generate(model, x, offsets, begin=BEGIN, end=END, config=config)
    scored = {}
    for length in range(longest + 1):
        for text in itertools.product([w for w in range(words) if w not in (BEGIN, END)],
                                      repeat=length):  # fmt: skip
            whole = list(text) if length == longest else [*text, END]
            scored[text] = log_probability(model, x, whole) / (length + 1) ** power
    best = max(scored, key=lambda text: scored[text])
    assert found.tokens == best
    own = found.log_probability / (len(found.tokens) + 1) ** power
    assert own == pytest.approx(scored[best], abs=1e-5)
    assert len({round(score, 6) for score in scored.values()}) > 20


def log_probability(model: HistGen, x: torch.Tensor, whole: list[int]) -> float:
    read = torch.tensor([[BEGIN, *whole[:-1]]])
    logits = model(x, torch.tensor([0, len(x)]), read).logits[0].detach()
    return float(logits.log_softmax(-1)[torch.arange(len(whole)), whole].sum())


@pytest.mark.parametrize("seed", range(3))
def test_a_bag_gets_its_text_whatever_is_beside_it(seed: int) -> None:
    model, config = small_model(seed=seed), DecodingConfig(beam=3, max_new_tokens=15)
    x, offsets = bags_of(SIZES)
    together = generate(model, x, offsets, begin=BEGIN, end=END, config=config)
    for at, size in enumerate(SIZES):
        own = x[int(offsets[at]) : int(offsets[at + 1])]
        edges = torch.tensor([0, size])
        (alone,) = generate(model, own, edges, begin=BEGIN, end=END, config=config)
        assert alone.tokens == together[at].tokens
        assert alone.log_probability == pytest.approx(together[at].log_probability, abs=1e-4)


@pytest.mark.parametrize("beam", [1, 4])
def test_no_run_of_tokens_comes_twice_where_that_is_blocked(beam: int) -> None:
    model = small_model(words=6, seed=2)
    model.decoder.out.bias.data[END] = -20.0  # it would go on for ever
    x, offsets = bags_of([5, 8])
    repeats = {}
    for block in (0, 3):
        config = DecodingConfig(beam=beam, max_new_tokens=40, block_ngrams=block)
        found = generate(model, x, offsets, begin=BEGIN, end=END, config=config)
        runs = [list(zip(t, t[1:], t[2:], strict=False)) for t in (one.tokens for one in found)]
        repeats[block] = sum(len(own) - len(set(own)) for own in runs)
        assert block or not any(one.ended for one in found)
    assert repeats[3] == 0 < repeats[0]


def test_a_text_is_cut_at_the_longest_length_and_says_so() -> None:
    model = small_model(seed=1)
    model.decoder.out.bias.data[END] = -50.0
    plain, beam = both(model, [4], DecodingConfig(beam=1, max_new_tokens=6, block_ngrams=0))
    assert [len(plain[0].tokens), plain[0].ended, beam[0].ended] == [6, False, False]


@pytest.mark.parametrize(
    "change", [{"beam": 0}, {"max_new_tokens": 0}, {"block_ngrams": 1}, {"block_ngrams": -1}]
)
def test_searches_that_cannot_be_meant_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="decoding"):
        DecodingConfig(**change)
