"""Assignment: shares within a case, one part each, and nothing but ids and the seed matters."""

from collections import Counter

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.data.splits.stratify import (
    apportion,
    assign,
    extend,
    hash_order,
    survival_strata,
)
from mstar.errors import ConfigError

RATIO = {"train": 0.7, "val": 0.1, "test": 0.2}
SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=25)
RATIOS = st.one_of(
    st.just([0.7, 0.1, 0.2]),
    st.just([0.9, 0.1]),
    st.lists(st.integers(1, 20).map(float), min_size=2, max_size=6),
)


def strata_of(sizes: list[int]) -> dict[str, tuple[str, ...]]:
    return {
        f"{stratum}-{n}": (f"s{stratum:02d}",)
        for stratum, size in enumerate(sizes)
        for n in range(size)
    }


@settings(max_examples=150, deadline=None)
@given(SIZES, RATIOS)
def test_every_share_is_within_one_case(sizes: list[int], ratio: list[float]) -> None:
    counts = apportion(sizes, ratio)
    shares = [share / sum(ratio) for share in ratio]
    for size, row in zip(sizes, counts, strict=True):
        assert sum(row) == size
        assert all(abs(n - size * share) < 1 + 1e-9 for n, share in zip(row, shares, strict=True))
    for part, share in enumerate(shares):
        assert abs(sum(row[part] for row in counts) - sum(sizes) * share) < 1 + 1e-9


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(2, 10))
def test_folds_differ_by_one_case_at_most(sizes: list[int], folds: int) -> None:
    totals = [sum(column) for column in zip(*apportion(sizes, [1.0] * folds), strict=True)]
    assert max(totals) - min(totals) <= 1


def test_whole_quotas_are_met_exactly() -> None:
    assert apportion([10, 30], [0.7, 0.1, 0.2]) == [[7.0, 1.0, 2.0], [21, 3, 6]]
    assert apportion([10], [7.0, 1.0, 2.0]) == [[7.0, 1.0, 2.0]]


@settings(max_examples=60, deadline=None)
@given(SIZES, st.randoms(use_true_random=False))
def test_rows_may_come_in_any_order(sizes: list[int], shuffle: object) -> None:
    strata = strata_of(sizes)
    items = list(strata.items())
    shuffle.shuffle(items)  # type: ignore[attr-defined]
    first = assign(strata, RATIO, seed=3, purpose="x")
    assert assign(dict(items), RATIO, seed=3, purpose="x") == first
    assert first.keys() == strata.keys()


@settings(max_examples=80, deadline=None)
@given(SIZES, st.integers(0, 24))
def test_a_new_case_moves_only_cases_at_the_cuts(sizes: list[int], place: int) -> None:
    strata = strata_of(sizes)
    before = assign(strata, RATIO, seed=0, purpose="x")
    stratum = f"s{place % len(sizes):02d}"
    after = assign({**strata, "new": (stratum,)}, RATIO, seed=0, purpose="x")
    moved = sum(after[case] != part for case, part in before.items())
    assert moved <= 2 * len(sizes) + 3  # two cuts a stratum, however many cases it has


def test_large_strata_hardly_move() -> None:
    strata = strata_of([5000])
    before = assign(strata, RATIO, seed=0, purpose="x")
    after = assign({**strata, "new": ("s00",)}, RATIO, seed=0, purpose="x")
    assert sum(after[case] != part for case, part in before.items()) <= 3


def test_seed_and_purpose_give_other_orders() -> None:
    ids = [str(n) for n in range(50)]
    orders = {tuple(hash_order(ids, seed, purpose)) for seed in (0, 1) for purpose in "ab"}
    assert len(orders) == 4
    assert hash_order(reversed(ids), 0, "a") == hash_order(ids, 0, "a")


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES)
def test_extending_moves_nobody_and_keeps_the_shares(old: list[int], new: list[int]) -> None:
    before = assign(strata_of(old), RATIO, seed=0, purpose="x")
    sizes = [max(pair) for pair in zip(old, new, strict=False)] + old[len(new) :] + new[len(old) :]
    strata = strata_of(sizes)
    after = extend(before, strata, RATIO, seed=0, purpose="x")
    assert after.items() >= before.items()
    assert after.keys() == strata.keys()
    for stratum, size in enumerate(sizes):
        counts = Counter(p for case, p in after.items() if case.startswith(f"{stratum}-"))
        assert all(abs(counts[part] - size * share) < 2 for part, share in RATIO.items())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12).map(float), st.integers(0, 1)), max_size=60),
    st.integers(1, 6),
)
def test_time_bins_are_quantiles(rows: list[tuple[float, int]], bins: int) -> None:
    survival = {f"c{n}": row for n, row in enumerate(rows)}
    strata = survival_strata(survival, bins=bins, seed=0, within="BRCA")
    assert strata.keys() == survival.keys()
    table = pd.DataFrame(
        [(*strata[case], months) for case, (months, _) in survival.items()],
        columns=["group", "event", "bin", "months"],
    )
    for _, alike in table.groupby("event"):
        by_bin = alike.groupby("bin")["months"]
        assert by_bin.size().max() - len(alike) / bins < 1
        borders = by_bin.agg(["min", "max"]).sort_index()
        assert (borders["max"].to_numpy()[:-1] <= borders["min"].to_numpy()[1:]).all()
    events = {case: ("event 1" in stratum) for case, stratum in strata.items()}
    assert events == {case: event == 1 for case, (_, event) in survival.items()}


@pytest.mark.parametrize("ratio", [(0.0, 0.0), (-1.0, 2.0), (float("nan"), 1.0)])
def test_a_ratio_that_makes_no_sense_is_refused(ratio: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"0\.7 0\.1 0\.2"):
        apportion([3], ratio)
