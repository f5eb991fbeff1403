"""How well one modality finds another: recall, ranks, and what chance would give.

A query's true match is the same case; other cases whose gallery entry is the same to all intents
(near-duplicate reports, `group`) count as matches too. Entries with equal scores stand in any
order, so a query may count as found in part: vectors that are all the same have the recall of
chance, not more. Three yardsticks stand beside every recall: chance over the whole gallery; chance
within the query's cancer type; and the ceiling of a model that knows the cancer type and no more.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

KS = (1, 5, 10, 50)
_DECIMALS = 6  # of a cosine; closer scores are a tie, float32 cannot tell them apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """Recall at k with its interval and its yardsticks; all are shares between 0 and 1.

    low, high: 95 % percentile interval over resampled queries. chance: expected recall of a random
    order of the gallery. ceiling: expected recall of an order by cancer type alone.
    """

    k: int
    value: float
    low: float
    high: float
    chance: float
    ceiling: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """One direction, say slide → report.

    within: the gallery of each query is its own cancer type; chance is its yardstick, and the
    ceiling equals it.
    """

    num_queries: int
    overall: tuple[Recall, ...]
    within: tuple[Recall, ...]
    median_rank: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where each query's best match stands in its gallery.

    above: other entries with a higher score. equal: other entries with the same score.
    matches: matches with that score.
    """

    above: Int64[np.ndarray, " query"]
    equal: Int64[np.ndarray, " query"]
    matches: Int64[np.ndarray, " query"]

    @property
    def rank(self) -> Float[np.ndarray, " query"]:
        """The expected place of the first match, from 1."""
        return np.asarray(1 + self.above + self.equal / (self.matches + 1))

    def found(self, k: int) -> Float[np.ndarray, " query"]:
        """The chance that a match is among the first k: 0 or 1 but for ties."""
        missed = np.ones(len(self.above))
        for place in range(k):  # of the tied entries, drawn without replacement
            others, left = self.equal - place, self.equal + self.matches - place
            miss = np.clip(others / np.maximum(left, 1), 0, 1)
            missed *= np.where(place < k - self.above, miss, 1)
        return 1 - missed


def similarity(
    queries: Float[np.ndarray, "query dim"], gallery: Float[np.ndarray, "entry dim"]
) -> Float[np.ndarray, "query entry"]:
    """Cosine of every query with every gallery entry."""
    return np.asarray((normalised(queries) @ normalised(gallery).T).round(_DECIMALS))


def normalised(vectors: Float[np.ndarray, "case dim"]) -> Float[np.ndarray, "case dim"]:
    """The vectors at length 1; a vector of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12))


def retrieval(
    scores: Float[np.ndarray, "query entry"],
    *,
    cancer: Int64[np.ndarray, " query"],
    group: Int64[np.ndarray, " entry"],
    ks: tuple[int, ...] = KS,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Retrieval:
    """Recall of a square table of scores, whose query i and entry i are the same case.

    group: entries with the same number are the same to all intents.
    """
    match = group[:, None] == group[None, :]
    same_type = cancer[:, None] == cancer[None, :]
    overall = standing(scores, match, np.ones_like(match))
    within = standing(scores, match & same_type, same_type)
    by_chance = any_order(np.full(len(scores), len(scores)), match.sum(1))
    by_type = any_order(same_type.sum(1), (match & same_type).sum(1))
    draws = np.random.default_rng(seed).integers(0, len(scores), (num_resamples, len(scores)))
    return Retrieval(
        num_queries=len(scores),
        overall=tuple(_recall(k, overall, draws, by_chance, by_type) for k in ks),
        within=tuple(_recall(k, within, draws, by_type, by_type) for k in ks),
        median_rank=float(np.median(overall.rank)),
    )


def standing(
    scores: Float[np.ndarray, "query entry"],
    match: Bool[np.ndarray, "query entry"],
    gallery: Bool[np.ndarray, "query entry"],
) -> Standing:
    """Where each query's best match stands among the entries of its gallery; every query has one.

    Entries that match are not in each other's way.
    """
    best = np.where(match, scores, -np.inf).max(1, keepdims=True)
    others, level = gallery & ~match, scores == best
    return Standing(
        above=(others & (scores > best)).sum(1),
        equal=(others & level).sum(1),
        matches=(match & level).sum(1),
    )


def any_order(sizes: Int64[np.ndarray, " query"], matches: Int64[np.ndarray, " query"]) -> Standing:
    """Galleries of these sizes, with so many matches, where all scores are equal."""
    return Standing(above=np.zeros_like(sizes), equal=sizes - matches, matches=matches)


def _recall(
    k: int,
    found: Standing,
    draws: Int64[np.ndarray, "resample query"],
    by_chance: Standing,
    by_type: Standing,
) -> Recall:
    hits = found.found(k)
    low, high = np.percentile(hits[draws].mean(1), [2.5, 97.5])
    return Recall(
        k=k,
        value=float(hits.mean()),
        low=float(low),
        high=float(high),
        chance=float(by_chance.found(k).mean()),
        ceiling=float(by_type.found(k).mean()),
    )


def alignment(a: Float[np.ndarray, "case dim"], b: Float[np.ndarray, "case dim"]) -> float:
    """Mean squared distance of pairs on the unit sphere; lower is better (Wang & Isola 2020)."""
    return float(((normalised(a) - normalised(b)) ** 2).sum(1).mean())


def uniformity(vectors: Float[np.ndarray, "case dim"]) -> float:
    """Log of the mean Gaussian potential of all pairs, t = 2; 0 is collapsed, lower is better."""
    if len(vectors) < 2:
        return 0.0
    unit = normalised(vectors)
    potential = np.exp(4 * (unit @ unit.T) - 4)
    pairs = len(unit) * (len(unit) - 1)
    return float(np.log((potential.sum(dtype=np.float64) - np.trace(potential)) / pairs))
