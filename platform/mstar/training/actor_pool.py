"""Rows of a plan through long-lived actors on Ray Data, and their answers as they come.

Only rows of a plan (names, sizes, addresses) and answers (counts) travel; pixels, features and
targets never do. An actor that dies is started again by Ray and its row retried; what it had
finished is found done.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from mstar.errors import WorkerError


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolShape:
    """How many worker actors, and what each reserves."""

    workers: int
    num_cpus: float
    num_gpus: float = 0.0


def run_pool(
    plan: str | pa.Table,
    actor: type[Any],
    arguments: tuple[Any, ...],
    shape: PoolShape,
    *,
    calls_at_once: int = 1,
) -> Iterator[dict[str, Any]]:
    """Answers to a plan's rows, as they finish.

    Args:
        plan: a Parquet file that every node can read, or a table.
        actor: a class; called with a table of one row it returns a table of answers.
        arguments: of its constructor.
        shape: of the pool.
        calls_at_once: calls that share an actor; of one, the next row waits at it already.

    Raises:
        WorkerError: the workers could not go on.
    """
    _configure()
    rows = ray.data.read_parquet(plan) if isinstance(plan, str) else ray.data.from_arrow(plan)
    answers = rows.repartition(target_num_rows_per_block=1).map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=shape.workers,
            max_tasks_in_flight_per_actor=max(2, calls_at_once),
            max_concurrent_calls_per_actor=calls_at_once,
            enable_true_multi_threading=calls_at_once > 1,
        ),
        num_cpus=shape.num_cpus,
        num_gpus=shape.num_gpus,
    )
    try:
        for block in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from block.to_pylist()
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
