"""The work of a sweep in pieces that travel: a piece is one Tune trial, an answer what it gave.

A piece trains a population of configurations of one study on some folds and seeds, or concludes a
study, or scores an external task with the models of an internal one, or runs a study of a family
(`families`) whole. How a study is cut into pieces
changes no number: a configuration gives the same in a population as alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mstar.downstream.config import Study, TrialConfig

Work = Literal["fit", "conclude", "external", "family"]
Run = tuple[int, int]  # position of the fold, seed
MAX_ATTEMPTS = 2  # a worker that dies may have had bad luck, once


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Work for one worker.

    data_key: which task with which features.
    trials, configs: numbers and configurations of the population.
    runs: folds and seeds to train on; of a conclusion: all of them.
    keys: of each configuration on each run, the name of the fit.
    save: keep the trained heads: one of them may win.
    conclude: after training, choose the first of the best and score the test part: nothing else of
        the study is left to train.
    num_trials: that competed in the study.
    models_of: of an external task, the study whose models are tested.
    cost: for the order of work.
    attempt: how often it was begun before.
    """

    study: Study
    work: Work
    data_key: str
    trials: tuple[int, ...] = ()
    configs: tuple[TrialConfig, ...] = ()
    runs: tuple[Run, ...] = ()
    keys: tuple[tuple[str, ...], ...] = ()
    save: bool = False
    conclude: bool = False
    num_trials: int = 0
    models_of: Study | None = None
    cost: float = 0.0
    attempt: int = 0

    @property
    def name(self) -> str:
        """For logs."""
        if self.work != "fit":
            return f"{self.study.key} {self.work}"
        return f"{self.study.key} {len(self.configs)} configs x {len(self.runs)} runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRecord:
    """What is remembered of one configuration on one fold with one seed.

    score: best validation score; None when it failed.
    history: per epoch: training loss, validation loss, validation score; None: not finite.
    failed: why there is no model.
    raised: it failed by an error rather than by diverging; a rerun tries again.
    """

    key: str
    trial: int
    fold: int
    seed: int
    score: float | None
    best_epoch: int = -1
    history: tuple[tuple[float | None, float | None, float | None], ...] = ()
    seconds: float = 0.0
    stopped: str = ""
    failed: str = ""
    raised: bool = False

    @classmethod
    def parse(cls, found: Mapping[str, Any]) -> "FitRecord":
        """From a line of the journal."""
        history = tuple((row[0], row[1], row[2]) for row in found["history"])
        return cls(**{**found, "history": history})


@dataclass(frozen=True, slots=True, kw_only=True)
class Concluded:
    """A study that is done.

    config: the winner's, as it was run.
    mean_score: its validation score over folds and seeds.
    predictions: part → file, below the study's folder; models and figures likewise.
    scores: name → value of the winner on test and external parts, a mean over folds and seeds.
    facts: digests, sizes and what else tags are made of.
    """

    folder: str
    trial: int
    config: Mapping[str, Any]
    mean_score: float | None
    predictions: Mapping[str, str]
    models: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, found: Mapping[str, Any]) -> "Concluded":
        """From a line of the journal."""
        return cls(
            **{**found, "models": tuple(found["models"]), "figures": tuple(found["figures"])}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a piece.

    failed: why the piece as a whole could not be done; its fits up to then are kept.
    traceback: for the log.
    transient: trying again may help.
    """

    fits: tuple[FitRecord, ...] = ()
    concluded: Concluded | None = None
    failed: str = ""
    traceback: str = ""
    transient: bool = False


def cut_round(
    missing: Sequence[tuple[int, Run]], fit_costs: Sequence[float], target: float
) -> list[tuple[tuple[int, ...], tuple[Run, ...]]]:
    """Cut the fits of a round into pieces of about a cost: (positions of configurations, runs).

    Runs are dealt out first, whole populations each, since a population shares its stream of bags;
    a population is cut only when it is more than a piece on a single run.

    Args:
        missing: (position of the configuration in the round, run) of each fit to do.
        fit_costs: of one fit of each configuration of the round.
        target: cost of a piece; a single fit may be more.
    """
    by_run: dict[Run, list[int]] = {}
    for at, run in missing:
        by_run.setdefault(run, []).append(at)
    groups: dict[tuple[int, ...], list[Run]] = {}
    for run, positions in by_run.items():
        for group in _filled(positions, [fit_costs[at] for at in positions], target):
            groups.setdefault(group, []).append(run)
    pieces = []
    for group, runs in groups.items():
        cost = sum(fit_costs[at] for at in group)
        pieces += [(group, part) for part in _filled(runs, [cost] * len(runs), target)]
    return pieces


def _filled(items: Sequence[Any], costs: Sequence[float], target: float) -> list[tuple[Any, ...]]:
    """Neighbours joined, as many as fit into the target, evenly."""
    total = sum(costs)
    count = min(len(items), max(1, -(-total // target) if target > 0 else len(items)))
    share = total / count
    parts: list[list[Any]] = [[]]
    spent = 0.0
    for item, cost in zip(items, costs, strict=True):
        if parts[-1] and len(parts) < count and spent + cost / 2 > share * len(parts):
            parts.append([])
        parts[-1].append(item)
        spent += cost
    return [tuple(part) for part in parts]
