"""The Ray Data pipeline: bundles from a Parquet plan → worker actors → tallies."""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import pyarrow as pa

from mstar.embed.plan import Bundle, read_bundle
from mstar.embed.results import Tally, tally_from
from mstar.training.actor_pool import PoolShape, run_pool

__all__ = ["BundleActor", "PoolShape", "Worker", "run_bundles"]

CALLS_PER_ACTOR = 2  # the next bundle's first slide is staged and read while this one is encoded


@runtime_checkable
class Worker(Protocol):
    """What an actor does with a bundle."""

    def run(self, bundle: Bundle) -> Tally:
        """Do the bundle's slides; raise only for what is no slide's fault."""


class BundleActor:
    """One worker in one actor."""

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        """Build the worker where it will run."""
        self._worker = make_worker()

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Do the bundles of a block; one tally a bundle."""
        tallies = [self._worker.run(read_bundle(row)).to_row() for row in rows.to_pylist()]
        return pa.Table.from_pylist(tallies)


def run_bundles(
    plan_uri: str, make_worker: Callable[[], Worker], shape: PoolShape
) -> Iterator[Tally]:
    """Tallies of a plan's bundles, as they finish."""
    answers = run_pool(plan_uri, BundleActor, (make_worker,), shape, calls_at_once=CALLS_PER_ACTOR)
    for row in answers:
        yield tally_from(row)
