"""The clock of the simulation: things that happen, in the order of their times."""

import heapq
from collections.abc import Callable


class Clock:
    """Runs what was asked for, earliest first; of equal times the one that was asked for first."""

    __slots__ = ("_heap", "_number", "now_s")

    def __init__(self) -> None:
        """Start at 0 seconds."""
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Callable[[int], None], int]] = []
        self._number = 0

    def at(self, time_s: float, act: Callable[[int], None], argument: int) -> None:
        """Call `act(argument)` at a time, which must not lie in the past."""
        self._number += 1
        heapq.heappush(self._heap, (time_s, self._number, act, argument))

    def step(self) -> bool:
        """Do the next thing; False when there is none."""
        if not self._heap:
            return False
        self.now_s, _, act, argument = heapq.heappop(self._heap)
        act(argument)
        return True

    @property
    def events(self) -> int:
        """How many things were asked for so far."""
        return self._number


class Link:
    """Something that carries bytes one after the other at a fixed rate; 0 is no limit."""

    __slots__ = ("_free_s", "_per_byte_s", "carried_bytes")

    def __init__(self, bytes_per_s: float) -> None:
        """Idle at first."""
        self._per_byte_s = 1 / bytes_per_s if bytes_per_s else 0.0
        self._free_s = 0.0
        self.carried_bytes = 0.0

    def carry(self, num_bytes: float, now_s: float) -> float:
        """Take bytes on; when they will be through."""
        self.carried_bytes += num_bytes
        self._free_s = max(self._free_s, now_s) + num_bytes * self._per_byte_s
        return self._free_s
