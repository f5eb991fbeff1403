"""What is simulated: equal workers, and slides that were drawn one by one from a plan's work."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from mstar.errors import ConfigError
from mstar.planning.fetching import (
    FETCH_BYTES,
    OPEN_REQUESTS,
    OPENERS,
    SLIDES_AT_ONCE,
    STREAMS_PER_SLIDE,
    slide_sizes,
)
from mstar.planning.phases import latency_spread
from mstar.planning.stages import CHUNK_PATCHES, EMBED_READS, Job
from mstar.planning.strict import check_positive, check_range

BLOCK_PATCHES = 1024
QUEUE_BLOCKS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """What is simulated: equal workers, one a GPU."""

    num_workers: int
    workers_per_node: int
    encode_patches_per_s: float
    read_patches_per_s: float
    """Of the cores of one worker together."""
    open_s: float
    """Of a slide, on one core, beside reading the one before."""
    node_bytes_per_s: float
    storage_bytes_per_s: float
    """Of all nodes together; 0: no limit."""
    storage_reads_per_s: float
    """Requests of all nodes together; 0: no limit."""
    worker_start_s: float
    spot_share: float = 0.0
    losses_per_node_hour: float = 0.0
    node_start_s: float = 300.0
    block_patches: int = BLOCK_PATCHES
    queue_blocks: int = QUEUE_BLOCKS
    chunk_patches: int = CHUNK_PATCHES
    openers: int = OPENERS
    slides_at_once: int = SLIDES_AT_ONCE

    def __post_init__(self) -> None:
        """Refuses what cannot move."""
        check_range(self, 1, "num_workers", "workers_per_node", "block_patches", "queue_blocks")
        check_range(self, 1, "chunk_patches", "openers", "slides_at_once")
        check_positive(self, "encode_patches_per_s", "read_patches_per_s", "node_bytes_per_s")
        check_range(self, 0.0, "spot_share", most=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slides:
    """What is to be done, in the order in which slides are given out."""

    patches: Int64[np.ndarray, " slide"]
    num_bytes: Float64[np.ndarray, " slide"]
    requests: Float64[np.ndarray, " slide"]
    """Read requests of a slide, those beside fetching it among them."""
    fetch_s: Float64[np.ndarray, " slide"]
    """Seconds until a slide's bytes are there, network and storage being free."""
    asking_s: Float64[np.ndarray, " slide"]
    """Seconds that an opener waits for small requests, one after the other."""


def draw_slides(job: Job, *, seed: int = 0) -> Slides:
    """The slides of a plan: sizes, and how long their requests will take, drawn one by one."""
    sizes = slide_sizes(job.work, seed=seed)
    rng = np.random.default_rng([seed, 0])
    order = rng.permutation(len(sizes))
    patches = np.maximum(1, np.round(sizes[order])).astype(np.int64)
    num_bytes = patches * (job.work.slide_bytes / job.work.num_patches)
    requests = np.maximum(1, np.ceil(num_bytes / FETCH_BYTES)).astype(np.int64)
    spread = latency_spread(job.rates.storage_tail)

    def latencies(count: int) -> Float64[np.ndarray, " request"]:
        return job.rates.storage_latency_s * rng.lognormal(0.0, spread, count)

    starts = np.cumsum(requests) - requests
    waits_s = np.add.reduceat(latencies(int(requests.sum())), starts)
    carrying_s = num_bytes / job.rates.storage_stream_bytes_per_s
    small = latencies(OPEN_REQUESTS * len(patches)).reshape(len(patches), OPEN_REQUESTS)
    return Slides(
        patches=patches,
        num_bytes=num_bytes,
        requests=(requests + EMBED_READS).astype(np.float64),
        fetch_s=(waits_s + carrying_s) / np.minimum(STREAMS_PER_SLIDE, requests),
        asking_s=small.sum(1),
    )


def machines_of(job: Job) -> Machines:
    """The machines of a plan.

    Raises:
        ConfigError: there are no GPUs, whose pipeline this is.
    """
    cluster, rates = job.cluster, job.rates
    if not cluster.has_gpus:
        raise ConfigError("gpu: expected a GPU to simulate, got 'cpu'. Leave the simulation out.")
    cores = cluster.cores / cluster.num_gpus
    return Machines(
        num_workers=cluster.num_gpus,
        workers_per_node=cluster.gpus_per_node,
        encode_patches_per_s=rates.encoder_patches_per_s,
        read_patches_per_s=cores / rates.patch_read_core_s,
        open_s=rates.slide_open_core_s,
        node_bytes_per_s=cluster.node_network_bytes_per_s,
        storage_bytes_per_s=cluster.storage_bytes_per_s,
        storage_reads_per_s=cluster.storage_reads_per_s,
        worker_start_s=rates.worker_start_s,
        spot_share=cluster.spot_share,
        losses_per_node_hour=cluster.spot_losses_per_node_hour,
        node_start_s=cluster.node_start_s,
    )
