"""The closed form: bounds, units, doublings, losses, costs; and the other documents' arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.planning.cluster import Cluster, Prices
from mstar.planning.phases import GPU, SENDING, restarted_seconds, timing
from mstar.planning.plan import StagePlan, stage_plan
from mstar.planning.rates import built_in
from mstar.planning.settings import PlanSettings
from mstar.planning.stages import STAGES, Job, num_shards, sending_seconds, shuffle_shape
from mstar.planning.workload import PAPER, Workload, counted
from support.stage2_tables import COLUMNS

SMALL = counted(num_slides=1_000, patches_per_slide=5_000, num_cases=900, slide_mb=None)
CLUSTERS = st.builds(
    Cluster,
    num_gpus=st.sampled_from([1, 2, 8, 64, 512]),
    gpus_per_node=st.sampled_from([1, 4, 8]),
    cpu_cores_per_node=st.integers(4, 200),
    node_network_bytes_per_s=st.floats(1e8, 1e11),
    storage_bytes_per_s=st.sampled_from([0.0, 1e9, 1e11]),
    spot_share=st.floats(0.0, 1.0),
    spot_losses_per_node_hour=st.floats(0.0, 1.0),
)


def make_job(work: Workload = SMALL, cluster: Cluster | None = None, **rates: float) -> Job:
    cluster = cluster or Cluster()
    return Job(
        work=work,
        cluster=cluster,
        rates=replace(built_in(cluster.gpu), **rates),  # type: ignore[arg-type]
        settings=PlanSettings(),
    )


@settings(max_examples=25, deadline=None)
@given(cluster=CLUSTERS, name=st.sampled_from(sorted(STAGES)))
def test_no_plan_is_shorter_than_any_resource_needs(cluster: Cluster, name: str) -> None:
    """Losses only add to it."""
    job = make_job(cluster=cluster)
    for phase in STAGES[name](job):
        found = timing(phase, cluster, job.rates)
        for resource, busy_s in found.busy_s.items():
            assert found.undisturbed_s >= busy_s >= 0, resource
        assert found.wall_s >= found.undisturbed_s - 1e-9
        assert math.isfinite(found.undisturbed_s)


@pytest.mark.parametrize("name", sorted(STAGES))
def test_doubling_gpus_never_lengthens_before_the_bend(name: str) -> None:
    """While GPUs are the bottleneck, twice as many are never slower, and at most twice as fast."""
    hours: list[StagePlan] = []
    for num_gpus in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        cluster = Cluster(num_gpus=num_gpus, gpus_per_node=1, cpu_cores_per_node=24)
        hours.append(stage_plan(make_job(PAPER, cluster), name))
    batch = PlanSettings().stage1_batch_cases if name == "stage1" else 512
    for now, then in pairwise(hours):
        has_work = then.num_gpus <= batch  # each GPU has a case of the batch
        if has_work and now.bottleneck in (GPU, "CPU cores", "waiting for storage"):
            assert then.undisturbed_hours <= now.undisturbed_hours * (1 + 1e-9), now.num_gpus
        assert then.undisturbed_hours >= now.undisturbed_hours / 2 * (1 - 1e-9)


@pytest.mark.parametrize("name", sorted(STAGES))
def test_units_are_consistent(name: str) -> None:
    """All rates of work twice as fast: the work takes half; twice the cohort: twice the bytes."""
    job = make_job(cluster=Cluster(storage_bytes_per_s=1e9))
    fast = {
        part: value * (0.5 if part.endswith("_core_s") or part in SECONDS else 2)
        for part, value in rate_values(job).items()
        if part != "storage_tail"
    }
    cluster = replace(
        job.cluster,
        node_network_bytes_per_s=2 * job.cluster.node_network_bytes_per_s,
        gpu_link_bytes_per_s=2 * job.cluster.gpu_link_bytes_per_s,
        gpu_network_bytes_per_s=2 * job.cluster.gpu_network_bytes_per_s,
        storage_bytes_per_s=2e9,
        storage_reads_per_s=2 * job.cluster.storage_reads_per_s,
        storage_writes_per_s=2 * job.cluster.storage_writes_per_s,
    )
    slow_plan = stage_plan(job, name)
    fast_plan = stage_plan(make_job(SMALL, cluster, **fast), name)
    assert fast_plan.undisturbed_hours == pytest.approx(slow_plan.undisturbed_hours / 2)
    twice = replace(
        SMALL,
        num_slides=2_000,
        num_patches=10_000_000,
        num_cases=1_800,
        slide_bytes=2 * SMALL.slide_bytes,
    )
    assert stage_plan(make_job(twice, job.cluster), name).read_bytes == pytest.approx(
        2 * slow_plan.read_bytes
    )


SECONDS = ("worker_start_s", "trial_overhead_s", "storage_latency_s")


def rate_values(job: Job) -> dict[str, float]:
    return {
        name: getattr(job.rates, name)
        for name in type(job.rates).__dataclass_fields__
        if name != "sources"
    }


@settings(max_examples=20, deadline=None)
@given(price=st.floats(0, 100), share=st.floats(0, 1), name=st.sampled_from(sorted(STAGES)))
def test_cost_is_hours_times_price(price: float, share: float, name: str) -> None:
    prices = Prices(gpu_hour=price, gpu_hour_spot=price / 3, date="2026-01-31")
    plan = stage_plan(make_job(cluster=Cluster(spot_share=share, prices=prices)), name)
    assert plan.cost is not None
    assert plan.cost.on_demand == pytest.approx(plan.undisturbed_hours * plan.num_gpus * price)
    mixed = share * price / 3 + (1 - share) * price
    assert plan.cost.mixed == pytest.approx(plan.gpu_hours * mixed)
    with_requests = replace(prices, million_reads=1e6, million_writes=2e6)
    dearer = stage_plan(make_job(cluster=Cluster(spot_share=share, prices=with_requests)), name)
    assert dearer.cost is not None
    assert dearer.cost.requests == pytest.approx(plan.reads + 2 * plan.writes)
    assert dearer.cost.on_demand == pytest.approx(plan.cost.on_demand + dearer.cost.requests)


def test_without_prices_there_is_no_cost() -> None:
    assert stage_plan(make_job(), "embed").cost is None
    prices = Prices(gpu_hour=3.0, date="2026-01-31")
    cost = stage_plan(make_job(cluster=Cluster(prices=prices)), "embed").cost
    assert cost is not None
    assert cost.mixed is None


@pytest.mark.parametrize("column", COLUMNS, ids=lambda c: f"{c.gpus}-{c.batch}")
def test_stage_2_is_what_its_document_says(column: object) -> None:
    """platform/docs/stage2.md has the same run on paper: the same steps, sending, hours."""
    job = replace(
        make_job(PAPER, Cluster(num_gpus=column.gpus)),  # type: ignore[attr-defined]
        settings=PlanSettings(stage2_batch_patches=column.batch),  # type: ignore[attr-defined]
    )
    (phase,) = STAGES["stage2"](job)
    assert phase.step_s / 3600 == pytest.approx(column.hours, rel=2e-3)  # type: ignore[attr-defined]
    send_s = sending_seconds(job.settings.encoder_parameters, job.cluster)
    assert send_s == pytest.approx(column.send_s)  # type: ignore[attr-defined]
    assert phase.read_bytes == 116_000_000 * 25_000
    assert phase.reads == 906_250


def test_too_many_gpus_for_a_batch_only_send() -> None:
    plan = stage_plan(make_job(PAPER, Cluster(num_gpus=512)), "stage2")
    assert plan.bottleneck == SENDING


def test_shards_are_cut_as_the_job_cuts_them() -> None:
    """The shards job's own functions, on the same numbers."""
    from mstar.pretrain.shards_config import ShardSettings
    from mstar.pretrain.shards_plan import shape_of

    for memory_mb in (2_048, 8_192):
        job = make_job(PAPER)
        job = replace(job, settings=PlanSettings(shard_memory_mb=memory_mb))
        shape = shape_of(
            ShardSettings(memory_mb=memory_mb), 116_000_000, 25_000 - 2 * 512 - 64, dim=512
        )
        units, buckets = shuffle_shape(job)
        assert buckets == shape.num_buckets
        assert units == -(-116_000_000 // shape.unit_rows)
    assert num_shards(make_job(PAPER)) == 5_665  # docs/stage2.md: 5,664 to 11,328, rounded down


@pytest.mark.parametrize(
    ("losses_per_h", "interval_s", "away_s"),
    [(1.0, 600.0, 0.0), (4.0, 300.0, 340.0), (20.0, 180.0, 60.0), (8.0, 1_200.0, 300.0)],
)
def test_work_in_lockstep_under_losses(
    losses_per_h: float, interval_s: float, away_s: float
) -> None:
    """Against drawing the losses one by one."""
    rng = np.random.default_rng(0)
    rate, intervals, rounds = losses_per_h / 3600, 20, 500
    found = np.zeros(rounds)
    for _ in range(intervals):  # every interval is tried until no loss falls into it
        left = np.arange(rounds)
        while len(left):
            lives_s = rng.exponential(1 / rate, len(left))
            lost = lives_s < interval_s
            found[left] += np.where(lost, lives_s + away_s, interval_s)
            left = left[lost]
    expected = restarted_seconds(intervals * interval_s, rate, interval_s, away_s)
    error = found.std() / math.sqrt(rounds)
    assert expected == pytest.approx(found.mean(), abs=4 * error)
    assert restarted_seconds(7.0, 0.0, interval_s, away_s) == 7.0
    assert restarted_seconds(1e9, 1.0, 1e6, away_s) == math.inf


def test_losses_cost_more_with_more_spot_nodes() -> None:
    for name in STAGES:
        hours = [
            stage_plan(
                make_job(
                    PAPER,
                    Cluster(num_gpus=64, spot_share=share, spot_losses_per_node_hour=0.2),
                ),
                name,
            ).wall_hours
            for share in (0.0, 0.5, 1.0)
        ]
        assert hours[0] < hours[1] < hours[2], name


def test_without_gpus_cores_do_the_work() -> None:
    cluster = Cluster(gpu="cpu", num_gpus=4, gpus_per_node=1, cpu_cores_per_node=33)
    plan = stage_plan(make_job(cluster=cluster), "embed")
    assert plan.bottleneck == "CPU cores"
    rates = built_in("cpu")
    core_s = SMALL.num_patches * (rates.patch_read_core_s + 1 / rates.encoder_patches_per_s)
    core_s += SMALL.num_slides * rates.slide_open_core_s
    assert plan.phases[0].timing.busy_s["CPU cores"] == pytest.approx(core_s / (4 * 32))
