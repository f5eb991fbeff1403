"""The packed stream: every bag once an epoch, in an order that (seed, fold, epoch) decide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.downstream import stream
from mstar.downstream.config import TrialConfig
from mstar.downstream.stream import (
    BagSource,
    StreamKind,
    evaluation_batches,
    training_batches,
)
from support.planted_tasks import planted_task


def kind(**fields: object) -> StreamKind:
    return StreamKind.of(TrialConfig(**fields))  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=40),
    batch_bags=st.integers(0, 9),
    bucketed=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_every_bag_comes_once(
    sizes: list[int], batch_bags: int, bucketed: bool, epoch: int
) -> None:
    of = kind(batch_bags=batch_bags, bucketed=bucketed)
    plan = training_batches(np.asarray(sizes), of, seed=1, fold="0", epoch=epoch)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(sizes)))
    if batch_bags:
        assert max(map(len, plan)) <= batch_bags
    else:
        assert len(plan) == 1


def test_the_order_is_named_by_seed_fold_and_epoch() -> None:
    sizes = np.full(50, 10)

    def order(seed: int, fold: str, epoch: int) -> list[int]:
        plan = training_batches(sizes, kind(), seed=seed, fold=fold, epoch=epoch)
        return np.concatenate(plan).tolist()

    assert order(1, "0", 0) == order(1, "0", 0)
    orders = [order(1, "0", 0), order(2, "0", 0), order(1, "1", 0), order(1, "0", 1)]
    assert len(set(map(tuple, orders))) == 4


def test_buckets_make_steps_of_even_size() -> None:
    sizes = np.random.default_rng(0).integers(1, 1000, 256)

    def spread(bucketed: bool) -> float:
        of = kind(batch_bags=8, bucketed=bucketed)
        plan = training_batches(sizes, of, seed=1, fold="0", epoch=0)
        return float(np.mean([np.ptp(sizes[batch]) for batch in plan]))

    assert spread(True) < 0.3 * spread(False)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9000), min_size=1, max_size=30))
def test_evaluation_goes_in_order_within_its_rows(sizes: list[int]) -> None:
    plan = evaluation_batches(np.asarray(sizes))
    assert np.concatenate(plan).tolist() == list(range(len(sizes)))
    for batch in plan:
        assert len(batch) == 1 or sum(sizes[at] for at in batch) <= stream.EVALUATION_ROWS


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[BagSource, list[np.ndarray]]:
    _, bags, _ = planted_task(tmp_path_factory.mktemp("stream"), cases=10)
    return BagSource(bags), [np.array(bags.bag(at), np.float32) for at in range(10)]


def test_batches_are_the_bags_as_float32(source) -> None:
    bags, rows = source
    places = np.asarray([7, 2, 5, 3])
    plan = [np.asarray([1, 3]), np.asarray([0])]
    expected = [[rows[2], rows[3]], [rows[7]]]
    for batch, want in zip(bags.batches(places, plan), expected, strict=True):
        np.testing.assert_array_equal(batch.x.numpy(), np.concatenate(want))
        assert batch.offsets.diff().tolist() == [len(part) for part in want]
        assert batch.x.dtype == torch.float32


def test_pooled_batches_are_the_means(source) -> None:
    bags, rows = source
    places = np.asarray([7, 2, 5])
    (batch,) = bags.batches(places, [np.asarray([2, 0])], pooled=True)
    np.testing.assert_allclose(
        batch.x.numpy(), [rows[5].mean(0), rows[7].mean(0)], rtol=1e-5, atol=1e-6
    )
    assert batch.offsets.tolist() == [0, 1, 2]


def test_drawn_patches_are_rows_of_the_bag_and_others_in_another_epoch(source) -> None:
    bags, rows = source
    at = int(np.argmax([len(part) for part in rows]))
    taken = []
    for epoch in (0, 0, 1):
        (batch,) = bags.batches(np.asarray([at]), [np.asarray([0])], max_patches=4, draw=(1, epoch))
        taken.append(batch.x.clone().numpy())
    assert all(len(part) == 4 for part in taken)
    assert all(any((row == own).all() for own in rows[at]) for row in taken[0])
    np.testing.assert_array_equal(taken[0], taken[1])
    assert not np.array_equal(taken[0], taken[2])
