"""The one training loop: one configuration or many over the same packed bags.

    for each epoch, each batch, each configuration still alive: a step
    then all score the selecting part, and `on_epoch` says who goes on

On a CPU configurations are looped: fused into wide matrices their activations leave the cache. On
a GPU those of equal shape take one step (`fused`). Order and dropout depend on (seed, fold, epoch,
step) only, so a configuration gives the same numbers in a population as alone: to the bit where
they are looped, but for rounding where they are fused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mstar.data.task_data import TaskData
from mstar.downstream.bags import PackedBags
from mstar.downstream.config import HONEST, Protocol, TrialConfig
from mstar.downstream.fold_views import FoldView, view_fold
from mstar.downstream.fused import fuse
from mstar.downstream.stream import BagSource, StreamKind, evaluation_batches, training_batches
from mstar.downstream.trainer import Fit, FitResult

HALVED = "stopped by the search"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochScores:
    """How the configurations of a population did in an epoch; NaN for those that had ended."""

    epoch: int
    val_scores: tuple[float, ...]
    val_losses: tuple[float, ...]
    train_losses: tuple[float, ...]
    alive: tuple[bool, ...]


OnEpoch = Callable[[EpochScores], Sequence[bool]]
MakeFit = Callable[[FoldView, BagSource, TrialConfig, int], Fit]


def train_population(
    data: TaskData,
    bags: PackedBags,
    configs: Sequence[TrialConfig],
    *,
    fold: int = 0,
    seed: int = 1,
    protocol: Protocol = HONEST,
    device: str = "cpu",
    on_epoch: OnEpoch | None = None,
    source: BagSource | None = None,
    fused: bool | None = None,
    make_fit: MakeFit = Fit,
) -> list[FitResult]:
    """Train configurations on one fold with one seed; the test part is not looked at.

    Args:
        data: the task.
        bags: its samples' features, in their order.
        configs: what to train.
        fold: position in `data.folds`.
        seed: of weights, order and dropout.
        protocol: what may select.
        device: cpu, cuda, cuda:1 …
        on_epoch: after each epoch, whether each configuration goes on.
        source: of the same bags, to be used again (a GPU then keeps them).
        fused: step equal heads as one (`fused`); by default on a GPU, not on a CPU.
        make_fit: of what is no head with a loss on its logits, its own kind of `Fit`.

    Raises:
        ConfigError: a configuration does not fit the task.
    """
    assert bags.ids == tuple(sample.case_id for sample in data.samples)
    view = view_fold(data, fold, protocol)
    source = source or BagSource(bags, device, data.genes)
    with torch.random.fork_rng():
        settled = [protocol.settled(config, view.training) for config in configs]
        fits = [make_fit(view, source, config, seed) for config in settled]
        epoch = 0
        while any(fit.alive for fit in fits):
            alive = [fit for fit in fits if fit.alive]
            _train_epoch(view, source, alive, epoch, fused)
            _validate(view, source, alive, epoch)
            if on_epoch is not None:
                _ask(on_epoch, epoch, fits, alive)
            epoch += 1
    return [fit.result() for fit in fits]


def _train_epoch(
    view: FoldView,
    source: BagSource,
    fits: Sequence[Fit],
    epoch: int,
    fused: bool | None = None,
) -> None:
    fused = source.device.type == "cuda" if fused is None else fused
    for fit in fits:
        fit.begin_epoch(epoch)
    for kind in dict.fromkeys(fit.kind for fit in fits if fit.trained):
        same = [fit for fit in fits if fit.kind == kind and fit.trained]
        _train_stream(view, source, same, kind, epoch, fused)


def _train_stream(
    view: FoldView,
    source: BagSource,
    fits: Sequence[Fit],
    kind: StreamKind,
    epoch: int,
    fused: bool,
) -> None:
    seed, places = fits[0].seed, view.train.places
    sizes = source.sizes(places, pooled=kind.pooled)
    plan = training_batches(sizes, kind, seed=seed, fold=view.fold, epoch=epoch)
    batches = source.batches(
        places, plan, pooled=kind.pooled, max_patches=kind.max_patches, draw=(seed, epoch)
    )
    steps = fuse(fits) if fused else fits
    for batch in batches:
        for fit in steps:
            fit.step(batch, epoch=epoch, last=batch.step == len(plan) - 1)


def _validate(view: FoldView, source: BagSource, fits: Sequence[Fit], epoch: int) -> None:
    places = view.select.places
    for pooled in (False, True):
        same = [fit for fit in fits if fit.kind.pooled == pooled]
        if not same:
            continue
        plan = evaluation_batches(source.sizes(places, pooled=pooled))
        outputs: list[list[torch.Tensor]] = [[] for _ in same]
        for batch in source.batches(places, plan, pooled=pooled):
            for fit, logits in zip(same, outputs, strict=True):
                logits.append(fit.logits(batch))
        for fit, logits in zip(same, outputs, strict=True):
            fit.end_epoch(epoch, logits)


def _ask(on_epoch: OnEpoch, epoch: int, fits: Sequence[Fit], trained: Sequence[Fit]) -> None:
    nan = float("nan")
    rows = [fit.latest if fit in trained and not fit.failed else None for fit in fits]
    scores = EpochScores(
        epoch=epoch,
        val_scores=tuple(nan if row is None else row.val_score for row in rows),
        val_losses=tuple(nan if row is None else row.val_loss for row in rows),
        train_losses=tuple(nan if row is None else row.train_loss for row in rows),
        alive=tuple(fit.alive for fit in fits),
    )
    for fit, goes_on in zip(fits, on_epoch(scores), strict=True):
        if not goes_on and fit.alive:
            fit.stop(HALVED)
