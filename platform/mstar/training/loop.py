"""The training loop of every stage: step, watch, validate, checkpoint, stop.

What a step does is the stage's; when things happen is decided here, and only from the step number,
so that a resumed run does the same at the same steps.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mstar.errors import InterruptedRunError, TrainingError
from mstar.training.sessions import Session, TrainState
from mstar.training.tracker import Tracker

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """When the loop does what besides stepping."""

    num_steps: int
    """Optimiser steps of the whole run."""
    validate_every: int
    """Steps between validations; the last step always validates. 0 for never."""
    checkpoint_every: int
    """Steps between checkpoints; the last step always writes one."""
    log_every: int = 1
    """Steps between log records."""
    patience: int = 0
    """Validations without a new best after which the run ends; 0 for never."""


@dataclass(slots=True, kw_only=True)
class Loop:
    """One run of the loop on one rank.

    step: does optimiser step number `n` and returns its metrics: `loss`, and `grad_norm` if known.
    validate: returns metrics and the one to select on (higher is better), None for no selection.
    write: puts this rank's checkpoint files into a folder.
    on_best: called on every rank when validation has a new best.
    on_log: called with the step and its metrics, on rank 0 only.
    """

    config: LoopConfig
    session: Session
    state: TrainState
    step: Callable[[int], Metrics]
    validate: Callable[[int], tuple[Metrics, float | None]]
    write: Callable[[Path], None]
    on_best: Callable[[int, Metrics], None]
    tracker: Tracker
    on_log: Callable[[int, Metrics], None] = lambda step, metrics: None
    waited: int = 0  # validations since the best
    last: dict[str, float] = field(default_factory=dict)
    _saved: int = -1

    def run(self) -> TrainState:
        """Go on from `state` to the end; returns where it ended.

        Raises:
            TrainingError: a loss is not finite; the checkpoint before it is kept.
        """
        self.waited = int(self.state.extra.get("waited", 0))
        self._saved = self.state.step
        while self.state.step < self.config.num_steps and not self._out_of_patience():
            began_s = time.perf_counter()
            metrics = dict(self.step(self.state.step))
            refuse_nan(self.state.step, metrics)
            metrics["step_s"] = time.perf_counter() - began_s
            self.state = replace(self.state, step=self.state.step + 1)
            self.last |= metrics
            if self.session.rank == 0 and self._due(self.config.log_every):
                self.on_log(self.state.step, metrics)
                self.tracker.log_metrics(metrics, self.state.step)
            if self._due(self.config.validate_every):
                self._validate()
            self._checkpoint_when_due()
        if self._saved != self.state.step:
            self._save(wait=True)
        return self.state

    def _validate(self) -> None:
        metrics, score = self.validate(self.state.step)
        self.last |= metrics
        if self.session.rank == 0:
            self.on_log(self.state.step, metrics)
            self.tracker.log_metrics(metrics, self.state.step)
        if score is None:
            return
        best = self.state.best
        if math.isfinite(score) and (best is None or score > best):
            self.state, self.waited = replace(self.state, best=score), 0
            self.on_best(self.state.step, metrics)
        else:
            self.waited += 1

    def _checkpoint_when_due(self) -> None:
        preempted = self.session.preempted()
        if preempted or self._due(self.config.checkpoint_every):
            self._save(wait=preempted or self.state.step == self.config.num_steps)
        if preempted:
            raise InterruptedRunError(f"the node is taken away after step {self.state.step}")

    def _save(self, *, wait: bool) -> None:
        self._saved = self.state.step
        self.state = replace(self.state, extra={**self.state.extra, "waited": self.waited})
        numbers = {name: value for name, value in self.last.items() if math.isfinite(value)}
        self.session.save(self.write, self.state, numbers, wait=wait)

    def _due(self, every: int) -> bool:
        done = self.state.step
        return bool(every) and (done % every == 0 or done == self.config.num_steps)

    def _out_of_patience(self) -> bool:
        return bool(self.config.patience) and self.waited >= self.config.patience


def refuse_nan(step: int, metrics: Metrics) -> None:
    """Raises TrainingError when the loss, or the gradient that was just applied, is not finite."""
    checked = {"loss": metrics["loss"], "grad_norm": metrics.get("grad_norm", 0.0)}
    for name, value in checked.items():
        if math.isfinite(value):
            continue
        parts = ", ".join(f"{part} {number:.4g}" for part, number in metrics.items())
        raise TrainingError(
            f"step {step}: expected a finite {name}, got {value} ({parts}). The last checkpoint "
            "is kept; lower the learning rate or look at the cases of this step."
        )
