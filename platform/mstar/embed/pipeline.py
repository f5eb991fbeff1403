"""The Ray Data pipeline: bundles from a Parquet plan → worker actors → tallies."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from mstar.embed.live import Live, Teller, board_for
from mstar.embed.plan import Bundle, read_bundle
from mstar.embed.results import Tally, tally_from
from mstar.training.actor_pool import PoolShape, run_pool
from mstar.training.code_version import refuse_other_code

__all__ = ["BundleActor", "PoolShape", "Worker", "run_bundles"]

CALLS_PER_ACTOR = 2  # the next bundle's first slide is staged and read while this one is encoded


def ignore(tally: Tally) -> None:
    """Tells nobody."""


@runtime_checkable
class Worker(Protocol):
    """What an actor does with a bundle."""

    def run(self, bundle: Bundle, so_far: Live = ignore) -> Tally:
        """Do the bundle's slides; raise only for what is no slide's fault.

        so_far: called with the tally as it grows, from any thread.
        """


class BundleActor:
    """One worker in one actor."""

    def __init__(self, make_worker: Callable[[], Worker], board: Any = None) -> None:
        """Build the worker where it will run; it tells the actor `board` how far it is."""
        refuse_other_code()
        self._worker, self._board = make_worker(), board

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Do the bundles of a block; one tally a bundle."""
        tallies = [self._run(read_bundle(row)).to_row() for row in rows.to_pylist()]
        return pa.Table.from_pylist(tallies)

    def _run(self, bundle: Bundle) -> Tally:
        if self._board is None:
            return self._worker.run(bundle)
        teller = Teller(self._board, bundle.slides[0].slide_id)
        tally = self._worker.run(bundle, teller)
        teller.last(tally)
        return tally


def run_bundles(
    plan_uri: str, make_worker: Callable[[], Worker], shape: PoolShape, live: Live | None = None
) -> Iterator[Tally]:
    """Tallies of a plan's bundles, as they finish.

    live: called every few seconds, from a thread, with the sum of what is done so far, that of
        unfinished bundles included.
    """
    with board_for(live) as board:
        arguments = (make_worker, board)
        answers = run_pool(plan_uri, BundleActor, arguments, shape, calls_at_once=CALLS_PER_ACTOR)
        for row in answers:
            yield tally_from(row)
