"""Memory that is used again: the system takes longer to make a page than we take to fill it."""

import weakref
from collections import defaultdict, deque

import numpy as np
from jaxtyping import UInt8

_PAGE_BYTES = 4096
_STEPS_BITS = 4  # sizes are rounded up by an eighth at most, so that row groups fit one another


class Buffers:
    """Arrays of bytes, given out and taken back when the last view is gone; threads may share it.

    As much is held as was ever in use at once. A fresh array of 50 MB costs as many page faults as
    a quarter of the decoding of its patches, and more on a virtual machine.
    """

    def __init__(self) -> None:
        """Nothing is allocated yet."""
        self._free: dict[int, deque[np.ndarray]] = defaultdict(deque)

    def take(self, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
        """An array with anything in it."""
        size = int(np.prod(shape))
        memory = self._memory(_rounded(size))
        # numpy would name `memory` itself as the base of views, and nobody could tell when the
        # last is gone; a memoryview between ends that chain at `given`
        given = np.frombuffer(memory.data, np.uint8, count=size).reshape(shape)
        owner = given.base
        assert isinstance(owner, np.ndarray)
        assert isinstance(owner.base, memoryview)
        weakref.finalize(owner, self._free[len(memory)].append, memory).atexit = False
        return given

    def _memory(self, size: int) -> np.ndarray:
        try:
            return self._free[size].pop()
        except IndexError:
            return np.empty(size, np.uint8)


def _rounded(size: int) -> int:
    step = max(_PAGE_BYTES, 1 << max(0, size.bit_length() - _STEPS_BITS))
    return max(1, -(-size // step)) * step
