"""What stage 1 is asked to do. Settings that the paper leaves open say that they are a choice."""

import re
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import tyro

from mstar.config import fingerprint, to_dict
from mstar.data.report_tokens import ReportTokenConfig
from mstar.data.rna.binning import BinningConfig
from mstar.errors import ConfigError
from mstar.losses.contrastive import PAIRS
from mstar.losses.stage1 import LossConfig
from mstar.models.aggregator import AggregatorConfig
from mstar.models.gene_encoder import GeneEncoderConfig
from mstar.models.text_encoder import TextEncoderConfig
from mstar.pretrain.batch_plan import MODALITIES
from mstar.training.engines import EngineConfig
from mstar.training.exit_codes import check_max_failures
from mstar.training.group_config import GroupConfig
from mstar.training.optimizers import OptimizerConfig

# What may differ between two attempts of the same run: how it is run, not what it computes. Cohort
# and features may move; their digests are compared instead (`stage1_resume`).
NOT_IN_THE_FINGERPRINT = (
    *("group", "engine", "out", "tracking", "dry_run", "device", "chunk_cases"),
    *("cohort", "features", "gradient_checkpointing"),
    *("init_from", "old_cohort", "old_features"),  # the encoders' digest is compared instead
)
# Metrics of which more is better; `stage1_validate` names them.
SELECTABLE = re.compile(
    r"mean_recall_at_10|zero_shot_balanced_accuracy"
    r"|(within_)?recall_at_(1|5|10|50)\.(wsi|text|gene)_to_(wsi|text|gene)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage1Config:
    """Stage 1: align slides, reports and gene expression of a cohort's cases."""

    cohort: str
    """Cohort folder, local or s3:// (`mstar cohort build` or `generate`)."""
    features: str
    """Feature store of the cohort's slides (`mstar embed`)."""
    out: str
    """Folder for the encoders, checkpoints, log and MLflow file."""
    init_from: str = ""
    """Output of a finished stage 1 to start from: its encoders, temperature and bins. What that has
    changed on its validation cases is in forgetting.md. Empty: from nothing."""
    old_cohort: str = ""
    """Where the cohort of that run is now; default: where it was."""
    old_features: str = ""
    """Where the features of that run are now; default: where they were."""
    modalities: str = "wsi,text,gene"
    """Which modalities take part, two or three of wsi, text, gene."""
    epochs: int = 50
    """Passes over the training cases. A choice."""
    batch_cases: int = 128
    """Cases that are contrasted with one another, over all workers. A choice."""
    chunk_cases: int = 8
    """Cases of a worker that are computed at once: bounds memory, changes no result but for
    dropout's draws."""
    bag_patches: int = 4096
    """Patches of a case's bag (paper: 4,096); more are sampled anew every epoch."""
    text: str = "dmis-lab/biobert-base-cased-v1.2"
    """Report encoder and its tokenizer: a hub id or a local folder of the BERT family."""
    max_tokens: int = 512
    """Tokens of a report; of longer ones a random window in training, the first in validation."""
    token_dropout: float = 0.0
    """Share of a training report's tokens that are hidden, drawn anew every epoch: against learning
    small cohorts by heart. A choice."""
    num_bins: int = 5
    """Bins of expression; 5 gives scBERT's 7 token ids. A choice."""
    binning: Literal["floor_clip", "quantile"] = "floor_clip"
    """How expression is binned: scBERT's rule, or quantiles of the training cases. A choice."""
    lr: float = 1e-4
    """Peak learning rate of aggregator, gene encoder, projections and temperature. A choice."""
    lr_text: float = 2e-5
    """Peak learning rate of the pretrained report encoder. A choice."""
    initial_scale: float = 1 / 0.07
    """Inverse temperature at the start, learned from there; CLIP's. Encoders that start from
    nothing do better with about 4: at 14 they first learn to make all vectors equal. A choice."""
    min_pairs: int = 2
    """Cases with both members of a pairing that every batch must hold. A choice."""
    min_cancers: int = 2
    """Cancer types with two cases or more that every batch must hold, where the triplet loss is
    on. A choice."""
    val_fraction: float = 0.1
    """Cases held out for validation when the cohort has no split registry with a val part."""
    validate_every_epochs: int = 1
    """Epochs between validations; 0 for none."""
    checkpoint_every_epochs: int = 1
    """Epochs between checkpoints."""
    select_on: str = "mean_recall_at_10"
    """Validation metric (higher is better) that picks the exported encoders and ends the run."""
    patience: int = 10
    """Validations without a new best after which the run ends; 0 for never. A choice."""
    bad_cases: Literal["skip", "refuse"] = "skip"
    """Inputs that cannot be used (no patches, NaN, an empty report, RNA of zeros): left out and
    named, or an error."""
    max_bad_cases: str = "1%"
    """How many cases may have such an input, a number or a percentage."""
    seed: int = 0
    """Of initial weights, batches, bags, windows and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where a run without Ray computes."""
    aggregator: AggregatorConfig = field(default_factory=AggregatorConfig)
    gene: GeneEncoderConfig = field(default_factory=GeneEncoderConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: Annotated[EngineConfig, tyro.conf.arg(name="")] = field(default_factory=EngineConfig)
    group: Annotated[GroupConfig, tyro.conf.arg(name="")] = field(default_factory=GroupConfig)
    gradient_checkpointing: bool = True
    """Recompute the report encoder's layers in the backward pass: less memory, more time."""
    tracking: bool = True
    """Log to MLflow (MLFLOW_TRACKING_URI, else a file in --out)."""
    dry_run: bool = False
    """Print the config and what would be trained, then stop."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        check_max_failures(self.max_bad_cases)
        chosen = self.chosen
        if len(chosen) < 2 or set(chosen) - set(MODALITIES) or len(set(chosen)) < len(chosen):
            raise ConfigError(
                f"--modalities {self.modalities!r}: expected two or three of "
                f"{', '.join(MODALITIES)}, separated by commas"
            )
        for name in ("epochs", "batch_cases", "chunk_cases", "bag_patches"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {getattr(self, name)}: expected at least 1")
        if not 1 <= self.initial_scale <= 100:
            raise ConfigError(f"--initial-scale {self.initial_scale}: expected 1 to 100")
        if not 0 <= self.token_dropout < 1:
            raise ConfigError(
                f"--token-dropout {self.token_dropout}: expected a share from 0 to below 1"
            )
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(
                f"--val-fraction {self.val_fraction}: expected a share from 0 to below 1"
            )
        if SELECTABLE.fullmatch(self.select_on) is None:
            raise ConfigError(
                f"--select-on {self.select_on!r}: expected mean_recall_at_10, "
                "zero_shot_balanced_accuracy, or a recall such as recall_at_5.wsi_to_text or "
                "within_recall_at_1.wsi_to_gene"
            )
        if not any(self.active_loss.weights().values()):
            raise ConfigError(
                f"every loss of {self.modalities} has the weight 0: expected one to train on"
            )

    @property
    def chosen(self) -> tuple[str, ...]:
        """The modalities that take part."""
        return tuple(name.strip() for name in self.modalities.split(","))

    @property
    def on(self) -> frozenset[str]:
        """The modalities that take part, as a set."""
        return frozenset(self.chosen)

    @property
    def active_loss(self) -> LossConfig:
        """The loss without the pairings of modalities that take no part."""
        absent: dict[str, Any] = {
            f"{name}_weight": 0.0 for name, pair in PAIRS.items() if not set(pair) <= self.on
        }
        return replace(self.loss, **absent)

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that two attempts of the same run share."""
        settings = to_dict(self)
        return {k: v for k, v in settings.items() if k not in NOT_IN_THE_FINGERPRINT}

    @property
    def fingerprint(self) -> str:
        """Names what the run computes; equal for attempts that may share checkpoints."""
        return fingerprint(self.identity)

    @property
    def tokens(self) -> ReportTokenConfig:
        """How reports are cut."""
        return ReportTokenConfig(tokenizer=self.text, max_tokens=self.max_tokens, trim=True)

    @property
    def bins(self) -> BinningConfig:
        """How expression is binned, before quantile edges are fitted."""
        return BinningConfig(method=self.binning, num_bins=self.num_bins)

    @property
    def text_encoder(self) -> TextEncoderConfig:
        """The report encoder."""
        return TextEncoderConfig(
            name=self.text,
            output_dim=self.aggregator.dim,
            gradient_checkpointing=self.gradient_checkpointing,
        )
