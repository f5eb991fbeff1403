"""What a caller can set for `mstar targets`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from mstar.errors import ConfigError
from mstar.pretrain.shards_config import ShardsConfig, ShardSettings, ShardsRunConfig
from mstar.training.exit_codes import check_max_failures

Coverage = Literal["all", "paper"]
CaseSelection = Literal["pretraining", "pretraining-val", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetsRunConfig:
    """How the teacher pass runs: none of these changes a target."""

    workers: int | None = None
    """Worker actors on Ray; 0 = in this process, without Ray; not given = one per GPU, without GPUs
    as many as the CPUs allow."""
    address: str | None = None
    """Ray cluster to run on; without it RAY_ADDRESS, else a local Ray is started and ended."""
    cpus_per_worker: float = 0
    """Ray CPUs a worker reserves; 0 = its threads, on a GPU up to 2, one CPU a node being left to
    Ray."""
    bundle_windows: int = 32
    """Windows that a work item is worth, in whole cases."""
    max_failures: str = "0"
    """Cases that may fail before the exit code says so: a count (5) or a share (1%)."""
    retry_failed: bool = False
    """Try again cases whose failure was recorded as permanent."""
    lease_s: float = 60.0
    """Seconds after which another run may take over the cases of a run that went silent."""
    cache_dir: str | None = None
    """Node-local folder for features staged from object storage; default MSTAR_CACHE_DIR or the
    temp folder."""
    cache_gb: float = 200.0
    """Size in GB that this folder is kept below."""
    tracking: bool = True
    """Record the run in MLflow (MLFLOW_TRACKING_URI, else sqlite in the output folder)."""
    dry_run: bool = False
    """Print the resolved config and the work to be done, then stop."""

    def __post_init__(self) -> None:
        """Refuses what cannot be read before anything is started."""
        check_max_failures(self.max_failures)
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"--workers {self.workers}: expected at least 0")
        if self.bundle_windows < 1:
            raise ConfigError(f"--bundle-windows {self.bundle_windows}: expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetsConfig:
    """Re-embed every patch with the frozen stage-1 aggregator, then write patch shards."""

    cohort: str
    """Cohort folder, local or s3:// (`mstar cohort build` or `generate`)."""
    features: str
    """Feature store that stage 1 was trained on (`mstar embed`)."""
    aggregator: str
    """Output of `mstar stage1`, or an aggregator's weights."""
    out: str
    """Folder for targets/ and shards/; local or s3://."""
    coverage: Coverage = "all"
    """all = every patch of a case, in random windows of near-equal size; paper = one seeded sample
    of a window's size per case."""
    window: int | None = None
    """Patches that the aggregator sees at once; not given = as many as in stage 1 (4,096 in the
    paper). Another number needs --allow-change."""
    seed: int = 0
    """Of samples and windows; mixed with the case id."""
    cases: CaseSelection = "pretraining"
    """Cases that get targets: those that the split registry gives to pretraining, these and the
    validation part, or all, held-out test cases included."""
    mode: Literal["public", "masked"] | None = None
    """Aggregator mode; not given = as trained. Another one needs --allow-change."""
    attention: Literal["nystrom", "exact"] | None = None
    """Aggregator attention; not given = as trained. Another one needs --allow-change."""
    allow_change: bool = False
    """Accept another mode, attention or window than the aggregator was trained with."""
    allow_other_features: bool = False
    """Accept features of another configuration than stage 1 was trained on, or an aggregator that
    does not say which."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the aggregator; bfloat16 = autocast. Targets are float16 either way."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the aggregator runs."""
    threads: int = 1
    """CPU threads of the aggregator in a worker. Part of what names the targets: with another
    number sums are rounded otherwise. More workers use more cores as well."""
    run: Annotated[TargetsRunConfig, tyro.conf.arg(name="")] = field(
        default_factory=TargetsRunConfig
    )
    shards: bool = True
    """Write the patch shards too, once the targets are there (--no-shards: leave them out)."""
    shard: ShardSettings = field(default_factory=ShardSettings)

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        for name in ("window", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} {value}: expected at least 1")

    @property
    def shards_config(self) -> ShardsConfig:
        """The second half of the job, run as the first one is."""
        run = self.run
        return ShardsConfig(
            cohort=self.cohort,
            features=self.features,
            out=self.out,
            shard=self.shard,
            run=ShardsRunConfig(
                workers=run.workers,
                address=run.address,
                lease_s=run.lease_s,
                cache_dir=run.cache_dir,
                cache_gb=run.cache_gb,
                device=self.device,
                tracking=run.tracking,
            ),
        )
