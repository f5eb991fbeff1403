"""Nodes that die, freeze, are taken away or lose the head in the middle of a job.

A cluster of a head and three workers on this machine; every job uses two of the workers. Whatever
happens, the job goes on by itself and leaves what an undisturbed run leaves: the same files to the
last bit; in training, which is compared to a run of one process, the same patches in every step and
losses within 1e-4 (stage 2) and 2e-4 (stage 1), since two ranks add up in another order.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from support.chaos_cluster import ChaosCluster, wait_until
from support.chaos_jobs import ChaosJob, Places, Running, assert_same, results_of

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1500)]

ALL_JOBS = ("embed", "stage1", "targets", "stage2", "sweep")
ALONE = {"stage1": 0, "targets": 0, "stage2": 0}  # workers of the undisturbed run, else 2
CPUS = {"stage1": 1, "stage2": 1}  # of a node, so that each rank has its own; else 2
FROZEN_S = 75.0  # beyond the forty-five seconds after which a silent node counts as dead
HEAD_AWAY_S = 15.0


def in_the_middle(job: ChaosJob, places: Places, cluster: ChaosCluster) -> tuple[Running, Any]:
    """The job with some of its work done, and a node that one of its workers is on."""
    often = {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"}  # Ray's own is as long as the job
    running = Running(job, places, env={"RAY_ADDRESS": cluster.address, **often})
    running.wait_for_the_middle()
    node = wait_until(lambda: cluster.node_of(job.worker), f"a worker of {job.name}")
    assert running.process.poll() is None, running.tail
    return running, node


@pytest.mark.parametrize("job", ALL_JOBS, indirect=True)
def test_a_killed_node(job: ChaosJob, places: Places, undisturbed: Any) -> None:
    """Every process of a node that has a worker of the job gets SIGKILL at once."""
    expected = undisturbed(job.name, ALONE.get(job.name, 2))
    with ChaosCluster(nodes=3, cpus=CPUS.get(job.name, 2)) as cluster:
        running, node = in_the_middle(job, places, cluster)
        cluster.kill(node)
        assert running.end() == 0, running.tail
    assert_same(job, results_of(job, places), expected)


@pytest.mark.parametrize("job", ALL_JOBS, indirect=True)
def test_a_frozen_node_that_wakes_late(
    job: ChaosJob, places: Places, undisturbed: Any, tmp_path: Path
) -> None:
    """SIGSTOP for long after the others have gone on; what wakes then changes nothing."""
    expected = undisturbed(job.name, ALONE.get(job.name, 2))
    with ChaosCluster(nodes=3, cpus=CPUS.get(job.name, 2)) as cluster:
        running, node = in_the_middle(job, places, cluster)
        cluster.signal(node, signal.SIGSTOP)
        try:
            time.sleep(FROZEN_S)
        finally:
            cluster.signal(node, signal.SIGCONT)
        assert running.end() == 0, running.tail
    assert_same(job, results_of(job, places), expected)


@pytest.mark.parametrize("job", ALL_JOBS, indirect=True)
def test_nodes_that_lose_the_head_for_a_while(
    job: ChaosJob, places: Places, undisturbed: Any
) -> None:
    """All worker nodes reach the head through a proxy, which is cut and comes back."""
    expected = undisturbed(job.name, ALONE.get(job.name, 2))
    with ChaosCluster(nodes=3, cpus=CPUS.get(job.name, 2), proxied=True) as cluster:
        running, _ = in_the_middle(job, places, cluster)
        assert cluster.proxy is not None
        met = cluster.proxy.set_fault("cut")
        time.sleep(HEAD_AWAY_S)
        assert cluster.proxy.set_fault("") > met > 0, "nobody tried to reach the head meanwhile"
        assert running.end() == 0, running.tail
    assert_same(job, results_of(job, places), expected)


@pytest.mark.parametrize("job", ["stage1", "stage2"], indirect=True)
def test_a_spot_notice(job: ChaosJob, places: Places, undisturbed: Any) -> None:
    """`ray drain-node`, and the node is gone half a minute later: no restart is used up."""
    expected = undisturbed(job.name, ALONE.get(job.name, 2))
    with ChaosCluster(nodes=3, cpus=CPUS.get(job.name, 2)) as cluster:
        running, node = in_the_middle(job, places, cluster)
        cluster.drain(node, within_s=30)
        wait_until(lambda: "a node is taken away" in running.said, "the notice is heard")
        assert running.end() == 0, running.tail
    assert_same(job, results_of(job, places), expected)
