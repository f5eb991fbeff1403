"""Ray itself: which cluster a job runs on, and what that cluster has to give."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from mstar.training.agreement import check_nodes, worker_environment
from mstar.training.code_version import this_code

# Several jobs may share a laptop; a store of this size is plenty, since pixels never enter it.
LOCAL_OBJECT_STORE_BYTES = 300_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterShape:
    """What the cluster offers now."""

    num_nodes: int
    num_cpus: float
    num_gpus: float
    smallest_node_cpus: float


@contextmanager
def ray_session(address: str | None = None) -> Iterator[ClusterShape]:
    """Join a cluster, or start a local one and end it.

    An address, or RAY_ADDRESS (which `ray job submit` sets), joins; a Ray that runs in this process
    already is used as it is; else a local one is started. Only what was started here is ended.
    A cluster that is joined must run this process's code (`agreement`).
    """
    started = not ray.is_initialized()
    try:
        if started:
            _start(address)
        yield cluster_shape()
    finally:
        if started:
            ray.shutdown()


def _start(address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address or os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, runtime_env=worker_environment(), **quiet)
        print(f"code: {this_code()}, on {check_nodes()} nodes", file=sys.stderr, flush=True)
        return
    ray.init(
        address="local",
        include_dashboard=False,
        **quiet,
        object_store_memory=LOCAL_OBJECT_STORE_BYTES,
    )


def cluster_shape() -> ClusterShape:
    """Nodes, CPUs and GPUs that are alive."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [node.get("CPU", 0.0) for node in nodes]
    workers = [count for count in cpus if count > 0]
    return ClusterShape(
        num_nodes=len(workers),
        num_cpus=sum(cpus),
        num_gpus=sum(node.get("GPU", 0.0) for node in nodes),
        smallest_node_cpus=min(workers, default=0.0),
    )
