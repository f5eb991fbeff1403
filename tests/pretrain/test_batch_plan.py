"""The batch plan: a partition of every epoch whose batches hold what the guarantee says."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.errors import TrainingError
from mstar.pretrain.batch_plan import (
    MODALITIES,
    PAIRINGS,
    CaseKind,
    check_guarantee,
    guarantee,
    num_batches,
    plan_epoch,
    share_of,
)

SETS = [frozenset(some) for size in (2, 3) for some in combinations(MODALITIES, size)]
KIND = st.builds(
    lambda cancer_type, modalities: CaseKind(cancer_type=cancer_type, modalities=modalities),
    st.sampled_from(["BRCA", "COAD", "KIRC", "LUAD"]),
    st.sampled_from(SETS),
)
KINDS = st.lists(KIND, min_size=1, max_size=90)


def skewed(num_cases: int, seed: int = 0) -> list[CaseKind]:
    """Cases as cohorts have them: types and modalities of very different frequency."""
    rng = np.random.default_rng(seed)
    types = rng.choice([f"T{i}" for i in range(12)], num_cases, p=(w := np.arange(1, 13)) / w.sum())
    sets = rng.choice(4, num_cases, p=[0.1, 0.05, 0.05, 0.8])
    return [
        CaseKind(cancer_type=str(kind), modalities=SETS[place])
        for kind, place in zip(types, sets, strict=True)
    ]


def held(kinds: list[CaseKind], batch: np.ndarray) -> tuple[dict[tuple[str, str], int], int]:
    """Counted naively: cases with both of each pairing, and cancer types met twice."""
    mine = [kinds[place] for place in batch]
    pairs = {pair: sum(set(pair) <= kind.modalities for kind in mine) for pair in PAIRINGS}
    types = [kind.cancer_type for kind in mine]
    return pairs, sum(types.count(name) >= 2 for name in set(types))


@settings(max_examples=60, deadline=None)
@given(kinds=KINDS, batch_cases=st.integers(1, 40), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_every_case_once_in_batches_of_equal_size(
    kinds: list[CaseKind], batch_cases: int, seed: int, epoch: int
) -> None:
    batches = plan_epoch(kinds, batch_cases, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(kinds)))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_cases
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == num_batches(len(kinds), batch_cases)
    assert len(sizes) == 1 or len(kinds) > (len(sizes) - 1) * batch_cases, "as few as possible"


@settings(max_examples=60, deadline=None)
@given(kinds=KINDS, batch_cases=st.integers(1, 40), seed=st.integers(0, 9))
def test_every_batch_holds_each_type_and_kind_in_proportion(
    kinds: list[CaseKind], batch_cases: int, seed: int
) -> None:
    """Hence at least what is guaranteed."""
    promised = guarantee(kinds, batch_cases)
    assert promised.batches == num_batches(len(kinds), batch_cases)
    for epoch in range(3):
        for batch in plan_epoch(kinds, batch_cases, seed=seed, epoch=epoch):
            mine = [kinds[place] for place in batch]
            for of in (lambda k: k, lambda k: k.cancer_type):
                for group in {of(kind) for kind in kinds}:
                    size = sum(of(kind) == group for kind in kinds)
                    inside = sum(of(kind) == group for kind in mine)
                    assert inside - size // promised.batches in (0, 1)
            pairs, cancers = held(kinds, batch)
            assert all(pairs[pair] >= promised.pairs[pair] for pair in PAIRINGS)
            assert cancers >= promised.cancers


def test_the_guarantee_is_close_to_the_worst_batch_of_a_skewed_cohort() -> None:
    kinds = skewed(600)
    promised = guarantee(kinds, 64)
    found = [
        held(kinds, batch)
        for epoch in range(20)
        for batch in plan_epoch(kinds, 64, seed=1, epoch=epoch)
    ]
    assert promised.cancers == min(cancers for _, cancers in found)
    assert promised.cancers >= 8
    for pair in PAIRINGS:
        worst = min(pairs[pair] for pairs, _ in found)
        assert 0.7 * worst <= promised.pairs[pair] <= worst


@settings(max_examples=30, deadline=None)
@given(kinds=KINDS, batch_cases=st.integers(1, 40), order=st.randoms(use_true_random=False))
def test_the_guarantee_does_not_depend_on_the_order_of_cases(
    kinds: list[CaseKind], batch_cases: int, order: object
) -> None:
    shuffled = list(kinds)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert guarantee(shuffled, batch_cases) == guarantee(kinds, batch_cases)


def test_a_plan_is_a_function_of_seed_and_epoch() -> None:
    kinds = skewed(100)

    def plan(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in plan_epoch(kinds, 16, seed=seed, epoch=epoch)]

    assert plan(3, 5) == plan(3, 5)
    assert plan(3, 5) != plan(3, 6)
    assert plan(3, 5) != plan(4, 5)


def test_cases_meet_others_in_other_epochs() -> None:
    """Two cases of one kind share a batch about as often as chance has it."""
    kinds = [CaseKind(cancer_type="A", modalities=SETS[-1])] * 64
    met = np.zeros((64, 64))
    for epoch in range(400):
        for batch in plan_epoch(kinds, 16, seed=0, epoch=epoch):
            met[np.ix_(batch, batch)] += 1
    share = met[np.triu_indices(64, 1)] / 400
    assert abs(share.mean() - 15 / 63) < 1e-9
    assert share.min() > 0.12
    assert share.max() < 0.36


@settings(max_examples=30, deadline=None)
@given(size=st.integers(0, 50), world_size=st.integers(1, 9))
def test_shares_of_the_ranks_partition_a_batch(size: int, world_size: int) -> None:
    """The batch is planned without the ranks, so their number changes only who computes."""
    batch = np.arange(100, 100 + size)
    shares = [share_of(batch, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(shares).tolist()) == batch.tolist()
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == -(-size // world_size), "what the number of chunks is taken from"


def test_too_small_batches_are_refused_with_the_numbers() -> None:
    kinds = skewed(600)
    wsi_gene = ("wsi", "gene")
    found = check_guarantee(kinds, 64, pairings=PAIRINGS, min_pairs=2, min_cancers=2)
    assert found == guarantee(kinds, 64)
    with pytest.raises(TrainingError, match=r"at least 40 cases with both wsi and gene.*certain"):
        check_guarantee(kinds, 32, pairings=[wsi_gene], min_pairs=40, min_cancers=0)
    with pytest.raises(TrainingError, match=r"at least 12 cancer types.*--min-cancers"):
        check_guarantee(kinds, 32, pairings=[wsi_gene], min_pairs=0, min_cancers=12)
    assert check_guarantee(kinds, 1, pairings=[], min_pairs=9, min_cancers=0).cancers == 0
