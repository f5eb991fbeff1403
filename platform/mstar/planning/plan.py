"""The plan: every stage with its time, its bytes and requests, its bottleneck and its cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from mstar.planning.cluster import Cluster, Prices
from mstar.planning.phases import GPU, Phase, Timing, timing
from mstar.planning.stages import STAGES, Job


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedPhase:
    """A phase and its time."""

    phase: Phase
    timing: Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a stage costs, in the currency of the prices.

    on_demand: every node on demand, nothing lost. mixed: with the share of spot nodes, their losses
    included; None without a spot price. requests: to the storage, contained in both.
    """

    on_demand: float
    mixed: float | None
    requests: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """What a stage takes."""

    name: str
    phases: tuple[TimedPhase, ...]
    num_gpus: int
    cost: Cost | None

    @property
    def wall_hours(self) -> float:
        """With losses of spot nodes."""
        return sum(part.timing.wall_s for part in self.phases) / 3600

    @property
    def undisturbed_hours(self) -> float:
        """Without losses."""
        return sum(part.timing.undisturbed_s for part in self.phases) / 3600

    @property
    def gpu_hours(self) -> float:
        """Paid for: wall hours of all GPUs, busy or not."""
        return self.wall_hours * self.num_gpus

    @property
    def read_bytes(self) -> float:
        """From the storage."""
        return sum(part.phase.read_bytes for part in self.phases)

    @property
    def written_bytes(self) -> float:
        """To the storage."""
        return sum(part.phase.written_bytes for part in self.phases)

    @property
    def reads(self) -> float:
        """Read requests."""
        return sum(part.phase.reads for part in self.phases)

    @property
    def writes(self) -> float:
        """Write requests."""
        return sum(part.phase.writes for part in self.phases)

    @property
    def longest(self) -> TimedPhase:
        """The phase that takes most of the time."""
        return max(self.phases, key=lambda part: part.timing.undisturbed_s)

    @property
    def bottleneck(self) -> str:
        """The busiest resource of the longest phase."""
        return self.longest.timing.bottleneck

    @property
    def gpu_busy_share(self) -> float:
        """Share of the time in which GPUs compute."""
        busy = sum(part.timing.busy_s[GPU] for part in self.phases)
        return busy / (3600 * self.undisturbed_hours)

    @property
    def read_gb_per_s_per_gpu(self) -> float:
        """On average over the longest phase."""
        part = self.longest
        return part.phase.read_bytes / part.timing.undisturbed_s / self.num_gpus / 1e9


def make_plan(job: Job, stages: Sequence[str]) -> list[StagePlan]:
    """The named stages, one after the other."""
    return [stage_plan(job, name) for name in stages]


def stage_plan(job: Job, name: str) -> StagePlan:
    """One stage."""
    phases = tuple(
        TimedPhase(phase=phase, timing=timing(phase, job.cluster, job.rates))
        for phase in STAGES[name](job)
    )
    return StagePlan(
        name=name,
        phases=phases,
        num_gpus=job.cluster.num_gpus,
        cost=_cost(phases, job.cluster, job.cluster.prices),
    )


def wanted_gb_per_s_per_gpu(job: Job) -> float:
    """What a GPU of the embedding job reads when nothing holds it up."""
    rate = job.rates.encoder_patches_per_s
    if not job.cluster.has_gpus:
        rate *= job.cluster.cpu_cores_per_node
    return rate * job.work.slide_bytes / job.work.num_patches / 1e9


def _cost(phases: Sequence[TimedPhase], cluster: Cluster, prices: Prices | None) -> Cost | None:
    if prices is None:
        return None
    requests = sum(part.phase.reads for part in phases) * (prices.million_reads or 0.0) / 1e6
    requests += sum(part.phase.writes for part in phases) * (prices.million_writes or 0.0) / 1e6
    per_s = cluster.num_gpus / 3600
    undisturbed_s = sum(part.timing.undisturbed_s for part in phases)
    mixed = None
    if prices.gpu_hour_spot is not None:
        share = cluster.spot_share
        price = share * prices.gpu_hour_spot + (1 - share) * prices.gpu_hour
        mixed = sum(part.timing.wall_s for part in phases) * per_s * price + requests
    on_demand = undisturbed_s * per_s * prices.gpu_hour + requests
    return Cost(on_demand=on_demand, mixed=mixed, requests=requests)
