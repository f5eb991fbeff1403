"""How a rate of this machine is taken: loops against a clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A rate, and how it was measured."""

    name: str
    value: float
    note: str


def core_seconds(do: Callable[[Item], object], items: list[Item], seconds: float) -> float:
    """CPU seconds of this process per item, over some seconds of wall time."""
    do(items[0])
    count, began_s, cpu_s = 0, time.perf_counter(), time.process_time()
    for item in cycle(items):
        do(item)
        count += 1
        if time.perf_counter() - began_s >= seconds:
            break
    return (time.process_time() - cpu_s) / count


def calls_per_s(call: Callable[[], object], seconds: float, *, of_core: bool = False) -> float:
    """Calls a second, after one that warms up and over some seconds; at least one.

    of_core: per CPU-second of this process, which other programs on the machine do not change.
    """
    clock = time.process_time if of_core else time.perf_counter
    call()
    count, until_s, began_s = 0, time.perf_counter() + seconds, clock()
    while time.perf_counter() < until_s or not count:
        call()
        count += 1
    return count / max(clock() - began_s, 1e-9)


def seconds_of(call: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s
