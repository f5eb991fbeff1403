"""One study of a sweep while it is worked on: rounds, pieces, what is missing, what comes next.

It is told of finished fits, from workers or from the journal of an earlier run, and says which
pieces can be worked on. All of it is plain state in the driver; no work is done here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from mstar.config import fingerprint
from mstar.downstream.config import Protocol, Study, TrialConfig
from mstar.downstream.pieces import (
    Answer,
    Concluded,
    FitRecord,
    Piece,
    Run,
    cut_round,
)
from mstar.downstream.search import FAILED, Round, StudySearch
from mstar.downstream.spaces import Space

_EVERY_EPOCH = 0.3  # of the cost of an epoch: what validation and bookkeeping take


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """A study that is to be run.

    data_key: which task with which features.
    settings: fingerprint of all that decides a fit besides its configuration, fold and seed.
    folds: names; seeds: of weights, order and dropout.
    size: of the features, for the cost of an epoch.
    budgets: epochs of the rounds, as the protocol has them.
    samples: configurations, in the space's place; 0 leaves that.
    models_of: of an external task: the study whose models are tested.
    family: kind of task that is run as a family (`families`), whole; empty: heads are trained.
    """

    study: Study
    data_key: str
    settings: str
    folds: tuple[str, ...]
    seeds: tuple[int, ...]
    size: float
    protocol: Protocol
    space: Space
    budgets: tuple[int, ...]
    samples: int = 0
    models_of: Study | None = None
    family: str = ""

    @property
    def whole(self) -> bool:
        """Whether it is one piece of work, without configurations that compete."""
        return self.models_of is not None or bool(self.family)

    @property
    def digest(self) -> str:
        """Of all that decides who wins."""
        parts = [self.settings, self.space, self.budgets, self.samples, self.seeds, self.models_of]
        family = [self.family] if self.family else []
        return fingerprint([*parts, self.folds, self.protocol, *family])

    @property
    def runs(self) -> tuple[Run, ...]:
        """Folds × seeds."""
        return tuple(product(range(len(self.folds)), self.seeds))

    def fit_key(self, config: TrialConfig, run: Run) -> str:
        """The name of a fit: equal names mean equal fits."""
        return fingerprint([self.settings, config, self.folds[run[0]], run[1], self.protocol.name])


class StudyRun:
    """The state of one study."""

    def __init__(
        self,
        plan: StudyPlan,
        *,
        fits: Mapping[str, FitRecord],
        concluded: Concluded | None = None,
        concluded_digest: str = "",
    ) -> None:
        """Go on from what the journal holds of it."""
        self.plan = plan
        self.search = StudySearch(
            plan.space,
            head=plan.study.head,
            key=plan.study.key,
            budgets=plan.budgets,
            samples=plan.samples,
        )
        self.concluded = concluded
        self.failed = ""
        self.traceback = ""
        self.found: dict[str, FitRecord] = {}
        self.by_trial: dict[int, list[FitRecord]] = {}
        self._fits = dict(fits)
        self._round: Round | None = None
        self._round_keys: list[list[str]] = []  # of each configuration, over the runs
        self._doomed: list[str] = []
        self.total_cost = self._total_cost()
        self.spent = 0.0
        self.waiting_for = plan.models_of
        if concluded is not None and concluded_digest != plan.digest:
            self.concluded = None
            self.failed = (
                "it was concluded with other labels, features, seeds or another space before, and "
                "its test part is scored once. Choose another --out."
            )
        self._advance()
        self._doomed.clear()  # an earlier run's

    @property
    def done(self) -> bool:
        """Whether nothing is left to do, for whatever reason."""
        return bool(self.failed) or self.concluded is not None

    @property
    def raised(self) -> bool:
        """Whether an error, rather than a loss that diverged, ended a fit."""
        return any(fit.raised for fit in self._fits.values())

    @property
    def num_failed_trials(self) -> int:
        """Trials that have no model."""
        return sum(end.score == FAILED for end in self.search.ended.values())

    @property
    def cost_left(self) -> float:
        """About how much work is left; the order of work goes by it."""
        return max(0.0, self.total_cost - self.spent)

    def pieces(self, target: float) -> list[Piece]:
        """All that can be worked on now, in pieces of about a cost."""
        if self.done:
            return []
        if self.plan.whole:
            work = "family" if self.plan.family else "external"
            return [] if self.waiting_for else [self._piece(work, cost=self.total_cost)]
        if self._round is None:
            return [self._conclusion()]
        pieces = self._round_pieces(self._round, target)
        if len(pieces) == 1 and self._is_last(pieces[0]):
            pieces = [replace(pieces[0], conclude=True, num_trials=self.search.samples)]
        return pieces

    def take(self, piece: Piece, answer: Answer) -> None:
        """What a worker says."""
        self.spent += piece.cost
        for fit in answer.fits:
            self._fits[fit.key] = fit
        if answer.failed:
            self.fail(answer.failed, answer.traceback)
        if answer.concluded is not None:
            self._advance()
            self.concluded = answer.concluded
        self._advance()

    def fail(self, reason: str, traceback: str = "") -> None:
        """The study cannot be finished; the first reason stays."""
        self.failed, self.traceback = self.failed or reason, self.traceback or traceback

    def useless_fits(self) -> list[str]:
        """Keys of saved heads that can no longer win; told once."""
        doomed, self._doomed = self._doomed, []
        return doomed

    def _advance(self) -> None:
        """Past all rounds that are known already."""
        if self.plan.whole or self.failed:
            return
        while True:
            if self._round is None:
                self._open_round()
            if self._round is None or self._missing():
                break
            self._end_round(self._round)
            self._round = None
        if self._round is None and self.search.best is None and self.concluded is None:
            self.fail(self._why_none())

    def _open_round(self) -> None:
        self._round = self.search.next_round()
        configs = self._round.configs if self._round else ()
        self._round_keys = [self._keys(config) for config in configs]

    def _end_round(self, round_: Round) -> None:
        for trial, keys in zip(round_.trials, self._round_keys, strict=True):
            self.by_trial[trial] = [self._fits[key] for key in keys]
        scores = [self._score(self.by_trial[trial]) for trial in round_.trials]
        before = self.search.best
        self.search.tell(scores)
        if round_.full:
            best = self.search.best
            losers = [before] if before is not None and before is not best else []
            losers += [self.search.ended[t] for t in round_.trials if self.search.ended[t] != best]
            self._doomed += [key for end in losers for key in self._keys(end.config)]

    def _round_pieces(self, round_: Round, target: float) -> list[Piece]:
        costs = [self._fit_cost(config) for config in round_.configs]
        pieces = []
        for positions, runs in cut_round(self._missing(), costs, target):
            configs = tuple(round_.configs[at] for at in positions)
            places = [self.plan.runs.index(run) for run in runs]
            keys = tuple(tuple(self._round_keys[at][place] for place in places) for at in positions)
            cost = sum(costs[at] for at in positions) * len(runs)
            piece = self._piece("fit", cost=cost)
            trials = tuple(round_.trials[at] for at in positions)
            pieces.append(
                replace(
                    piece, trials=trials, configs=configs, runs=runs, keys=keys, save=round_.full
                )
            )
        return pieces

    def _is_last(self, piece: Piece) -> bool:
        """Whether the piece is all of the study's one round, so that its winner is the study's."""
        alone = self.search.samples == len(piece.trials) and len(self.plan.budgets) == 1
        return alone and len(piece.runs) == len(self.plan.runs)

    def _conclusion(self) -> Piece:
        best = self.search.best
        assert best is not None
        piece = self._piece("conclude", cost=self._fit_cost(best.config) * 0.1)
        return replace(
            piece,
            trials=(best.trial,),
            configs=(best.config,),
            runs=self.plan.runs,
            keys=(tuple(self._keys(best.config)),),
            conclude=True,
            num_trials=self.search.samples,
        )

    def _piece(self, work: str, *, cost: float) -> Piece:
        return Piece(
            study=self.plan.study,
            work=work,  # type: ignore[arg-type]
            data_key=self.plan.data_key,
            models_of=self.plan.models_of,
            cost=cost,
        )

    def _missing(self) -> list[tuple[int, Run]]:
        return [
            (at, run)
            for at, keys in enumerate(self._round_keys)
            for run, key in zip(self.plan.runs, keys, strict=True)
            if key not in self._fits
        ]

    def _keys(self, config: TrialConfig) -> list[str]:
        return [self.plan.fit_key(config, run) for run in self.plan.runs]

    def _score(self, fits: Sequence[FitRecord]) -> float:
        scores = [fit.score for fit in fits]
        return FAILED if None in scores else float(np.mean([s for s in scores if s is not None]))

    def _why_none(self) -> str:
        reasons = [fit.failed for fits in self.by_trial.values() for fit in fits if fit.failed]
        return f"every configuration failed: {reasons[0] if reasons else 'no reason given'}"

    def _fit_cost(self, config: TrialConfig) -> float:
        return self.plan.size * (config.epochs + _EVERY_EPOCH)

    def _total_cost(self) -> float:
        if self.plan.family:
            return self.plan.size
        if self.plan.models_of is not None:
            return self.plan.size * 0.1
        per_run = sum(
            size * self.plan.size * (epochs + _EVERY_EPOCH)
            for size, epochs in self.search.num_fits()
        )
        return per_run * len(self.plan.runs)
