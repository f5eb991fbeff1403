"""The jobs of the platform as phases: how much work each is, from counts, rates and settings."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from mstar.errors import ConfigError
from mstar.planning.cluster import Cluster
from mstar.planning.fetching import (
    FETCH_BYTES,
    OPENERS,
    end_seconds,
    fill_seconds,
    opener_seconds,
    uneven_seconds,
)
from mstar.planning.phases import Phase, stream_seconds
from mstar.planning.rates import REFERENCE_TRIAL_PATCHES, Rates
from mstar.planning.settings import PlanSettings
from mstar.planning.workload import Workload

CHUNK_PATCHES = 48 * 256  # what a worker of the embedding job loses at most
EMBED_READS, EMBED_WRITES = 10, 8  # requests a slide, beside fetching it; counted by a test
GROUP_ROWS = 256  # of a row group of the shards
SHUFFLE_SLACK = 1.15
COORD_BYTES = 16
ROW_PLACE_BYTES = 24
MB = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that a plan is about."""

    work: Workload
    cluster: Cluster
    rates: Rates
    settings: PlanSettings

    @property
    def feature_bytes(self) -> float:
        """Of all features, coordinates included."""
        return float(self.work.num_patches * (2 * self.settings.feature_dim + COORD_BYTES))

    @property
    def target_bytes(self) -> float:
        """Of all targets, with rows and coordinates."""
        return float(self.work.num_patches * (2 * self.settings.target_dim + ROW_PLACE_BYTES))

    @property
    def shard_bytes(self) -> float:
        """Of all rows of the patch shards."""
        return float(self.work.num_patches * self.settings.row_bytes)

    @property
    def fetches(self) -> float:
        """Requests that fetch every slide once."""
        return self.work.num_slides * math.ceil(self.work.bytes_per_slide / FETCH_BYTES)


def embed_phases(job: Job) -> list[Phase]:
    """Slides → features."""
    work, rates = job.work, job.rates
    core_s = work.num_slides * rates.slide_open_core_s + work.num_patches * rates.patch_read_core_s
    return [
        Phase(
            name="embed",
            device_s=work.num_patches / rates.encoder_patches_per_s,
            core_s=core_s,
            read_bytes=work.slide_bytes,
            written_bytes=job.feature_bytes,
            reads=job.fetches + EMBED_READS * work.num_slides,
            writes=float(EMBED_WRITES * work.num_slides),
            stream_s=opener_seconds(work, rates),
            streams=float(OPENERS * job.cluster.num_gpus),
            pipeline_s=uneven_seconds(work, job.cluster, rates),
            start_s=rates.worker_start_s + fill_seconds(work, job.cluster, rates),
            tail_s=end_seconds(work, job.cluster, rates),
            lost_s=CHUNK_PATCHES / 2 / _of_worker(job, rates.encoder_patches_per_s),
        )
    ]


def stage1_phases(job: Job) -> list[Phase]:
    """Features, reports, expression → the aggregator."""
    settings, cluster = job.settings, job.cluster
    batch, gpus = settings.stage1_batch_cases, cluster.num_gpus
    steps = settings.stage1_epochs * -(-job.work.num_cases // batch)
    compute_s = -(-batch // gpus) / _of_worker(job, job.rates.stage1_cases_per_s)
    send_s = sending_seconds(settings.stage1_parameters, cluster)
    copies = cluster.num_nodes
    return [
        Phase(
            name="stage 1: features to the nodes' disks",
            read_bytes=copies * job.feature_bytes,
            reads=float(copies * job.work.num_slides),
            stream_s=stream_seconds(
                copies * job.work.num_slides, copies * job.feature_bytes, job.rates
            ),
            streams=4.0 * cluster.num_gpus,
        ),
        Phase(
            name="stage 1",
            step_s=steps * (compute_s + send_s),
            sending_s=steps * send_s,
            start_s=job.rates.worker_start_s,
            losses="all",
            lost_s=steps / settings.stage1_epochs * (compute_s + send_s),
        ),
    ]


def targets_phases(job: Job) -> list[Phase]:
    """Features → targets, and slides with targets → shards, in two passes."""
    work, rates = job.work, job.rates
    units, buckets = shuffle_shape(job)
    workers = 4.0 * job.cluster.num_gpus
    image_s = rates.shard_image_core_s + rates.shard_sort_core_s
    start_s = rates.worker_start_s
    return [
        Phase(
            name="targets",
            device_s=work.num_patches / rates.target_patches_per_s,
            read_bytes=job.feature_bytes,
            written_bytes=job.target_bytes,
            reads=float(2 * work.num_slides),
            writes=float(work.num_slides + 3 * work.num_cases),
            stream_s=stream_seconds(2 * work.num_slides, job.feature_bytes, rates),
            streams=workers,
            start_s=start_s,
        ),
        Phase(
            name="shards, pass 1: read slides, sort",
            core_s=work.num_slides * rates.slide_open_core_s + work.num_patches * image_s,
            read_bytes=work.slide_bytes + job.target_bytes,
            written_bytes=job.shard_bytes,
            reads=job.fetches + 2 * work.num_slides,
            writes=units,
            stream_s=stream_seconds(job.fetches, work.slide_bytes, rates),
            streams=workers,
            start_s=start_s,
        ),
        Phase(
            name="shards, pass 2: merge",
            core_s=work.num_patches * rates.shard_merge_core_s,
            read_bytes=job.shard_bytes,
            written_bytes=job.shard_bytes,
            reads=units * buckets,
            writes=num_shards(job) + buckets,
            stream_s=stream_seconds(units * buckets, job.shard_bytes, rates),
            streams=workers,
            start_s=start_s,
        ),
    ]


def stage2_phases(job: Job) -> list[Phase]:
    """Shards → the patch encoder."""
    settings, rates = job.settings, job.rates
    batch, gpus = settings.stage2_batch_patches, job.cluster.num_gpus
    epochs, patches = settings.stage2_epochs, job.work.num_patches
    steps = epochs * -(-patches // batch)
    compute_s = -(-batch // gpus) / _of_worker(job, rates.stage2_patches_per_s)
    send_s = sending_seconds(settings.encoder_parameters, job.cluster)
    reads = float(2 * epochs * -(-patches // GROUP_ROWS))  # a footer for each, at most
    return [
        Phase(
            name="stage 2",
            step_s=steps * (compute_s + send_s),
            sending_s=steps * send_s,
            core_s=epochs * patches * rates.jpeg_decode_core_s,
            read_bytes=epochs * job.shard_bytes,
            reads=reads,
            stream_s=stream_seconds(reads, epochs * job.shard_bytes, rates),
            streams=4.0 * job.cluster.num_gpus,
            start_s=rates.worker_start_s,
            losses="all",
            lost_s=settings.checkpoint_every_steps * (compute_s + send_s),
        )
    ]


def sweep_phases(job: Job) -> list[Phase]:
    """Features and labels → heads on many tasks."""
    settings, rates, work = job.settings, job.rates, job.work
    fits = num_fits(settings)
    patches = settings.sweep_cases * work.num_patches / work.num_cases * settings.sweep_epochs
    fit_s = 60 * patches / REFERENCE_TRIAL_PATCHES / rates.head_trials_per_min
    copies = job.cluster.num_nodes * settings.sweep_encoders
    return [
        Phase(
            name="sweep",
            device_s=fits * (fit_s + rates.trial_overhead_s),
            read_bytes=copies * job.feature_bytes,
            reads=float(copies * work.num_slides),
            writes=float(fits),
            stream_s=stream_seconds(copies * work.num_slides, copies * job.feature_bytes, rates),
            streams=4.0 * job.cluster.num_gpus,
            start_s=rates.worker_start_s,
            tail_s=fit_s,
            lost_s=fit_s / 2,
        )
    ]


STAGES: dict[str, Callable[[Job], list[Phase]]] = {
    "embed": embed_phases,
    "stage1": stage1_phases,
    "targets": targets_phases,
    "stage2": stage2_phases,
    "sweep": sweep_phases,
}


def stages_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """The named stages, in the pipeline's order.

    Raises:
        ConfigError: there is none of that name.
    """
    for name in names:
        if name not in STAGES:
            raise ConfigError(f"--stages {name}: expected some of {', '.join(STAGES)}")
    return tuple(name for name in STAGES if name in names or not names)


def sending_seconds(parameters: int, cluster: Cluster) -> float:
    """Of a step: gradients once around the ring and parameters once, in float32."""
    gpus = cluster.num_gpus
    if gpus == 1 or not cluster.has_gpus:
        return 0.0
    within = gpus <= cluster.gpus_per_node
    rate = cluster.gpu_link_bytes_per_s if within else cluster.gpu_network_bytes_per_s
    return 2 * (gpus - 1) / gpus * 4 * parameters / rate


def shuffle_shape(job: Job) -> tuple[float, float]:
    """Units of pass 1 and buckets of pass 2, as the shards job cuts them."""
    rows, row_bytes = job.work.num_patches, job.settings.row_bytes
    memory = job.settings.shard_memory_mb * int(MB)
    buckets = max(1, -(-int(SHUFFLE_SLACK * rows * row_bytes) // (memory // 2)))
    unit_rows = min(max(1, memory // 5 // row_bytes), max(1024, rows // 64))
    return float(-(-rows // unit_rows)), float(buckets)


def num_shards(job: Job) -> float:
    """Shards of `shard_mb` at most, at least."""
    return float(math.ceil(job.shard_bytes / (job.settings.shard_mb * MB)))


def num_fits(settings: PlanSettings) -> int:
    """Heads that a sweep trains: a configuration on a fold."""
    studies = settings.sweep_tasks * settings.sweep_encoders * settings.sweep_heads
    return studies * settings.sweep_trials * settings.sweep_folds


def _of_worker(job: Job, rate: float) -> float:
    """The rate of a worker: a GPU, or, without any, all cores of a node."""
    return rate if job.cluster.has_gpus else rate * job.cluster.cpu_cores_per_node
