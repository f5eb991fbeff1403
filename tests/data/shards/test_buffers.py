"""Memory that is given out and taken back."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from mstar.data.shards.buffers import Buffers


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_buffers_come_back_when_the_last_view_is_gone() -> None:
    buffers = Buffers()
    first = buffers.take((4, 8, 8, 3))
    where = address(first)
    view = torch.from_numpy(first[1:])[1:]
    del first
    gc.collect()
    second = buffers.take((4, 8, 8, 3))
    assert address(second) != where  # a tensor still looks at the first
    del view
    third = buffers.take((4, 8, 8, 3))
    assert address(third) == where
    third[:] = 1
    assert third.flags.writeable


@pytest.mark.parametrize("size", [0, 1, 4095, 4097, 60_000, 3_735_200, 25_165_824])
def test_a_buffer_is_of_the_size_asked_for_and_serves_sizes_near_it(size: int) -> None:
    buffers = Buffers()
    taken = buffers.take((size,))
    assert taken.shape == (size,)
    where = address(taken)
    held = sum(len(memory) for free in buffers._free.values() for memory in free)
    assert held == 0
    del taken
    held = sum(len(memory) for free in buffers._free.values() for memory in free)
    assert size <= held <= max(4096, size * 9 / 8 + 4096)
    assert address(buffers.take((max(0, held - 1),))) == where


def test_threads_are_never_given_the_same_memory() -> None:
    buffers = Buffers()

    def use(number: int) -> bool:
        mine = buffers.take((5000,))
        mine[:] = number % 251
        gc.collect(0)
        return bool((mine == number % 251).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(2000)))
