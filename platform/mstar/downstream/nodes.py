"""What a sweep leaves behind on the nodes of its cluster: no packed bags in shared memory.

Shared memory is memory of the machine and outlives every process, so nobody else would give it
back. Bags that a process still holds, those of another job for instance, stay.
"""

import logging
import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mstar.downstream.bag_files import drop_unused, has_files, shared_root

log = logging.getLogger("mstar.sweep")

ANSWER_WITHIN_S = 60.0  # of a node that is busy, or just going away
LET_GO_WITHIN_S = 3.0  # of workers that are ending


def drop_shared_bags() -> int:
    """Have every node drop the packed bags that no process holds; returns the bytes freed.

    A node that does not answer is gone, with its memory; a cluster that is gone hides no other
    error of the job that ends.
    """
    try:
        return sum(_answer(job) for job in _ask_nodes())
    except (ray.exceptions.RayError, ConnectionError):
        log.warning("packed bags may be left in the nodes' shared memory: Ray does not answer")
        return 0


def _ask_nodes() -> "list[ray.ObjectRef[int]]":
    task = ray.remote(num_cpus=0, max_retries=0)(_drop_here)
    jobs = [
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in ray.nodes()
        if node["Alive"]
    ]
    answered, _ = ray.wait(jobs, num_returns=len(jobs), timeout=ANSWER_WITHIN_S)
    return list(answered)


def _answer(job: "ray.ObjectRef[int]") -> int:
    try:
        return int(ray.get(job))
    except ray.exceptions.RayError:  # its node went away in between
        return 0


def _drop_here() -> int:
    """On a node: workers of the sweep may need a moment to end and let go of theirs."""
    root = shared_root()
    deadline_s = time.monotonic() + LET_GO_WITHIN_S
    freed = drop_unused(root)
    while has_files(root) and time.monotonic() < deadline_s:
        time.sleep(0.2)
        freed += drop_unused(root)
    return freed
