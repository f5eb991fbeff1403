"""The two passes of the shuffle on Ray Data: work items travel, pixels and rows do not."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial

import pyarrow as pa

from mstar.pretrain.shards_config import ShardsConfig
from mstar.pretrain.shards_pieces import ShardsPlan
from mstar.pretrain.shards_plan import Unit, unit_of, units_table
from mstar.pretrain.shards_worker import BucketTask, ShardsWorker, UnitTally
from mstar.training.actor_pool import PoolShape, run_pool
from mstar.training.cluster import ClusterShape, ray_session
from mstar.training.code_version import refuse_other_code
from mstar.training.interrupts import stop_on_sigterm

UnitPass = Callable[[ShardsPlan, Sequence[Unit]], Iterator[UnitTally]]
BucketPass = Callable[[ShardsPlan, Sequence[BucketTask]], Iterator[int]]


class UnitActor:
    """One worker of pass 1 in one actor."""

    def __init__(self, plan: ShardsPlan) -> None:
        """Build the worker where it will run."""
        refuse_other_code()
        self._worker = ShardsWorker(plan)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Do the units of a block; one tally a unit."""
        tallies = [self._worker.run_unit(unit_of(row)) for row in rows.to_pylist()]
        return pa.Table.from_pylist([asdict(tally) for tally in tallies])


class BucketActor:
    """One worker of pass 2 in one actor."""

    def __init__(self, plan: ShardsPlan) -> None:
        """Build the worker where it will run."""
        refuse_other_code()
        self._worker = ShardsWorker(plan)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Do the buckets of a block; the rows of each."""
        done = [self._worker.run_bucket(BucketTask(**row)) for row in rows.to_pylist()]
        return pa.table({"rows": pa.array(done, pa.int64())})


@contextmanager
def ray_passes(config: ShardsConfig) -> Iterator[tuple[UnitPass, BucketPass]]:
    """Both passes on the cluster of a config, which is joined or started for them."""
    with ray_session(config.run.address) as cluster:
        stop_on_sigterm()  # ray.init has taken the signal for itself
        shape = pool_shape(config, cluster)
        yield partial(_units, shape), partial(_buckets, shape)


def pool_shape(config: ShardsConfig, cluster: ClusterShape) -> PoolShape:
    """One worker a CPU; one CPU a node is left to Ray's own tasks, which starve otherwise."""
    free = max(1, int(cluster.num_cpus) - cluster.num_nodes)
    workers = config.run.workers or free
    return PoolShape(workers=workers, num_cpus=min(1.0, free / workers))


def _units(shape: PoolShape, plan: ShardsPlan, units: Sequence[Unit]) -> Iterator[UnitTally]:
    if units:
        for row in run_pool(units_table(units), UnitActor, (plan,), shape):
            yield UnitTally(**row)


def _buckets(shape: PoolShape, plan: ShardsPlan, tasks: Sequence[BucketTask]) -> Iterator[int]:
    if tasks:
        table = pa.Table.from_pylist([asdict(task) for task in tasks])
        for row in run_pool(table, BucketActor, (plan,), shape):
            yield int(row["rows"])
