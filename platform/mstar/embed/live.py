"""How far workers are inside their bundles, for a progress that does not wait for whole ones.

A bundle is minutes of work on a CPU, and its tally comes at its end. So every worker also tells a
small actor, the board, how far it is, and a thread of the driver asks the board. Nothing rests on
it: when the board is lost, progress goes on by whole bundles.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from mstar.embed.results import Tally, tally_from

TELL_EVERY_S = 2.0  # a worker, of one bundle
ASK_EVERY_S = 5.0
_ANSWER_WITHIN_S = 30.0

Live = Callable[[Tally], None]


class Board:
    """The last word on every bundle of a round; a bundle that is done again replaces its own."""

    def __init__(self) -> None:
        self._told: dict[str, dict[str, float]] = {}

    def tell(self, bundle: str, row: dict[str, float]) -> None:
        """How far a bundle is."""
        self._told[bundle] = row

    def total(self) -> dict[str, float]:
        """Of all bundles that were told of, finished ones included."""
        total = Tally()
        for row in self._told.values():
            total.add(tally_from(row))
        return total.to_row()


class Teller:
    """Tells the board of one bundle, not too often; from any thread of a worker."""

    def __init__(self, board: Any, bundle: str) -> None:
        """Speak of `bundle` to the actor `board`."""
        self._board, self._bundle = board, bundle
        self._told_s = time.monotonic()

    def __call__(self, tally: Tally) -> None:
        """The tally so far."""
        now_s = time.monotonic()
        if now_s - self._told_s >= TELL_EVERY_S:
            self._told_s = now_s
            self.last(tally)

    def last(self, tally: Tally) -> None:
        """The whole tally; nobody waits for an answer."""
        self._board.tell.remote(self._bundle, tally.to_row())


@contextmanager
def board_for(live: Live | None) -> Iterator[Any]:
    """A board, None when nobody looks at it; `live` is called from a thread every few seconds."""
    if live is None:
        yield None
        return
    board = ray.remote(Board).options(num_cpus=0, max_restarts=-1).remote()
    over = threading.Event()
    asking = threading.Thread(target=_ask, args=(board, live, over), daemon=True)
    asking.start()
    try:
        yield board
    finally:
        over.set()
        with contextlib.suppress(RayError):
            ray.kill(board)
        asking.join(ASK_EVERY_S)


def _ask(board: Any, live: Live, over: threading.Event) -> None:
    while not over.wait(ASK_EVERY_S):
        try:
            row = ray.get(board.total.remote(), timeout=_ANSWER_WITHIN_S)
        except RayError:  # not yet up, lost, or slow: whole bundles are still counted
            row = Tally().to_row()
        if not over.is_set():
            live(tally_from(row))
