"""How the configurations of one study compete: rounds of a population, halved between budgets.

    search = StudySearch(space, head="abmil", key="task/encoder/abmil", budgets=(10, 30))
    while (round := search.next_round()) is not None:
        search.tell([score(config) for config in round.configs])
    search.best                                  # (number of the trial, configuration, score)

One object per study, and nothing in it knows of another study: a hard task is not measured against
an easy one. A population is trained for the first budget, the best one in `keep` are trained anew
for the next (so the cosine has the length of the budget and every score is one of a finished
schedule), and only full-length configurations can win. How many there are follows from the space
alone. Told the same scores it asks for the same configurations: a killed sweep is replayed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mstar.downstream.config import TrialConfig
from mstar.downstream.spaces import Choice, LogUniform, Space, at_quantile, make_trial
from mstar.errors import ConfigError
from mstar.training.seeds import seed_of

FAILED = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Configurations to be trained for one budget on all folds and seeds.

    trials: their numbers in the study.
    full: the budget is the last one.
    """

    trials: tuple[int, ...]
    configs: tuple[TrialConfig, ...]
    full: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnd:
    """A configuration that is done with: how far it came and how it did."""

    trial: int
    config: TrialConfig
    score: float
    full: bool


@runtime_checkable
class Sampler(Protocol):
    """Draws the values of a study's trials, one after another."""

    def ask(self) -> dict[str, Any]:
        """The values of the next trial."""

    def tell(self, trial: int, epochs: int, score: float, *, full: bool) -> None:
        """How a trial did: with its whole budget, or when it was halved."""


class StudySearch:
    """The trials of one study."""

    def __init__(
        self,
        space: Space,
        *,
        head: str,
        key: str,
        budgets: Sequence[int],
        samples: int | None = None,
    ) -> None:
        """Take the space's number of samples unless another is given."""
        self.samples = (samples or space.samples) if space.search else 1
        self.ended: dict[int, TrialEnd] = {}
        self._space, self._head, self._budgets = space, head, tuple(budgets)
        self._sampler = make_sampler(space, key)
        self._values: dict[int, dict[str, Any]] = {}
        self._open: Round | None = None
        self._next: tuple[int, tuple[int, ...]] | None = None  # budget, trials that go on

    def next_round(self) -> Round | None:
        """The round to run now; None when all are done."""
        assert self._open is None, "a round is running"
        if self._next is None:
            trials = self._draw()
            if not trials:
                return None
            self._next = (0, trials)
        budget, trials = self._next
        epochs = self._budgets[budget]
        self._open = Round(
            trials=trials,
            configs=tuple(
                make_trial(self._space, self._head, self._values[trial], epochs) for trial in trials
            ),
            full=budget == len(self._budgets) - 1,
        )
        return self._open

    def tell(self, scores: Sequence[float]) -> None:
        """The scores of the open round, higher is better; -inf for a failed one."""
        assert self._open is not None
        assert len(scores) == len(self._open.trials)
        assert self._next is not None
        done, budget = self._open, self._next[0]
        going_on = () if done.full else self._best_of(done.trials, scores)
        for trial, config, score in zip(done.trials, done.configs, scores, strict=True):
            if trial not in going_on:
                self.ended[trial] = TrialEnd(
                    trial=trial, config=config, score=score, full=done.full
                )
                self._sampler.tell(trial, config.epochs, score, full=done.full)
        self._next = (budget + 1, going_on) if going_on else None
        self._open = None

    @property
    def best(self) -> TrialEnd | None:
        """The best full-length trial so far, the first of equal ones; None if all failed."""
        full = [end for end in self.ended.values() if end.full and end.score > FAILED]
        return max(full, key=lambda end: (end.score, -end.trial), default=None)

    def num_fits(self) -> list[tuple[int, int]]:
        """(configurations, epochs) of all rounds, whatever the scores; what the study will cost."""
        rounds = []
        for start in range(0, self.samples, self._space.population):
            size = min(self._space.population, self.samples - start)
            for epochs in self._budgets:
                rounds.append((size, epochs))
                size = _kept(size, self._space.keep)
        return rounds

    def _draw(self) -> tuple[int, ...]:
        first = len(self._values)
        last = min(first + self._space.population, self.samples)
        for trial in range(first, last):
            self._values[trial] = self._sampler.ask()
        return tuple(range(first, last))

    def _best_of(self, trials: Sequence[int], scores: Sequence[float]) -> tuple[int, ...]:
        order = sorted(zip(trials, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))
        kept = order[: _kept(len(trials), self._space.keep)]
        return tuple(sorted(trial for trial, score in kept if score > FAILED))


def _kept(size: int, keep: int) -> int:
    return math.ceil(size / keep)


class RandomSampler:
    """Values that depend on the study and the trial's number only."""

    def __init__(self, search: Mapping[str, Any], key: str) -> None:
        """Draw for the study of that key."""
        self._search, self._key, self._asked = search, key, 0

    def ask(self) -> dict[str, Any]:
        """The values of the next trial."""
        generator = np.random.default_rng(seed_of("trial", self._key, self._asked))
        self._asked += 1
        return {
            name: at_quantile(wanted, float(generator.random()))
            for name, wanted in self._search.items()
        }

    def tell(self, trial: int, epochs: int, score: float, *, full: bool) -> None:
        """Learns nothing."""


class TpeSampler:
    """Optuna's tree-structured Parzen estimator, seeded by the study."""

    def __init__(self, search: Mapping[str, Any], key: str, startup: int) -> None:
        """The first `startup` trials are drawn at random."""
        self._optuna = _import_optuna()
        sampler = self._optuna.samplers.TPESampler(
            seed=seed_of("tpe", key) % 2**32, n_startup_trials=startup
        )
        self._study = self._optuna.create_study(direction="maximize", sampler=sampler)
        self._distributions = {name: self._distribution(r) for name, r in search.items()}
        self._choices = {n: r.values for n, r in search.items() if isinstance(r, Choice)}
        self._trials: list[Any] = []

    def ask(self) -> dict[str, Any]:
        """The values of the next trial."""
        trial = self._study.ask(self._distributions)
        self._trials.append(trial)
        return {
            name: self._choices[name][value] if name in self._choices else value
            for name, value in trial.params.items()
        }

    def tell(self, trial: int, epochs: int, score: float, *, full: bool) -> None:
        """Halved trials count as pruned ones do: behind those that went on."""
        states = self._optuna.trial.TrialState
        if score == FAILED:
            self._study.tell(self._trials[trial], state=states.FAIL)
        elif full:
            self._study.tell(self._trials[trial], score)
        else:
            self._trials[trial].report(score, epochs)
            self._study.tell(self._trials[trial], state=states.PRUNED)

    def _distribution(self, wanted: Any) -> Any:
        kinds = self._optuna.distributions
        if isinstance(wanted, Choice):  # by position: values may be anything
            return kinds.CategoricalDistribution(range(len(wanted.values)))
        return kinds.FloatDistribution(wanted.low, wanted.high, log=isinstance(wanted, LogUniform))


def make_sampler(space: Space, key: str) -> Sampler:
    """The sampler of a study."""
    if space.sampler == "tpe" and space.search:
        return TpeSampler(space.search, key, startup=space.population)
    return RandomSampler(space.search, key)


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "sampler tpe: it needs the package optuna. Install mstar-platform with it, or set "
            'sampler="random" in the space.'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
