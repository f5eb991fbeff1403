"""What a caller can set for patch shards, the second half of `mstar targets`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from mstar.data.shards.format import ROWS_PER_GROUP
from mstar.errors import ConfigError
from mstar.training.exit_codes import check_max_failures

MAX_MEMORY_MB = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSettings:
    """What the shards are to be."""

    weights: str | None = None
    """Weights that made the features (checked by hash): they measure what storing does to features.
    Not given = not measured."""
    image: Literal["patch", "encoder"] = "patch"
    """Side of the stored images. patch: as the grid hands patches on (256 px), so that raw tiles
    can be passed through. encoder: its input (224 px), resized once, as the encoder saw them."""
    quality: int = 95
    """JPEG quality (1-100) of patches that are encoded; colours are never subsampled."""
    pass_through: bool = True
    """Store a patch that is exactly one JPEG tile of its slide as that tile's own bytes."""
    seed: int = 0
    """Of the order of rows."""
    rows_per_group: int = ROWS_PER_GROUP
    """Rows of a Parquet row group, the unit of reading."""
    shard_mb: int = 512
    """Largest size of a shard, in MB; nearly all are between half of it and it."""
    memory_mb: int = 2048
    """Memory of one worker for rows, in MB. Half of it holds a bucket of the shuffle, so it decides
    their number; with little, object storage sees many small requests (platform/docs/shards.md)."""
    scratch: str | None = None
    """Folder for the buckets, about as large as the shards; local (if all workers see it) or s3://.
    Not given = beside the shards."""
    sample_patches: int = 256
    """Patches that are looked at beforehand: bytes, pass-through rate, time, and features."""
    least_cosine: float = 0.99
    """Least mean cosine between features of stored and of original pixels, 0-1; below it nothing is
    written."""
    max_left_out: str = "1%"
    """Patches that may be unreadable: a count (5) or a share (1%)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant before anything is started."""
        check_max_failures(self.max_left_out)
        for name, least, most in (
            ("quality", 1, 100),
            ("rows_per_group", 1, 1 << 16),
            ("shard_mb", 1, 2048),
            ("memory_mb", 4, MAX_MEMORY_MB),
            ("sample_patches", 1, 1 << 16),
            ("least_cosine", 0, 1),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigError(f"{name}: expected {least} to {most}, got {value}")
        if 4 * self.shard_mb > self.memory_mb:
            raise ConfigError(
                f"shard_mb: expected at most a quarter of memory_mb ({self.memory_mb}), since a "
                f"shard is put together in memory; got {self.shard_mb}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsRunConfig:
    """How the job runs: none of these changes a byte of the shards."""

    workers: int | None = None
    """Worker actors on Ray; 0 = in this process, without Ray; not given = one per CPU, one CPU a
    node being left to Ray."""
    address: str | None = None
    """Ray cluster to run on; without it RAY_ADDRESS, else a local Ray is started and ended."""
    threads: int = 2
    """Threads of a worker that read and encode patches, or fetch rows."""
    lease_s: float = 60.0
    """Seconds after which another run may take over from one that went silent."""
    cache_dir: str | None = None
    """Node-local folder for slides staged from object storage; default MSTAR_CACHE_DIR or the temp
    folder."""
    cache_gb: float = 200.0
    """Size in GB that this folder is kept below."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the encoder measures the sample."""
    tracking: bool = True
    """Record the run in MLflow (MLFLOW_TRACKING_URI, else sqlite in the output folder)."""
    dry_run: bool = False
    """Print the resolved config, what the sample says and the work to be done, then stop."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant before anything is started."""
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"workers: expected at least 0, got {self.workers}")
        if self.threads < 1:
            raise ConfigError(f"threads: expected at least 1, got {self.threads}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsConfig:
    """Write patch shards: pixels, target and identity of every patch with a target, shuffled."""

    cohort: str
    """Cohort folder with slides.csv, local or s3://."""
    features: str
    """Feature store whose patches have the targets."""
    out: str
    """Folder with targets/; shards/ is written beside it. Local or s3://."""
    shard: ShardSettings = field(default_factory=ShardSettings)
    run: Annotated[ShardsRunConfig, tyro.conf.arg(name="")] = field(default_factory=ShardsRunConfig)
