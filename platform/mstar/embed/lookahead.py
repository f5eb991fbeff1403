"""Work ahead of the consumer, in order and by a bounded amount."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def ahead(futures: Iterable["Future[Value]"], depth: int) -> Iterator["Future[Value]"]:
    """Hand on futures in their order, keeping `depth` more of them started."""
    waiting: deque[Future[Value]] = deque()
    for future in futures:
        waiting.append(future)
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting


def mapped(
    pool: Executor, function: Callable[[Item], Value], items: Iterable[Item], depth: int
) -> Iterator[Value]:
    """`function` over `items` in `pool`, results in order, at most `depth` ahead."""
    for future in ahead((pool.submit(function, item) for item in items), depth):
        yield future.result()
