"""The Ray Data pipeline: bundles from a Parquet plan → worker actors → tallies.

Only bundles (names and sizes of slides) and tallies travel; pixels and features never do. A worker
that dies is started again by Ray and its bundle retried; slides it had finished are found done.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from mstar.embed.plan import Bundle, read_bundle
from mstar.embed.results import Tally, tally_from
from mstar.errors import WorkerError

CALLS_PER_ACTOR = 2  # the next bundle's first slide is staged and read while this one is encoded


@runtime_checkable
class Worker(Protocol):
    """What an actor does with a bundle."""

    def run(self, bundle: Bundle) -> Tally:
        """Do the bundle's slides; raise only for what is no slide's fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolShape:
    """How many worker actors, and what each reserves."""

    workers: int
    num_cpus: float
    num_gpus: float = 0.0


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
    _configure()
    bundles = ray.data.read_parquet(plan_uri).repartition(target_num_rows_per_block=1)
    tallies = bundles.map_batches(
        BundleActor,
        fn_constructor_args=(make_worker,),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=shape.workers,
            max_tasks_in_flight_per_actor=CALLS_PER_ACTOR,
            max_concurrent_calls_per_actor=CALLS_PER_ACTOR,
            enable_true_multi_threading=True,
        ),
        num_cpus=shape.num_cpus,
        num_gpus=shape.num_gpus,
    )
    try:
        for block in tallies.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in block.to_pylist():
                yield tally_from(row)
    except RayError as error:
        raise WorkerError(
            f"the workers could not go on; what is written stays, and a rerun goes on from there. "
            f"What they said last:\n{_last_lines(error)}"
        ) from error


def _last_lines(error: RayError, count: int = 12) -> str:
    return "\n".join(str(error).rstrip().splitlines()[-count:])


def _configure() -> None:
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the job's own progress says it all
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A giant slide on a CPU can take longer than the default half hour without a finished bundle.
    context.execution_no_progress_timeout_s = -1
