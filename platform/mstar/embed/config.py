"""What a caller can set for the `grid` and `embed` jobs."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from mstar.config import fingerprint
from mstar.slides.grid import GridConfig
from mstar.slides.tissue import TissueConfig
from mstar.training.exit_codes import check_max_failures

AnnotationOrigin = Literal["level0", "bounds"]
MissingMpp = Literal["error", "skip", "from-objective"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How a job runs: none of these changes a result."""

    address: str | None = None
    """Ray cluster to run on; without it RAY_ADDRESS, else a local Ray is started and ended."""
    workers: int = 0
    """Worker actors; 0 = one per GPU, without GPUs one per node."""
    cpus_per_worker: float = 0
    """Ray CPUs a worker reserves; 0 = a node's share, one CPU a node being left to Ray's read
    tasks."""
    reader_threads: int = 0
    """Threads that read and decode patches in a worker; 0 = as many as its CPUs, 4 at least on a
    GPU."""
    reader_workers: int = 0
    """Separate actors on CPU nodes that read and decode; 0 = the encoder's own threads do."""
    torch_threads: int = 0
    """CPU threads of the encoder in a worker; 0 = as many as its CPUs. Recorded with the run."""
    bundle_batches: int = 48
    """Encoder batches a work item is worth (32-64 is good); larger slides are cut at this size."""
    max_failures: str = "0"
    """Slides that may fail before the exit code says so: a count (5) or a share (1%)."""
    retry_failed: bool = False
    """Try again slides whose failure was recorded as permanent."""
    lease_s: float = 60.0
    """Seconds after which another run may take over the slides of a run that went silent."""
    cache_dir: str | None = None
    """Node-local folder for slides staged from object storage; default MSTAR_CACHE_DIR or the temp
    folder."""
    cache_gb: float = 200.0
    """Size in GB that this folder is kept below."""
    tracking: bool = True
    """Record the run in MLflow (MLFLOW_TRACKING_URI, else sqlite in the output folder)."""
    dry_run: bool = False
    """Print the resolved config and the work to be done, then stop."""

    def __post_init__(self) -> None:
        """Refuse an allowance that cannot be read before anything is started."""
        check_max_failures(self.max_failures)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridJobConfig:
    """Find the tissue of every slide and lay a grid of patches over it."""

    slides: str
    """Slides: a file, folder, glob, s3:// prefix, or manifest .csv/.parquet (path, slide_id?, mpp?,
    case_id?)."""
    out: str
    """Folder for grids (<slide_id>.h5), overviews (.jpg) and contours (.geojson); local or s3://."""
    slide_mpp: float | None = None
    """Microns per pixel at level 0 of slides that do not state it."""
    missing_mpp: MissingMpp = "error"
    """A slide without mpp: error = it fails, skip = it is left out, from-objective = 10 /
    magnification."""
    annotations: str | None = None
    """Folder of GeoJSON files (<slide_id>.geojson, e.g. edited in QuPath) used instead of the found
    tissue."""
    annotation_origin: AnnotationOrigin = "level0"
    """Where annotations count from: level0 = the slide's corner, bounds = the corner of what was
    scanned, as QuPath does for MRXS and others that it crops."""
    grid: Annotated[GridConfig, tyro.conf.arg(name="")] = field(default_factory=GridConfig)
    tissue: TissueConfig = field(default_factory=TissueConfig)
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedConfig:
    """Embed every patch of every slide with one patch encoder."""

    slides: str
    """Slides: a file, folder, glob, s3:// prefix, or manifest .csv/.parquet (path, slide_id?, mpp?,
    case_id?)."""
    out: str
    """Feature store: one HDF5 per slide, <slide_id>.h5; local or s3://."""
    encoder: str = "mstar"
    """mstar, uni, resnet50, resnet50_clam, vit_tiny, timm:<name>, or your own module:function."""
    weights: str | None = None
    """Weights: file or folder (local, s3://), hf-hub:<org/name>, or random:<seed>; default: the
    encoder's hub id."""
    grids: str | None = None
    """Grids made before (mstar grid, CLAM, TRIDENT, STAMP); a slide without one gets its grid on
    the fly."""
    slide_mpp: float | None = None
    """Microns per pixel at level 0 of slides that do not state it."""
    missing_mpp: MissingMpp = "error"
    """A slide without mpp: error = it fails, skip = it is left out, from-objective = 10 /
    magnification."""
    annotations: str | None = None
    """Folder of GeoJSON files (<slide_id>.geojson) used instead of the found tissue."""
    annotation_origin: AnnotationOrigin = "level0"
    """Where annotations count from: level0 = the slide's corner, bounds = the corner of what was
    scanned, as QuPath does for MRXS and others that it crops."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type of the stored features."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the encoder runs."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the encoder; auto = bfloat16 autocast on a GPU, float32 on a CPU."""
    compile: bool = False
    """Compile the encoder with torch.compile (some minutes at start, faster after; GPU)."""
    batch_size: int = 0
    """Patches per encoder batch; 0 = 256 on a GPU, 32 on a CPU. Every batch has this size, the last
    is padded."""
    bad_patches: Literal["skip", "fail"] = "skip"
    """An unreadable patch: skip = left out and recorded in the file, fail = the slide fails."""
    grid: Annotated[GridConfig, tyro.conf.arg(name="")] = field(default_factory=GridConfig)
    tissue: TissueConfig = field(default_factory=TissueConfig)
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def grid_settings(config: GridJobConfig | EmbedConfig) -> dict[str, object]:
    """The settings that decide a grid, as the grid store's identity."""
    return {
        "grid": config.grid,
        "tissue": config.tissue,
        "slide_mpp": config.slide_mpp,
        "missing_mpp": config.missing_mpp,
        "annotations": config.annotations,
        "annotation_origin": config.annotation_origin,
    }


def grid_fingerprint(config: GridJobConfig | EmbedConfig) -> str:
    """Names the settings of `grid_settings`."""
    return fingerprint(grid_settings(config))
