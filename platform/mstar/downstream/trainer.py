"""One configuration in training: its head, its optimiser, and the best of it so far.

The loop over bags is in `population`; this is what happens at each of its steps. The paper's
settings (mSTAR, Methods: downstream tasks): Adam, a cosine over the epochs, one bag a step, the
model best on validation is kept; ties go to the earlier epoch.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mstar.downstream.config import SELECTION_METRICS, TrialConfig
from mstar.downstream.fold_views import FoldView
from mstar.downstream.objectives import Objective, make_objective, scores_of
from mstar.downstream.statistics.metrics import value_of
from mstar.downstream.stream import BagSource, Batch, StreamKind
from mstar.errors import ConfigError, TrainingError
from mstar.models.heads import (
    FittedHead,
    GeneHead,
    GeneLayout,
    HeadOutput,
    build_head,
    head_spec,
)
from mstar.training.seeds import reseed

SGD_MOMENTUM = 0.9
LOWEST = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRow:
    """One epoch of a configuration."""

    epoch: int
    train_loss: float
    val_loss: float
    val_score: float
    lr: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitResult:
    """A trained configuration.

    best_epoch: by the validation score, the earliest of equal ones.
    best_state: the head's tensors then, on the CPU; empty when it failed.
    select_scores: what it said about the selecting part then.
    genes: what a head that reads genes was built for.
    stopped: why it ended before its last epoch; empty when it did not.
    failed: why there is no model; empty when there is one.
    """

    config: TrialConfig
    fold: str
    seed: int
    history: tuple[EpochRow, ...]
    best_epoch: int
    best_score: float
    best_state: dict[str, Tensor]
    select_scores: Float[np.ndarray, "sample score"]
    num_outputs: int
    input_dim: int
    scores: str
    genes: GeneLayout | None = None
    stopped: str = ""
    failed: str = ""
    seconds: float = 0.0


@dataclass(slots=True, kw_only=True)
class _Best:
    epoch: int = -1
    score: float = LOWEST
    state: dict[str, Tensor] = field(default_factory=dict)
    select_scores: np.ndarray = field(default_factory=lambda: np.empty((0, 1), np.float32))


class Fit:
    """One configuration while it trains on one fold with one seed."""

    def __init__(self, view: FoldView, source: BagSource, config: TrialConfig, seed: int) -> None:
        """Draw the head's weights by (seed, fold): equal for equal heads."""
        self.config, self.seed = config, seed
        self.kind = StreamKind.of(config)
        self._view, self._source = view, source
        self._objective, self._select = self._objectives()
        self.head = self._make_head()
        self.trained = self._is_trained()
        self._optimizer = _make_optimizer(self.head, config) if self.trained else None
        self._history: list[EpochRow] = []
        self._best = _Best()
        self._loss = torch.zeros((), device=source.device)
        self._num_bags = self._pending = 0
        self._seconds = 0.0
        self.stopped = self.failed = ""

    def _objectives(self) -> tuple[Objective, Objective]:
        """Of the training and of the selecting part."""
        view, device = self._view, self._source.device
        train, select = (
            make_objective(view, part, self.config, device) for part in (view.train, view.select)
        )
        return train, select

    def _make_head(self) -> nn.Module:
        """With first weights, where the bags are."""
        outputs = self._objective.num_outputs
        return _make_head(self._view, self.config, self.seed, self._source, outputs)

    def _is_trained(self) -> bool:
        """By gradient, rather than fitted at once."""
        return head_spec(self.config.head).trained

    @property
    def alive(self) -> bool:
        """Whether it goes on to another epoch."""
        last = self.config.epochs if self.trained else 1
        return not (self.stopped or self.failed) and len(self._history) < last

    @property
    def latest(self) -> EpochRow | None:
        """Its last epoch."""
        return self._history[-1] if self._history else None

    def stop(self, reason: str) -> None:
        """End before the last epoch."""
        self.stopped = self.stopped or reason

    def begin_epoch(self, epoch: int) -> None:
        """Set the learning rate; a head without gradients looks at its training bags."""
        self._loss.zero_()
        self._num_bags = 0
        self.head.train()
        if self._optimizer is None:
            self._fit_at_once()
            return
        rate = self.config.lr
        if self.config.schedule == "cosine":
            rate *= 0.5 * (1 + np.cos(np.pi * epoch / self.config.epochs))
        for group in self._optimizer.param_groups:
            group["lr"] = float(rate)

    def step(self, batch: Batch, *, epoch: int, last: bool) -> None:
        """Learn from a batch; `last` ends the epoch, so that no gradient is left over."""
        if self._optimizer is None or self.failed:
            return
        began_s = time.perf_counter()
        self.reseed_step(epoch, batch)
        rows = batch.rows.to(self._source.device)
        with self.precision():
            output = batch.through(self.head, self._objective.labels(rows))
            loss = self.bag_loss(output, rows)
            if output.extra_loss is not None:
                loss = loss + output.extra_loss
        loss.backward()  # type: ignore[no-untyped-call]
        self.learn(loss, len(rows), time.perf_counter() - began_s, last=last)

    def reseed_step(self, epoch: int, batch: Batch) -> None:
        """Dropout is drawn by place alone: nobody else in the population can shift it."""
        reseed("step", self.seed, self._view.fold, epoch, batch.step)

    def loss_of(
        self, logits: Float[Tensor, "bag ..."], rows: Int64[Tensor, " bag"]
    ) -> Float[Tensor, ""]:
        """The loss of some training samples."""
        return self._objective.loss(logits, rows)

    def bag_loss(self, output: HeadOutput, rows: Int64[Tensor, " bag"]) -> Float[Tensor, ""]:
        """Of bags in chunks: the mean of their chunks' losses, where a bag has a loss by itself."""
        if output.chunks is None or self._objective.scores == "cox":
            return self.loss_of(output.logits, rows)
        losses = [
            self.loss_of(chunks, row.expand(len(chunks)))
            for chunks, row in zip(output.chunks, rows, strict=True)
        ]
        return torch.stack(losses).mean()

    def learn(self, loss: Float[Tensor, ""], num_bags: int, seconds: float, *, last: bool) -> None:
        """Use the gradients that are there."""
        began_s = time.perf_counter()
        self._loss += loss.detach() * num_bags
        self._num_bags += num_bags
        self._pending += 1
        if self._pending == self.config.accumulate or last:
            self._update()
        self._seconds += seconds + time.perf_counter() - began_s

    def end_epoch(self, epoch: int, outputs: Sequence[Float[Tensor, "bag out"]]) -> None:
        """Score the selecting part and keep the model when it is the best so far."""
        logits = torch.cat(list(outputs)).float()
        train_loss = float(self._loss) / max(1, self._num_bags)
        if not (np.isfinite(train_loss) and bool(torch.isfinite(logits).all())):
            self.failed = (
                f"epoch {epoch + 1}: the loss is not finite. Lower lr, or use precision=float32."
            )
            return
        every = torch.arange(len(logits), device=logits.device)
        scores = scores_of(logits, self._select.scores)
        row = EpochRow(
            epoch=epoch,
            train_loss=train_loss,
            val_loss=float(self._select.loss(logits, every)),
            val_score=self._score(scores),
            lr=0.0 if self._optimizer is None else self._optimizer.param_groups[0]["lr"],
        )
        self._history.append(row)
        if row.val_score > self._best.score:
            state = {name: t.detach().cpu().clone() for name, t in self.head.state_dict().items()}
            self._best = _Best(epoch=epoch, score=row.val_score, state=state, select_scores=scores)
        elif self.config.patience and epoch - self._best.epoch >= self.config.patience:
            self.stop(f"no better validation score for {self.config.patience} epochs")

    def logits(self, batch: Batch) -> Float[Tensor, "bag out"]:
        """What the head says about a batch, as it is now."""
        began_s = time.perf_counter()
        with torch.no_grad(), self.precision():
            logits: Tensor = batch.through(self.head.eval()).logits
        self._seconds += time.perf_counter() - began_s
        return logits

    def result(self) -> FitResult:
        """What came of it."""
        return FitResult(
            config=self.config,
            fold=self._view.fold,
            seed=self.seed,
            history=tuple(self._history),
            best_epoch=self._best.epoch,
            best_score=self._best.score,
            best_state=self._best.state,
            select_scores=self._best.select_scores,
            num_outputs=self._objective.num_outputs,
            input_dim=self._source.dim,
            scores=self._objective.scores,
            genes=self._source.layout if isinstance(self.head, GeneHead) else None,
            stopped=self.stopped,
            failed=self.failed,
            seconds=round(self._seconds, 3),
        )

    def _update(self) -> None:
        assert self._optimizer is not None
        if self._pending > 1:  # the mean of the steps, whatever their number
            for group in self._optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad /= self._pending
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._pending = 0

    def _fit_at_once(self) -> None:
        assert isinstance(self.head, FittedHead)
        means = self._source.means()[torch.from_numpy(self._view.train.places)]
        labels = torch.from_numpy(self._view.train.labels).to(means.device)
        self.head.fit(means, torch.arange(len(means) + 1), labels)

    def _score(self, scores: Float[np.ndarray, "sample score"]) -> float:
        metric = SELECTION_METRICS[self._view.training]
        value = value_of(metric, self._view.select.evaluated(scores, self._view.training))
        if np.isnan(value):
            raise TrainingError(
                f"task {self._view.task_id}, fold {self._view.fold}: {metric} of "
                f"{self._view.select.name} is undefined: expected two classes, or comparable "
                "survival times, among its samples. Use another split."
            )
        return value

    def precision(self) -> torch.autocast:
        """Autocast, where the configuration asks for it."""
        on = self.config.precision == "bfloat16"
        return torch.autocast(self._source.device.type, torch.bfloat16, enabled=on)


def _make_head(
    view: FoldView, config: TrialConfig, seed: int, source: BagSource, num_outputs: int
) -> nn.Module:
    reseed("weights", seed, view.fold)
    head = build_head(
        config.head,
        config.head_options,
        input_dim=source.dim,
        num_outputs=num_outputs,
        genes=source.layout,
    ).to(source.device)
    if isinstance(head, GeneHead):
        head.learn_genes(source.genes_at(view.train.places))
    return head


def _make_optimizer(head: nn.Module, config: TrialConfig) -> torch.optim.Optimizer:
    parameters = [p for p in head.parameters() if p.requires_grad]
    rate, decay = config.lr, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, rate, momentum=SGD_MOMENTUM, weight_decay=decay, fused=True
        )
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, rate, weight_decay=decay, fused=True)
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, rate, weight_decay=decay, fused=True)
    raise ConfigError(f"optimizer {config.optimizer}: expected adam, adamw or sgd")
