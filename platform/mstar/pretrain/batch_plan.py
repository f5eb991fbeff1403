"""Which cases train together: batches with enough of every pairing and several cancers.

An epoch is a pure function of (cases, batch size, seed, epoch). Cases are sorted by cancer type,
then by the modalities present, each kind shuffled, and dealt out like cards, one batch after the
other. Every batch so holds each cancer type, and each kind, in proportion: with B batches and n
cases, floor(n / B) or one more. Every case is in exactly one batch; sizes differ by at most one.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Int64

from mstar.errors import TrainingError
from mstar.training.seeds import seed_of

MODALITIES = ("wsi", "text", "gene")
PAIRINGS = tuple(combinations(MODALITIES, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseKind:
    """What the plan must know of a case."""

    cancer_type: str
    modalities: frozenset[str]


def num_batches(num_cases: int, batch_cases: int) -> int:
    """Batches of an epoch: as few as hold every case with at most `batch_cases` in each."""
    return max(1, -(-num_cases // batch_cases))


def plan_epoch(
    kinds: Sequence[CaseKind], batch_cases: int, *, seed: int, epoch: int
) -> list[Int64[np.ndarray, " case"]]:
    """The cases of each batch as indices into `kinds`; the whole batch, over all ranks."""
    rng = np.random.default_rng(seed_of("batch plan", seed, epoch))
    cancers = _shuffled_codes([kind.cancer_type for kind in kinds], rng)
    held = _shuffled_codes([" ".join(sorted(kind.modalities)) for kind in kinds], rng)
    dealt = np.lexsort((rng.permutation(len(kinds)), held, cancers))  # the last key comes first
    count = num_batches(len(kinds), batch_cases)
    return [np.sort(dealt[start::count]).astype(np.int64) for start in range(count)]


def _shuffled_codes(names: Sequence[str], rng: np.random.Generator) -> Int64[np.ndarray, " case"]:
    """A number for every name, equal for equal names, in random order."""
    found, codes = np.unique(np.array(names, dtype=np.str_), return_inverse=True)
    return rng.permutation(len(found))[codes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """What every batch of every epoch holds at least.

    pairs: cases with both modalities, by pairing. cancers: cancer types with two or more cases.
    """

    pairs: dict[tuple[str, str], int]
    cancers: int
    batches: int


def guarantee(kinds: Sequence[CaseKind], batch_cases: int) -> Guarantee:
    """The least that dealing in proportion leaves in any batch."""
    count = num_batches(len(kinds), batch_cases)
    sizes = Counter((kind.cancer_type, kind.modalities) for kind in kinds)
    floors = {group: size // count for group, size in sizes.items()}
    pairs = {
        pair: sum(n for (_, held), n in floors.items() if set(pair) <= held) for pair in PAIRINGS
    }
    cancers = Counter(kind.cancer_type for kind in kinds)
    twice = sum(size // count >= 2 for size in cancers.values())
    return Guarantee(pairs=pairs, cancers=twice, batches=count)


def check_guarantee(
    kinds: Sequence[CaseKind],
    batch_cases: int,
    *,
    pairings: Sequence[tuple[str, str]],
    min_pairs: int,
    min_cancers: int,
) -> Guarantee:
    """The guarantee of a plan.

    Raises:
        TrainingError: some batch could hold fewer pairs or cancers than asked for.
    """
    found = guarantee(kinds, batch_cases)
    for pair in pairings:
        if found.pairs[pair] < min_pairs:
            raise TrainingError(
                f"batches of {batch_cases} cases: expected at least {min_pairs} cases with both "
                f"{' and '.join(pair)} in each, {found.pairs[pair]} are certain. Raise "
                "--batch-cases, lower --min-pairs, or leave a modality out with --modalities."
            )
    if found.cancers < min_cancers:
        raise TrainingError(
            f"batches of {batch_cases} cases: expected at least {min_cancers} cancer types with "
            f"two cases in each, {found.cancers} are certain. Raise --batch-cases or lower "
            "--min-cancers."
        )
    return found


def share_of(
    batch: Int64[np.ndarray, " case"], rank: int, world_size: int
) -> Int64[np.ndarray, " mine"]:
    """The cases of a batch that a rank works on; shares differ by at most one case."""
    return batch[rank::world_size]
