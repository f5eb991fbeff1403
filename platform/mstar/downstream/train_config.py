"""What a caller can set for the training of one study."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from mstar.data.task_registry import DEFAULT
from mstar.downstream.config import TrialConfig, paper_trial
from mstar.downstream.gene_flags import GeneFlags
from mstar.errors import ConfigError
from mstar.models.heads import head_config, head_spec

_LEFT = "head", "head_options"  # set apart from the other fields of TrialConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialChanges:
    """What differs from the paper's configuration; each field as in `TrialConfig`."""

    lr: float | None = None
    """Learning rate at the start (2e-4)."""
    weight_decay: float | None = None
    """Weight decay (1e-5)."""
    optimizer: Literal["adam", "adamw", "sgd"] | None = None
    """Optimiser (adam)."""
    schedule: Literal["cosine", "constant"] | None = None
    """Course of the learning rate over the epochs (cosine)."""
    epochs: int | None = None
    """Passes over the training part (30)."""
    batch_bags: int | None = None
    """Bags packed into one step (1); 0 packs the whole training part."""
    bucketed: bool | None = None
    """Pack bags of similar length together."""
    accumulate: int | None = None
    """Steps whose gradients are added up (1)."""
    patience: int | None = None
    """Epochs without a better validation score before training ends (0: never)."""
    class_weights: Literal["none", "balanced"] | None = None
    """Weights of the classes in the loss (none)."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Arithmetic of the head (float32)."""
    survival_loss: Literal["nll", "cox"] | None = None
    """Loss of survival tasks (nll; cox for the head cox_linear)."""
    alpha: float | None = None
    """Extra weight of uncensored cases in nll, 0 to 1 (0)."""
    bins: int | None = None
    """Time intervals of nll (4)."""
    max_patches: int | None = None
    """Patches of a bag in training (0: all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainHeadConfig(GeneFlags):
    """Train one head on one task with the features of one encoder, and score it once."""

    task: str
    """Id of the task (`mstar tasks list`)."""
    labels: str
    """Folder of label tables (<task_id>.csv), local or s3://."""
    features: str
    """Label and feature stores of one encoder: mstar=F1,F2; or a store alone."""
    out: str
    """Folder for results: <out>/<task>/<encoder>/<head>/."""
    head: str = "abmil"
    """MIL head: linear, knn, prototype, abmil, abmil_gated, clam_sb, clam_mb, dsmil, transmil,
    transmil_plus or cox_linear; with gene expression snn, mcat, porpoise, motcat or cmta."""
    option: tuple[str, ...] = ()
    """Options of the head, name=value: hidden=256 dropout=0.1."""
    cohort: str = ""
    """Cohort folder whose split registry the task is cut from; empty: the label table says."""
    split: str = ""
    """Name of a further split of the cohort (splits/NAME.csv) in the registry's place."""
    seeds: int = 1
    """Runs with the seeds 1, 2, …: 1 for parity with the paper, 10 for claims."""
    protocol: Literal["honest", "paper-compat"] = "honest"
    """honest = chosen on validation, tested once; paper-compat = as the authors' code: bins over
    the whole file, 50 epochs for classification, chosen on validation and test. It reads high."""
    published_split: bool = False
    """Take the table's own split whatever it leaks; leaking patients are counted and shown."""
    max_missing: float = 0.0
    """Share of the samples (0 to 1) that may lack features; they are left out and counted."""
    registry: str = DEFAULT
    """mstar-97 = the tasks of the paper; mstar-v1 = the older list of 43."""
    own: tuple[str, ...] = ()
    """Tables of your own task rows; <cohort>/tasks.csv is added where there is one."""
    trial: Annotated[TrialChanges, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=TrialChanges
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the head trains."""
    threads: int = 0
    """CPU threads of the head; 0 leaves it to torch."""
    cache_dir: str | None = None
    """Local folder for packed bags; shared memory, or the node's cache, when not given."""
    resamples: int = 1000
    """Bootstrap resamples of patients for the interval in the summary."""
    dry_run: bool = False
    """Print the task, its split and the configuration, then stop."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant before a file is read."""
        for name in ("seeds", "resamples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: expected at least 1")
        if self.split and not self.cohort:
            raise ConfigError("--split: expected --cohort too, the folder that it lies in.")
        if not 0 <= self.max_missing < 1:
            raise ConfigError(f"--max-missing {self.max_missing:g}: expected 0 up to below 1.")
        _ = self.trial_config  # refuses unknown heads and options

    @property
    def trial_config(self) -> TrialConfig:
        """The configuration that is trained."""
        changes = {
            field.name: value
            for field in dataclasses.fields(self.trial)
            if (value := getattr(self.trial, field.name)) is not None
        }
        options = _head_options(self.head, self.option)
        return dataclasses.replace(paper_trial(self.head), head_options=options, **changes)


def _head_options(head: str, words: tuple[str, ...]) -> dict[str, object]:
    """`name=value` words as options of the head's own types."""
    kinds = {f.name: type(f.default) for f in dataclasses.fields(head_spec(head).config)}
    options: dict[str, object] = {}
    for word in words:
        name, mark, text = word.partition("=")
        if not mark:
            raise ConfigError(f"--option {word}: expected name=value, like hidden=256")
        options[name] = _value(word, text, kinds.get(name, str))
    head_config(head, options)
    return options


def _value(word: str, text: str, kind: type) -> object:
    truths = {"true": True, "false": False}
    try:
        return truths[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"--option {word}: expected a value of type {kind.__name__}") from error


assert {f.name for f in dataclasses.fields(TrialChanges)} == {
    f.name for f in dataclasses.fields(TrialConfig) if f.name not in _LEFT
}, "a field of TrialConfig cannot be set from the command line"
