"""What is trained and how it is judged: the study, one configuration, and the protocol.

A study is one task with the features of one encoder and one head. Configurations of a study compete
on one validation score, and only there. The protocol says what may be looked at when.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mstar.errors import ConfigError
from mstar.storage.ids import slide_id_problem

CLASSIFICATION, SURVIVAL = "classification", "survival"
KINDS = {
    "classification": CLASSIFICATION,
    "ordinal": CLASSIFICATION,
    "survival": SURVIVAL,
    "fusion_survival": SURVIVAL,
}
"""How each kind of task is trained; the others are run as `mstar.downstream.families` says."""

SELECTION_METRICS = {
    CLASSIFICATION: "macro_auc",
    SURVIVAL: "c_index",
    "report_generation": "bleu_4",
}
"""The validation score of each: higher is better, never bootstrapped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One task, the features of one encoder, one head."""

    task_id: str
    encoder: str
    """Name that the features go by in tables and paths."""
    head: str

    def __post_init__(self) -> None:
        """Refuses names that cannot be folders."""
        for name in (self.task_id, self.encoder, self.head):
            problem = slide_id_problem(name) or ("it holds a slash" if "/" in name else None)
            if problem:
                raise ConfigError(f"study name {name!r}: {problem}. Use letters, digits, - and _.")

    @property
    def key(self) -> str:
        """The name of the study in tables, and its folder below the output."""
        return f"{self.task_id}/{self.encoder}/{self.head}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialConfig:
    """One configuration; the defaults are the paper's, which serve every task."""

    head: str = "abmil"
    """Name in `mstar.models.heads.HEADS`."""
    head_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the head that differ from its own defaults."""
    lr: float = 2e-4
    """Learning rate at the start."""
    weight_decay: float = 1e-5
    """Weight decay, as the optimiser understands it."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """adam adds the decay to the gradient, as the paper's; adamw takes it from the weights."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """cosine falls to 0 over `epochs`, one step an epoch."""
    epochs: int = 30
    """Passes over the training part; the length of the cosine too."""
    batch_bags: int = 1
    """Bags packed into one step, never padded; 0 packs the whole training part."""
    bucketed: bool = False
    """Pack bags of similar length together: steps of more even size, a less random order."""
    accumulate: int = 1
    """Steps whose gradients are added up before the weights change."""
    patience: int = 0
    """Epochs without a better validation score before training ends; 0 never ends early."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced weighs each class by the inverse of its share of the training part."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the head; bfloat16 is autocast, weights stay float32."""
    survival_loss: Literal["nll", "cox"] = "nll"
    """nll: discrete time, as the paper. cox: partial likelihood among the bags of a step."""
    alpha: float = 0.0
    """Extra weight of the uncensored cases in nll, 0 to 1."""
    bins: int = 4
    """Time intervals of nll, cut at quantiles of the event times."""
    max_patches: int = 0
    """Patches of a bag in training, drawn anew each epoch; 0 takes all. Evaluation takes all."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        at_least = {"epochs": 1, "accumulate": 1, "bins": 2}
        for name in ("epochs", "accumulate", "bins", "batch_bags", "patience", "max_patches"):
            value, least = getattr(self, name), at_least.get(name, 0)
            if value < least:
                raise ConfigError(f"{name} {value}: expected at least {least}")
        if not self.lr > 0 or not self.weight_decay >= 0:
            raise ConfigError(
                f"lr {self.lr}, weight_decay {self.weight_decay}: expected lr above 0 and a decay "
                "of 0 or more"
            )
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha {self.alpha}: expected 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What training and selection may look at, and how numbers are reported."""

    name: Literal["honest", "paper-compat"]
    bins_from: Literal["train", "all"]
    """Whose event times cut the survival bins: all means that test times leak into training."""
    selection: tuple[str, ...]
    """Parts that choose epoch and configuration. The authors' code takes both for survival, and the
    test fold where it cross-validates."""
    classification_epochs: int
    """Epochs of classification tasks, whatever the configuration says; 0 leaves it."""
    classification_patience: int
    """Patience of classification tasks, whatever the configuration says; 0 leaves it."""
    interval: Literal["percentile", "normal"]
    """How results pages make intervals: of bootstrap percentiles, or mean ± 1.96 standard
    deviations."""
    warning: str
    """Why its numbers are not comparable; empty where they are."""

    def settled(self, config: TrialConfig, training: str) -> TrialConfig:
        """The configuration as this protocol runs it."""
        if training != CLASSIFICATION:
            return config
        return replace(
            config,
            epochs=self.classification_epochs or config.epochs,
            patience=self.classification_patience or config.patience,
        )


HONEST = Protocol(
    name="honest",
    bins_from="train",
    selection=("val",),
    classification_epochs=0,
    classification_patience=0,
    interval="percentile",
    warning="",
)
PAPER_COMPAT = Protocol(
    name="paper-compat",
    bins_from="all",
    selection=("val", "test"),
    classification_epochs=50,
    classification_patience=10,
    interval="normal",
    warning="paper-compat: chosen on validation and test, survival bins cut at test times too, so "
    "the number reads high",
)
PROTOCOLS = {protocol.name: protocol for protocol in (HONEST, PAPER_COMPAT)}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name."""
    if name not in PROTOCOLS:
        raise ConfigError(f"--protocol {name}: expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def training_kind(task_kind: str) -> str:
    """How tasks of a kind are trained."""
    if task_kind not in KINDS:
        raise ConfigError(
            f"tasks of kind {task_kind} have no head to train: expected one of "
            f"{', '.join(KINDS)}. `mstar sweep` runs the others."
        )
    return KINDS[task_kind]


POOLED_HEADS = ("linear", "cox_linear", "knn", "prototype", "snn")
"""Heads that see the mean of a bag at most: they are given the means, made once."""


def paper_trial(head: str) -> TrialConfig:
    """The one fixed configuration of a head: the paper's, where the head can be trained so.

    The partial likelihood needs many cases in a step, so Cox's linear model takes the whole
    training part at once, and steps that are longer and more.
    """
    if head == "cox_linear":
        return TrialConfig(
            head=head, survival_loss="cox", batch_bags=0, lr=1e-2, weight_decay=1e-3, epochs=100
        )
    return TrialConfig(head=head)
