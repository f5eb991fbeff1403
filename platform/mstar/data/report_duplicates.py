"""Reports that are the same to all intents: nearly all pairs of neighbouring tokens are shared."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int64

_SKETCH_BITS = 2**13
_NEAR_DUPLICATE = 0.9  # Jaccard of token pairs
_MAYBE_DUPLICATE = 0.8  # of hashed ones; pairs that fall together can only lower it so far


def near_duplicates(
    keys: Sequence[str | None], token_ids_of: Callable[[str], Int64[np.ndarray, " token"]]
) -> Int64[np.ndarray, " case"]:
    """A number per case; equal for cases whose reports share nearly all pairs of tokens.

    The Jaccard index of the pairs of neighbouring tokens. All reports are compared by hashed pairs
    first, which cannot miss a near-duplicate of up to 10,000 tokens; the few left over, exactly.
    """
    groups = np.arange(len(keys))
    rows = [place for place, key in enumerate(keys) if key is not None]
    if not rows:
        return groups
    pairs = [_token_pairs(token_ids_of(str(keys[place]))) for place in rows]
    close = np.triu(_jaccard(np.stack([_sketch(p) for p in pairs])) >= _MAYBE_DUPLICATE, 1)
    for i, j in zip(*np.nonzero(close), strict=True):
        shared = len(np.intersect1d(pairs[i], pairs[j], assume_unique=True))
        if shared >= _NEAR_DUPLICATE * (len(pairs[i]) + len(pairs[j]) - shared):
            groups[groups == groups[rows[j]]] = groups[rows[i]]
    return groups


def _token_pairs(ids: Int64[np.ndarray, " token"]) -> Int64[np.ndarray, " pair"]:
    """Each pair of neighbours once, as a number; the first token also follows the beginning."""
    return np.unique(np.concatenate([[0], ids[:-1] + 1]) * 2**32 + ids).astype(np.int64)


def _sketch(pairs: Int64[np.ndarray, " pair"]) -> Float[np.ndarray, " bit"]:
    bits = np.zeros(_SKETCH_BITS, np.float32)
    mixed = pairs.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing
    bits[(mixed >> np.uint64(64 - 13)).astype(np.int64)] = 1
    return bits


def _jaccard(sets: Float[np.ndarray, "set bit"]) -> Float[np.ndarray, "set set"]:
    shared, sizes = sets @ sets.T, sets.sum(1)
    return np.asarray(shared / np.maximum(sizes[:, None] + sizes[None, :] - shared, 1))
