"""The simulation: nothing is lost or done twice, equal seeds agree, and so does the plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.errors import ConfigError
from mstar.planning.cluster import Cluster
from mstar.planning.curve import bend, curve_table, scaled, scaling_curve
from mstar.planning.events import Clock, Link
from mstar.planning.machines import Machines, Slides, draw_slides, machines_of
from mstar.planning.plan import stage_plan
from mstar.planning.rates import built_in
from mstar.planning.report import TOLERANCE
from mstar.planning.settings import PlanSettings
from mstar.planning.simulate import Simulation, simulate
from mstar.planning.stages import Job
from mstar.planning.workload import PAPER, counted

MACHINES = Machines(
    num_workers=4,
    workers_per_node=2,
    encode_patches_per_s=1_000.0,
    read_patches_per_s=1_500.0,
    open_s=0.5,
    node_bytes_per_s=1e9,
    storage_bytes_per_s=0.0,
    storage_reads_per_s=0.0,
    worker_start_s=5.0,
    chunk_patches=2_048,
    block_patches=256,
)


def some_slides(count: int, *, seed: int = 0, mean: int = 3_000) -> Slides:
    rng = np.random.default_rng(seed)
    patches = np.maximum(1, rng.lognormal(np.log(mean), 0.8, count)).astype(np.int64)
    return Slides(
        patches=patches,
        num_bytes=patches * 1e5,
        requests=np.full(count, 10.0),
        fetch_s=patches * 2e-4,
        asking_s=np.full(count, 0.1),
    )


def make_job(num_gpus: int, num_slides: int = 1_500, **fields: object) -> Job:
    work = counted(num_slides=num_slides, patches_per_slide=9_892, num_cases=0, slide_mb=None)
    known = built_in("h200")
    given = {k: v for k, v in fields.items() if hasattr(known, k)}
    rates = replace(known, **given)  # type: ignore[arg-type]
    cluster = {k: v for k, v in fields.items() if not hasattr(rates, k)}
    job = Job(
        work=work,
        cluster=Cluster(num_gpus=8, **cluster),  # type: ignore[arg-type]
        rates=rates,
        settings=PlanSettings(),
    )
    return scaled(job, num_gpus)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1_000),
    count=st.integers(1, 60),
    workers=st.integers(1, 9),
    queue=st.integers(1, 4),
    losses=st.sampled_from([0.0, 20.0, 60.0]),
)
def test_work_is_conserved(seed: int, count: int, workers: int, queue: int, losses: float) -> None:
    """Whatever is lost on the way, each patch counts once; what was done twice is told."""
    slides = some_slides(count, seed=seed)
    machines = replace(
        MACHINES,
        num_workers=workers,
        queue_blocks=queue,
        spot_share=1.0,
        losses_per_node_hour=losses,
        node_start_s=20.0,
    )
    run = Simulation(slides, machines, seed=seed).run()
    total = int(slides.patches.sum())
    assert run.done_slides == count
    assert run.done_patches == total
    assert run.encoded_patches == total + run.lost_patches
    assert 0 < run.gpu_busy_share <= 1
    assert run.fetched_bytes >= slides.num_bytes.sum() * (1 - 1e-9)
    assert (run.losses > 0) or run.lost_patches == 0
    # No resource gives more than it has.
    assert run.wall_s >= total / (workers * machines.encode_patches_per_s)
    assert run.wall_s >= slides.patches.max() / machines.encode_patches_per_s
    assert run.wall_s >= slides.num_bytes.sum() / (-(-workers // 2) * machines.node_bytes_per_s)


def test_losses_happen_and_are_survived() -> None:
    machines = replace(MACHINES, spot_share=1.0, losses_per_node_hour=60.0, node_start_s=20.0)
    run = Simulation(some_slides(200), machines, seed=3).run()
    calm = Simulation(some_slides(200), MACHINES, seed=3).run()
    assert run.losses > 3
    assert run.lost_patches > 0
    assert run.wall_s > calm.wall_s
    assert run.fetched_bytes > calm.fetched_bytes
    assert calm.lost_patches == calm.losses == 0


def test_equal_seeds_give_equal_runs_and_others_do_not() -> None:
    job = make_job(16, 300, spot_share=1.0, spot_losses_per_node_hour=2.0)
    assert simulate(job, seed=5) == simulate(job, seed=5)
    assert simulate(job, seed=5).wall_s != simulate(job, seed=6).wall_s


def test_one_slide_takes_what_it_takes() -> None:
    """By hand: start, fetch, open; then the slower of decoding and encoding, and one block."""
    slides = Slides(
        patches=np.array([1_024]),
        num_bytes=np.array([1.0]),
        requests=np.array([1.0]),
        fetch_s=np.array([2.0]),
        asking_s=np.array([0.25]),
    )
    machines = replace(MACHINES, num_workers=1, workers_per_node=1)
    run = Simulation(slides, machines).run()
    decode_s, encode_s = 256 / 1_500, 256 / 1_000
    assert run.wall_s == pytest.approx(5.0 + 2.0 + 0.25 + 0.5 + decode_s + 4 * encode_s)
    slow = replace(machines, read_patches_per_s=500.0)
    decode_s = 256 / 500
    assert Simulation(slides, slow).run().wall_s == pytest.approx(
        5.0 + 2.75 + 4 * decode_s + encode_s
    )


def test_a_bounded_queue_holds_decoding_back() -> None:
    """All bytes come at once, the GPU is slow: never more blocks wait than the queue holds."""
    simulation = Simulation(some_slides(30), replace(MACHINES, encode_patches_per_s=100.0))
    most, clock = 0, simulation._clock
    for node in range(2):
        clock.at(MACHINES.worker_start_s, simulation._node_up, node)
    while simulation.result.done_slides < 30:
        assert clock.step()
        most = max(most, *(len(worker.queue) for worker in simulation._workers))
        held = max(len(worker.in_hand()) for worker in simulation._workers)
        assert held <= MACHINES.slides_at_once + MACHINES.queue_blocks + 1
    assert most == MACHINES.queue_blocks


def test_what_is_asked_for_first_happens_first() -> None:
    clock, seen = Clock(), list[int]()
    for time_s, name in ((2.0, 1), (1.0, 2), (1.0, 3), (2.0, 4)):
        clock.at(time_s, seen.append, name)
    while clock.step():
        pass
    assert seen == [2, 3, 1, 4]
    link = Link(10.0)
    assert [link.carry(20.0, 0.0), link.carry(10.0, 1.0), link.carry(10.0, 9.0)] == [2.0, 3.0, 10.0]


@pytest.mark.parametrize("num_gpus", [1, 8, 64])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"storage_latency_s": 0.005, "slide_open_core_s": 0.1},  # the GPU is the bottleneck
        {"cpu_cores_per_node": 30},  # the cores are
        {"node_network_bytes_per_s": 1.5e9},  # the network is
        {"storage_bytes_per_s": 2e9},
        {"spot_share": 1.0, "spot_losses_per_node_hour": 2.0},
    ],
    ids=["as built in", "gpu", "cores", "network", "storage", "spot"],
)
def test_the_plan_agrees_with_the_simulation(num_gpus: int, fields: dict[str, float]) -> None:
    """Within the tolerance that `mstar plan --simulate` states."""
    job = make_job(num_gpus, 600 if num_gpus < 64 else 2_400, **fields)
    planned_s = 3600 * stage_plan(job, "embed").wall_hours
    assert simulate(job).wall_s == pytest.approx(planned_s, rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("num_gpus", [1, 8, 64, 512])
@pytest.mark.parametrize("latency_s", [0.001, 0.03, 0.1])
@pytest.mark.parametrize("cluster", [Cluster(), Cluster(storage_reads_per_s=0.0, spot_share=1.0)])
def test_the_paper_s_run_agrees_with_the_simulation(
    num_gpus: int, latency_s: float, cluster: Cluster
) -> None:
    rates = replace(built_in("h200"), storage_latency_s=latency_s)
    job = Job(work=PAPER, cluster=cluster, rates=rates, settings=PlanSettings())
    job = scaled(job, num_gpus)
    planned_s = 3600 * stage_plan(job, "embed").wall_hours
    # At 512 GPUs the run takes minutes, and where the largest slides fall changes it by a third.
    drawn_s = [simulate(job, seed=seed).wall_s for seed in range(6 if num_gpus == 512 else 2)]
    assert np.mean(drawn_s) == pytest.approx(planned_s, rel=TOLERANCE)


def test_slides_drawn_are_the_workload_s() -> None:
    job = make_job(8, 500)
    slides = draw_slides(job)
    assert len(slides.patches) == 500
    assert slides.patches.sum() == pytest.approx(job.work.num_patches, rel=1e-3)
    assert slides.num_bytes.sum() == pytest.approx(job.work.slide_bytes, rel=1e-3)
    assert slides.patches.max() > 4 * slides.patches.mean()  # stragglers are among them


def test_the_curve_bends_where_it_no_longer_pays() -> None:
    points = scaling_curve(make_job(8, 300), counts=(1, 4, 16, 64, 256))
    walls = [point.run.wall_s for point in points]
    assert walls[0] > walls[1] > walls[2]
    assert 4 <= bend(points) <= 64  # 300 slides cannot keep 256 GPUs busy
    assert curve_table(points).count("\n") == 2 + len(points)
    assert bend(points[:2]) == 0


def test_without_gpus_there_is_nothing_to_simulate() -> None:
    cluster = Cluster(gpu="cpu", gpus_per_node=1)
    job = Job(work=PAPER, cluster=cluster, rates=built_in("cpu"), settings=PlanSettings())
    with pytest.raises(ConfigError, match="gpu"):
        machines_of(job)
    with pytest.raises(ConfigError, match="queue_blocks"):
        replace(MACHINES, queue_blocks=0)
