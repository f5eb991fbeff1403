"""What a head is trained to say, and how its logits become scores: one class per kind of target.

CrossEntropy    logits per class           scores: probabilities
DiscreteTime    logits per time interval   score: minus the summed survival, higher is worse
Cox             one log hazard ratio       score: itself

What is judged by measures of each sample (`report_generation`) brings its own.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mstar.downstream.config import CLASSIFICATION, TrialConfig
from mstar.downstream.fold_views import FoldView, Part
from mstar.errors import ConfigError
from mstar.losses.classification import class_weights, cross_entropy
from mstar.losses.survival import bin_edges, cox_nll, discrete_nll, discrete_risk, time_bins
from mstar.models.heads import head_spec

SCORES = ("softmax", "discrete", "cox", "measures")


@runtime_checkable
class Objective(Protocol):
    """The targets of one part, and the loss on some of its samples."""

    @property
    def scores(self) -> str:
        """How logits become scores: one of SCORES."""

    @property
    def num_outputs(self) -> int:
        """Logits of a bag."""

    def labels(self, rows: Int64[Tensor, " bag"]) -> Int64[Tensor, "bag ..."] | None:
        """Codes for heads that use them in training, or the tokens of texts."""

    def loss(
        self, logits: Float[Tensor, "bag out"], rows: Int64[Tensor, " bag"]
    ) -> Float[Tensor, ""]:
        """The mean loss of some samples of the part."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CrossEntropy:
    """Classification."""

    codes: Int64[Tensor, " sample"]
    weights: Float[Tensor, " class"] | None
    num_outputs: int
    scores: str = "softmax"

    def labels(self, rows: Int64[Tensor, " bag"]) -> Int64[Tensor, " bag"]:
        """The class codes."""
        return self.codes[rows]

    def loss(
        self, logits: Float[Tensor, "bag out"], rows: Int64[Tensor, " bag"]
    ) -> Float[Tensor, ""]:
        """Weighted cross-entropy."""
        return cross_entropy(logits, self.codes[rows], self.weights)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DiscreteTime:
    """Survival in discrete time."""

    bins: Int64[Tensor, " sample"]
    events: Bool[Tensor, " sample"]
    num_outputs: int
    alpha: float
    scores: str = "discrete"

    def labels(self, rows: Int64[Tensor, " bag"]) -> None:
        """None: a time interval is not a class of patches."""

    def loss(
        self, logits: Float[Tensor, "bag out"], rows: Int64[Tensor, " bag"]
    ) -> Float[Tensor, ""]:
        """Discrete-time negative log-likelihood."""
        return discrete_nll(logits, self.bins[rows], self.events[rows], self.alpha)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cox:
    """Survival by the order of events alone."""

    times: Float[Tensor, " sample"]
    events: Bool[Tensor, " sample"]
    num_outputs: int = 1
    scores: str = "cox"

    def labels(self, rows: Int64[Tensor, " bag"]) -> None:
        """None: there are no classes."""

    def loss(
        self, logits: Float[Tensor, "bag out"], rows: Int64[Tensor, " bag"]
    ) -> Float[Tensor, ""]:
        """Partial likelihood among the bags at hand."""
        return cox_nll(logits[:, 0], self.times[rows], self.events[rows])


def make_objective(
    view: FoldView, part: Part, config: TrialConfig, device: torch.device
) -> Objective:
    """The objective of a configuration on one part of a fold.

    Raises:
        ConfigError: head, loss and task do not go together.
    """
    check_config(view, config)
    if view.training == CLASSIFICATION:
        codes = torch.from_numpy(view.train.labels)
        weights = class_weights(codes, view.num_classes, config.class_weights)
        return CrossEntropy(
            codes=torch.from_numpy(part.labels).to(device),
            weights=None if weights is None else weights.to(device),
            num_outputs=view.num_classes,
        )
    events = torch.from_numpy(part.events).to(device)
    if config.survival_loss == "cox":
        return Cox(times=torch.from_numpy(part.times).to(device), events=events)
    edges = bin_edges(view.bin_times, view.bin_events, config.bins)
    bins = torch.from_numpy(time_bins(part.times, edges)).to(device)
    return DiscreteTime(bins=bins, events=events, num_outputs=config.bins, alpha=config.alpha)


def check_config(view: FoldView, config: TrialConfig) -> None:
    """Raises ConfigError when head, loss and task do not go together."""
    spec = head_spec(config.head)
    if view.training not in spec.kinds:
        raise ConfigError(
            f"head {config.head}: it serves {' and '.join(spec.kinds)}, but {view.task_id} is a "
            f"{view.training} task. Choose another head for it."
        )
    if view.training == CLASSIFICATION:
        return
    if config.head == "cox_linear" and config.survival_loss != "cox":
        raise ConfigError("head cox_linear gives one risk: set survival_loss=cox for it.")
    if config.survival_loss == "cox" and config.batch_bags == 1:
        raise ConfigError(
            "survival_loss=cox orders the cases of a step: expected batch_bags of 2 or more, or 0 "
            "for the whole training part, got 1."
        )


def scores_of(logits: Float[Tensor, "bag out"], scores: str) -> Float[np.ndarray, "bag score"]:
    """Logits as the numbers of prediction files: class probabilities, one risk, or measures."""
    assert scores in SCORES
    wide = logits.detach().float()
    if scores == "softmax":
        found = wide.softmax(1)
    elif scores == "discrete":
        found = discrete_risk(wide)[:, None]
    else:
        found = wide
    return found.cpu().numpy()
