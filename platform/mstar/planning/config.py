"""What a caller of `mstar plan` can say, and how it becomes a job to plan."""

from dataclasses import dataclass, field, fields, replace
from typing import Annotated

import tyro

from mstar.errors import ConfigError
from mstar.planning.cluster import Cluster, Prices, read_cluster
from mstar.planning.rates import RateFile, rates_for, read_rates
from mstar.planning.settings import PlanSettings
from mstar.planning.stages import Job, stages_of
from mstar.planning.workload import Workload, counted, from_manifest, preset

PATCHES_PER_SLIDE = 9_892


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFlags:
    """Overrides of the cluster's description; what is not given stays as it is there."""

    gpu: str | None = None
    """Kind of GPU: h200, h100, h100-pcie, a100, rtx4090, or cpu for none."""
    num_gpus: int | None = None
    """GPUs of all nodes together; with --gpu cpu the number of nodes."""
    gpus_per_node: int | None = None
    """GPUs of a node."""
    cpu_cores_per_node: int | None = None
    """Cores of a node."""
    node_network_bytes_per_s: float | None = None
    """What a node takes in from its network (100 Gb/s: 12.5e9)."""
    storage_bytes_per_s: float | None = None
    """Most that the storage gives all nodes together; 0: no limit known."""
    storage_reads_per_s: float | None = None
    """Read requests a second that the storage answers; 0: no limit known."""
    spot_share: float | None = None
    """Share of the nodes that may be taken away, 0 to 1."""
    spot_losses_per_node_hour: float | None = None
    """How often a spot node is taken away, per hour."""
    node_start_s: float | None = None
    """Seconds from a node's loss to its successor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceFlags:
    """What the user pays, and since when; no price is built in."""

    price_gpu_hour: float | None = None
    """Of a GPU on demand. Needs --price-date."""
    price_gpu_hour_spot: float | None = None
    """Of a GPU on a spot node."""
    price_million_reads: float | None = None
    """Of a million read requests."""
    price_million_writes: float | None = None
    """Of a million write requests."""
    price_date: str = ""
    """Day on which these prices held, as 2026-01-31."""
    price_currency: str = "USD"
    """Printed beside every amount."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """What a run over a cohort will take."""

    slides: str | None = None
    """Slides: a manifest .csv/.parquet, a folder, a pattern, or s3://… (a listing tells sizes)."""
    preset: str = ""
    """A cohort by name: paper (11,727 slides, 116 M patches), hospital, pilot."""
    num_slides: int = 0
    """A cohort by counts: slides."""
    num_cases: int = 0
    """Cases; 0: one a slide, or as the manifest or preset has them."""
    patches_per_slide: float = PATCHES_PER_SLIDE
    """Patches on tissue of a slide, on average, where sizes of files do not tell."""
    slide_mb: float | None = None
    """Size of a slide's file in MB, on average; default: 111 kB a patch."""
    size_spread: float | None = None
    """How unequal slides are: standard deviation of the logarithm of their patch counts."""
    stages: tuple[str, ...] = ()
    """Some of embed, stage1, targets, stage2, sweep; default: all."""
    cluster: str | None = None
    """JSON file that describes the cluster; flags override it."""
    rates: str | None = None
    """Rate file of `mstar measure`; what it lacks comes from the built-in table."""
    simulate: bool = False
    """Check the embedding job against the discrete-event simulation."""
    curve: str = ""
    """Simulate 1 to 512 GPUs and draw the scaling curve into this .png."""
    seed: int = 0
    """Of the simulation."""
    json: bool = False
    """Print JSON."""
    on: Annotated[ClusterFlags, tyro.conf.arg(name="")] = field(default_factory=ClusterFlags)
    prices: Annotated[PriceFlags, tyro.conf.arg(name="")] = field(default_factory=PriceFlags)
    run: Annotated[PlanSettings, tyro.conf.arg(name="")] = field(default_factory=PlanSettings)

    def __post_init__(self) -> None:
        """Refuses what cannot be meant before anything is read."""
        given = [bool(self.slides), bool(self.preset), bool(self.num_slides)]
        if sum(given) != 1:
            raise ConfigError(
                f"expected one of --slides, --preset and --num-slides, got {sum(given)}. "
                "For example: mstar plan --preset paper --num-gpus 8"
            )
        if self.num_slides < 0 or self.num_cases < 0 or self.patches_per_slide <= 0:
            raise ConfigError("--num-slides, --num-cases, --patches-per-slide: expected above 0")
        if self.curve and not self.curve.endswith(".png"):
            raise ConfigError(f"--curve {self.curve}: expected a name that ends in .png")
        stages_of(self.stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a config says, read and checked."""

    job: Job
    stages: tuple[str, ...]
    measured: RateFile | None


def read_inputs(config: PlanConfig) -> Inputs:
    """Everything that the plan follows from."""
    cluster = cluster_of(config)
    measured = read_rates(config.rates) if config.rates else None
    job = Job(
        work=workload_of(config),
        cluster=cluster,
        rates=rates_for(cluster.gpu, measured),
        settings=config.run,
    )
    return Inputs(job=job, stages=stages_of(config.stages), measured=measured)


def cluster_of(config: PlanConfig) -> Cluster:
    """The described cluster, with the flags in place of what they override."""
    cluster = read_cluster(config.cluster) if config.cluster else Cluster()
    flags = {part.name: getattr(config.on, part.name) for part in fields(config.on)}
    given = {name: value for name, value in flags.items() if value is not None}
    if given.get("gpu") == "cpu":
        given.setdefault("gpus_per_node", 1)
    per_node = given.get("gpus_per_node", cluster.gpus_per_node)
    if "num_gpus" in given and given["num_gpus"] < per_node and "gpus_per_node" not in given:
        given["gpus_per_node"] = max(1, given["num_gpus"])  # a smaller node, with fewer cores
        cores = cluster.cpu_cores_per_node * given["gpus_per_node"] // per_node
        given.setdefault("cpu_cores_per_node", max(1, cores))
    return replace(cluster, **given, prices=_prices(config.prices, cluster.prices))


def workload_of(config: PlanConfig) -> Workload:
    """The cohort."""
    if config.slides:
        work = from_manifest(
            config.slides, patches_per_slide=config.patches_per_slide, slide_mb=config.slide_mb
        )
    elif config.preset:
        work = preset(config.preset)
    else:
        work = counted(
            num_slides=config.num_slides,
            patches_per_slide=config.patches_per_slide,
            num_cases=config.num_cases,
            slide_mb=config.slide_mb,
        )
    if config.num_cases:
        work = replace(work, num_cases=config.num_cases)
    return work if config.size_spread is None else replace(work, size_spread=config.size_spread)


def _prices(flags: PriceFlags, described: Prices | None) -> Prices | None:
    """Prices by flags, else those of the cluster's description."""
    if flags.price_gpu_hour is None:
        return described
    if not flags.price_date:
        raise ConfigError(
            "--price-gpu-hour: expected --price-date beside it, since prices change; got none. "
            "Give the day on which you looked, as 2026-01-31."
        )
    return Prices(
        gpu_hour=flags.price_gpu_hour,
        gpu_hour_spot=flags.price_gpu_hour_spot,
        million_reads=flags.price_million_reads,
        million_writes=flags.price_million_writes,
        date=flags.price_date,
        currency=flags.price_currency,
    )
