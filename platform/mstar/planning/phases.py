"""A phase is work that overlaps within itself; its time follows from what each resource would need.

All resources of a phase work at once (fetching, decoding, computing, writing are pipelined), so a
phase takes as long as its busiest resource, and a start and an end during which not all are busy.
Phases follow one another.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mstar.planning.cluster import Cluster
from mstar.planning.rates import Rates

GPU, CORES, NETWORK = "GPU", "CPU cores", "network of the nodes"
STORAGE, REQUESTS, LATENCY = "storage bandwidth", "storage requests", "waiting for storage"
SENDING = "sending between GPUs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Work, as if one of each resource had to do all of it.

    device_s: seconds of one device (with gpu cpu: of one core).
    step_s: seconds of the whole group, where all devices step together: not divided any more.
    sending_s: of these, what is spent on sending between GPUs.
    core_s: seconds of one core. reads, writes: requests to the storage.
    stream_s: seconds that reads wait and carry, added up; streams: how many there are at once.
    pipeline_s: wall seconds of one worker's pipeline where that is more than any resource takes,
    because its work comes in unequal portions.
    start_s, tail_s: wall seconds before the pipeline is full, and after parts of it have ended.
    losses: a lost node costs its own work (`own`), or everyone's since the checkpoint (`all`).
    lost_s: with `own` the seconds of work that a loss costs, with `all` those between checkpoints.
    """

    name: str
    device_s: float = 0.0
    step_s: float = 0.0
    sending_s: float = 0.0
    core_s: float = 0.0
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    reads: float = 0.0
    writes: float = 0.0
    stream_s: float = 0.0
    streams: float = 1.0
    pipeline_s: float = 0.0
    start_s: float = 0.0
    tail_s: float = 0.0
    losses: Literal["own", "all"] = "own"
    lost_s: float = 0.0

    @property
    def uses_devices(self) -> bool:
        """Whether GPUs have anything to do."""
        return self.device_s > 0 or self.step_s > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long a phase takes, and why.

    busy_s: seconds that each resource would need, were all others without limit.
    undisturbed_s: without losses of nodes. wall_s: with them.
    """

    busy_s: Mapping[str, float]
    bottleneck: str
    undisturbed_s: float
    wall_s: float


def timing(phase: Phase, cluster: Cluster, rates: Rates) -> Timing:
    """The time of a phase."""
    busy = busy_seconds(phase, cluster, rates)
    bottleneck = max(busy, key=lambda name: busy[name])
    if bottleneck == GPU and phase.sending_s > phase.step_s / 2:
        bottleneck = SENDING
    work_s = max(phase.pipeline_s, *busy.values())
    ends_s = phase.start_s + phase.tail_s
    return Timing(
        busy_s=busy,
        bottleneck=bottleneck,
        undisturbed_s=work_s + ends_s,
        wall_s=with_losses(work_s, phase, cluster, rates) + ends_s,
    )


def busy_seconds(phase: Phase, cluster: Cluster, rates: Rates) -> dict[str, float]:
    """Resource → seconds that it would need, were all others without limit."""
    device_s, core_s = phase.device_s, phase.core_s
    if not cluster.has_gpus:  # a core is the device
        device_s, core_s = 0.0, core_s + device_s
    most_bytes = max(phase.read_bytes, phase.written_bytes)  # networks carry both ways at once
    return {
        GPU: device_s / cluster.num_gpus + phase.step_s,
        CORES: core_s / cluster.cores,
        NETWORK: most_bytes / cluster.network_bytes_per_s,
        STORAGE: _over(phase.read_bytes + phase.written_bytes, cluster.storage_bytes_per_s),
        REQUESTS: max(
            _over(phase.reads, cluster.storage_reads_per_s),
            _over(phase.writes, cluster.storage_writes_per_s),
        ),
        LATENCY: phase.stream_s / phase.streams,
    }


def stream_seconds(reads: float, num_bytes: float, rates: Rates) -> float:
    """Seconds that requests wait and carry, one after the other."""
    return reads * mean_latency_s(rates) + num_bytes / rates.storage_stream_bytes_per_s


def mean_latency_s(rates: Rates) -> float:
    """Mean of the latency, which is lognormal with the rates' median and 99th percentile."""
    return rates.storage_latency_s * math.exp(latency_spread(rates.storage_tail) ** 2 / 2)


def latency_spread(tail: float) -> float:
    """Standard deviation of the latency's logarithm: the 99th percentile is `tail` medians."""
    return math.log(tail) / 2.3263


def with_losses(work_s: float, phase: Phase, cluster: Cluster, rates: Rates) -> float:
    """Wall seconds of some work when spot nodes are lost and replaced."""
    away_s = cluster.node_start_s + rates.worker_start_s
    if phase.losses == "own":
        return work_s / capacity_share(cluster, away_s + phase.lost_s)
    return restarted_seconds(work_s, cluster.spot_losses_per_s, phase.lost_s, away_s)


def capacity_share(cluster: Cluster, cost_s: float) -> float:
    """Share of the cluster that works, when a loss costs a node `cost_s` seconds of work."""
    missing = cluster.spot_losses_per_node_hour / 3600 * cost_s
    return 1 - cluster.spot_share * missing / (1 + missing)


def restarted_seconds(
    work_s: float, losses_per_s: float, interval_s: float, away_s: float
) -> float:
    """Expected wall seconds of work in lockstep that any loss throws back to a checkpoint.

    Losses come at random at `losses_per_s` while there is work; each costs what was done since the
    last checkpoint (of every `interval_s`) and `away_s` besides. Exact for such losses.
    """
    if not losses_per_s or not work_s:
        return work_s
    interval_s = min(max(interval_s, 1e-3), work_s)
    exponent = losses_per_s * interval_s
    if exponent > 500:
        return math.inf
    return work_s / interval_s * math.expm1(exponent) * (1 / losses_per_s + away_s)


def _over(amount: float, per_s: float) -> float:
    """Seconds; a rate of 0 is no limit."""
    return amount / per_s if per_s else 0.0
