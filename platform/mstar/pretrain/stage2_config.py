"""What stage 2 is asked to do. Settings that the paper leaves open say that they are a choice."""

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import tyro

from mstar.config import fingerprint, to_dict
from mstar.data.shards.augment import AugmentConfig
from mstar.data.shards.order import OrderConfig
from mstar.errors import ConfigError
from mstar.losses.self_taught import SelfTaughtLossConfig
from mstar.models.ema import EmaConfig
from mstar.models.student import StudentConfig
from mstar.training.engines import EngineConfig
from mstar.training.exit_codes import check_max_failures
from mstar.training.group_config import GroupConfig
from mstar.training.optimizers import OptimizerConfig

# What may differ between two attempts of the same run: how it is run, not what it computes. Shards
# and weights may move; their digests are compared instead.
NOT_IN_THE_FINGERPRINT = (
    *("group", "engine", "out", "tracking", "dry_run", "device", "micro_batch", "shards"),
    *("weights", "allow_other_weights", "model_name", "checkpoint_every_steps", "log_every_steps"),
    *("watch_every_steps", "probe_patches", "knn_labels", "knn_every_steps", "knn_neighbours"),
    *("decode_threads", "read_ahead_mb", "patience_s"),
    *("init_from", "old_shards"),  # the weights' digest is compared instead
)
AT_LEAST_ONE = (
    *("epochs", "batch_patches", "micro_batch", "log_every_steps", "probe_patches"),
    *("decode_threads", "read_ahead_mb"),
)
NOT_NEGATIVE = (
    *("checkpoint_every_steps", "watch_every_steps", "knn_every_steps", "max_steps"),
    "patience_s",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage2Config:
    """Stage 2: teach the patch encoder what the slide aggregator learnt."""

    shards: str
    """Folder of patch shards, local or s3:// (`mstar targets`); names the encoder to train."""
    weights: str
    """Weights that made the features (compared by hash): a file, s3://, hf-hub: or random:SEED."""
    out: str
    """Folder for the encoder, checkpoints, log and MLflow file."""
    init_from: str = ""
    """Output of a finished stage 2 to start from: its encoder and projection. What that has changed
    is in forgetting.md. Empty: from the weights that made the features."""
    old_shards: str = ""
    """Where the shards of that run are now; default: where they were."""
    allow_other_weights: bool = False
    """Start from other weights than those that made the features."""
    epochs: int = 1
    """Passes over the shards. A choice."""
    max_steps: int = 0
    """End after so many optimiser steps, with the schedules of a run that long; 0 for all."""
    batch_patches: int = 1024
    """Patches of one optimiser step, over all workers; a multiple of `lanes`. A choice."""
    micro_batch: int = 256
    """Patches that a worker computes at once; more are accumulated. Bounds memory, changes no
    result but for rounding and the draws of drop_path."""
    lanes: int = 64
    """Places of an epoch that every step takes patches from: the most workers there can be."""
    window_groups: int = 1
    """Row groups whose rows are permuted together, per lane; as many are held in memory."""
    decode_threads: int = 2
    """Threads of each worker that decode JPEGs (one decodes some 3,000 patches/s)."""
    read_ahead_mb: int = 256
    """Compressed megabytes that each worker reads ahead, beside the windows in use."""
    patience_s: float = 600.0
    """Seconds that storage may be away before the run stops."""
    lr: float = 1e-5
    """Peak learning rate of the encoder's last layer. A choice."""
    lr_projection: float = 1e-4
    """Peak learning rate of the projection, which starts from nothing. A choice."""
    layer_decay: float = 1.0
    """Factor on the rate from each layer to the one before it; 1 for none, 0.75 to 0.9 to change
    early layers less. A choice."""
    checkpoint_every_steps: int = 1000
    """Steps between checkpoints. 0 for the end only."""
    log_every_steps: int = 10
    """Steps between records of loss and speed."""
    watch_every_steps: int = 200
    """Steps between looks at drift, effective rank and EMA distance; 0 for none."""
    probe_patches: int = 512
    """Patches of the fixed probe that drift and rank are measured on."""
    knn_labels: str = ""
    """Table of labelled patches for the k-NN check (columns jpeg, label); empty for none."""
    knn_every_steps: int = 0
    """Steps between k-NN checks; 0 for the start and the end only."""
    knn_neighbours: int = 20
    """Neighbours of the k-NN check. A choice."""
    max_bad_rows: str = "0.1%"
    """How many rows may be unusable (a broken JPEG, NaN in a target) before the run ends, a number
    or a percentage; they are skipped and named."""
    branch: Literal["student", "ema"] = "student"
    """Which encoder is exported: the trained student (the paper, as we read it) or its average."""
    model_name: str = "mstar-patch-encoder"
    """Name in MLflow's model registry; empty to register nothing."""
    seed: int = 0
    """Of the projection's weights, the order of the patches, augmentation and drop_path."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where a run without Ray computes."""
    student: Annotated[StudentConfig, tyro.conf.arg(name="")] = field(default_factory=StudentConfig)
    loss: SelfTaughtLossConfig = field(default_factory=SelfTaughtLossConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(
        default_factory=partial(OptimizerConfig, beta2=0.999, eps=1e-8, warmup_fraction=0.05)
    )
    engine: Annotated[EngineConfig, tyro.conf.arg(name="")] = field(default_factory=EngineConfig)
    group: Annotated[GroupConfig, tyro.conf.arg(name="")] = field(default_factory=GroupConfig)
    tracking: bool = True
    """Log to MLflow (MLFLOW_TRACKING_URI, else a file in --out)."""
    dry_run: bool = False
    """Print the config and what would be trained, then stop."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        check_max_failures(self.max_bad_rows)
        for names, least in ((AT_LEAST_ONE, 1), (NOT_NEGATIVE, 0)):
            for name in names:
                if getattr(self, name) < least:
                    flag = name.replace("_", "-")
                    raise ConfigError(f"--{flag} {getattr(self, name)}: expected {least} or more")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(
                f"--layer-decay {self.layer_decay}: expected a number above 0, up to 1"
            )
        if self.branch not in ("student", "ema"):
            raise ConfigError(f"--branch {self.branch}: expected student or ema")
        self.order  # noqa: B018  it refuses a batch that its lanes do not divide

    @property
    def order(self) -> OrderConfig:
        """The order of the patches."""
        return OrderConfig(
            batch_size=self.batch_patches,
            lanes=self.lanes,
            window_groups=self.window_groups,
            seed=self.seed,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that two attempts of the same run share."""
        settings: dict[str, Any] = to_dict(self)
        settings["student"] = {"drop_path": self.student.drop_path}  # the rest changes no result
        return {k: v for k, v in settings.items() if k not in NOT_IN_THE_FINGERPRINT}

    @property
    def fingerprint(self) -> str:
        """Names what the run computes; equal for attempts that may share checkpoints."""
        return fingerprint(self.identity)
