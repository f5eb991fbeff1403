"""Greedy and beam search over many slides at once, with kept keys and values.

A beam of 1 gives what `greedy` gives, which is written for itself and plainly.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mstar.models.histgen.config import DecodingConfig
from mstar.models.histgen.model import HistGen

_NEVER = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """The text of one slide.

    tokens: without the tokens of beginning and end.
    log_probability: of the whole text, its end among it.
    ended: False where it was cut at the longest length.
    """

    tokens: tuple[int, ...]
    log_probability: float
    ended: bool


@torch.no_grad()
def greedy(
    model: HistGen,
    x: Float[Tensor, "row dim"],
    offsets: Int64[Tensor, " edge"],
    *,
    begin: int,
    end: int,
    config: DecodingConfig,
) -> list[Generated]:
    """The most probable token each time."""
    state = model.decoder.begin(model.encode(x, offsets), model.memory)
    num = len(offsets) - 1
    text = torch.full((num, 1), begin, device=x.device)
    total, done = torch.zeros(num, device=x.device), torch.zeros(num, device=x.device).bool()
    for _ in range(config.max_new_tokens):
        logits, state = model.decoder(text[:, -1:], state, model.memory)
        scores = _next(logits, text, config.block_ngrams, begin)
        best = scores.max(-1)
        total = total + best.values.masked_fill(done, 0.0)
        text = torch.cat([text, best.indices.masked_fill(done, end)[:, None]], 1)
        done = done | (best.indices == end)
        if bool(done.all()):
            break
    return [
        _generated(row, score, end)
        for row, score in zip(text[:, 1:].tolist(), total.tolist(), strict=True)
    ]


@torch.no_grad()
def generate(
    model: HistGen,
    x: Float[Tensor, "row dim"],
    offsets: Int64[Tensor, " edge"],
    *,
    begin: int,
    end: int,
    config: DecodingConfig,
) -> list[Generated]:
    """The best text of each bag that a beam search finds.

    Each bag follows its `beam` most probable unfinished texts; one that ends among the `beam` best
    continuations is set aside. A bag is done when `beam` texts are set aside; the best of them, and
    of those cut at the longest length, is its report.

    Args:
        model: in evaluation.
        x: patch features, bag after bag.
        offsets: of the bags.
        begin: token that texts start with.
        end: token that ends them.
        config: of the search.
    """
    search = _Beams(len(offsets) - 1, config, begin=begin, end=end, device=x.device)
    state = model.decoder.begin(model.encode(x, offsets), model.memory)
    state = state.chosen(search.first_rows)
    for step in range(config.max_new_tokens):
        logits, state = model.decoder(search.text[:, -1:], state, model.memory)
        rows = search.extend(_next(logits, search.text, config.block_ngrams, begin), step)
        if search.done:
            break
        state = state.chosen(rows)
    return search.best()


class _Beams:
    """The texts that are followed, `beam` rows a bag, and those that have ended."""

    def __init__(
        self, bags: int, config: DecodingConfig, *, begin: int, end: int, device: torch.device
    ) -> None:
        self.beam, self.bags, self.end = config.beam, bags, end
        self.power = config.length_power
        self.text = torch.full((bags * self.beam, 1), begin, device=device)
        # all texts of a bag are equal at first: one of them counts
        self.scores = torch.full((bags, self.beam), _NEVER, device=device)
        self.scores[:, 0] = 0.0
        self.first_rows = torch.arange(bags, device=device).repeat_interleave(self.beam)
        self.ended: list[list[Generated]] = [[] for _ in range(bags)]

    @property
    def done(self) -> bool:
        """Whether every bag has as many ended texts as it followed."""
        return all(len(ended) >= self.beam for ended in self.ended)

    def extend(self, scores: Float[Tensor, "text vocabulary"], step: int) -> Int64[Tensor, " text"]:
        """Take the best continuations; returns which texts they continue."""
        vocabulary = scores.shape[1]
        all_scores = (self.scores.view(-1, 1) + scores).view(self.bags, -1)
        best = all_scores.topk(min(2 * self.beam, all_scores.shape[1]), dim=1)
        parents, tokens = best.indices // vocabulary, best.indices % vocabulary
        self._set_aside(best.values, parents, tokens, step)
        # of the 2 · beam best at most `beam` end, as each text can end in one way only
        going_on = best.values.masked_fill(tokens == self.end, _NEVER)
        self.scores, kept = going_on.topk(self.beam, dim=1)
        base = torch.arange(self.bags, device=scores.device)[:, None] * self.beam
        rows = (parents.gather(1, kept) + base).view(-1)
        self.text = torch.cat([self.text[rows], tokens.gather(1, kept).view(-1, 1)], 1)
        return rows

    def best(self) -> list[Generated]:
        """The report of each bag."""
        found = []
        for bag, ended in enumerate(self.ended):
            cut = self.text[bag * self.beam : (bag + 1) * self.beam, 1:].tolist()
            rest = [
                _generated(row, score, self.end)
                for row, score in zip(cut, self.scores[bag].tolist(), strict=True)
                if score > _NEVER
            ]
            unfinished = rest if len(ended) < self.beam else []
            found.append(max([*ended, *unfinished], key=self._score))
        return found

    def _set_aside(
        self,
        values: Float[Tensor, "bag found"],
        parents: Int64[Tensor, "bag found"],
        tokens: Int64[Tensor, "bag found"],
        step: int,
    ) -> None:
        ends = (tokens == self.end)[:, : self.beam] & (values[:, : self.beam] > _NEVER)
        for bag, at in ends.nonzero().tolist():
            if len(self.ended[bag]) < self.beam:
                row = bag * self.beam + int(parents[bag, at])
                text = tuple(self.text[row, 1:].tolist())
                score = float(values[bag, at])
                self.ended[bag].append(Generated(tokens=text, log_probability=score, ended=True))

    def _score(self, one: Generated) -> float:
        length: float = (len(one.tokens) + 1) ** self.power
        return one.log_probability / length


def _generated(row: list[int], score: float, end: int) -> Generated:
    ended = end in row
    text = row[: row.index(end)] if ended else row
    return Generated(tokens=tuple(text), log_probability=score, ended=ended)


def _next(
    logits: Float[Tensor, "text one vocabulary"],
    text: Int64[Tensor, "text token"],
    block_ngrams: int,
    begin: int,
) -> Float[Tensor, "text vocabulary"]:
    """Log-probabilities of the next token; what may not come is minus infinity."""
    scores = logits[:, -1].float().log_softmax(-1)
    scores[:, begin] = _NEVER
    size = block_ngrams
    if size and text.shape[1] >= size:
        windows = text.unfold(1, size, 1)
        again = (windows[:, :, :-1] == text[:, None, text.shape[1] - size + 1 :]).all(-1)
        row, at = again.nonzero(as_tuple=True)
        scores[row, windows[row, at, -1]] = _NEVER
    return scores
