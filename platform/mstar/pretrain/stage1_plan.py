"""Which cases make up each step of a stage-1 run."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

from mstar.losses.contrastive import PAIRS
from mstar.pretrain.batch_plan import (
    CaseKind,
    Guarantee,
    check_guarantee,
    num_batches,
    plan_epoch,
)
from mstar.pretrain.stage1_cases import TrainCase
from mstar.pretrain.stage1_config import Stage1Config


@dataclass(slots=True, kw_only=True)
class StepPlan:
    """The training cases by step; a step's batch is a function of its number alone."""

    config: Stage1Config
    kinds: list[CaseKind]
    _epoch: tuple[int, list[Int64[np.ndarray, " case"]]] = field(default=(-1, []))

    @classmethod
    def of(cls, config: Stage1Config, cases: tuple[TrainCase, ...]) -> "StepPlan":
        """The plan of a run over these cases."""
        return cls(config=config, kinds=[one.kind for one in cases])

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return num_batches(len(self.kinds), self.config.batch_cases)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * self.per_epoch

    def at(self, step: int) -> Int64[np.ndarray, " case"]:
        """The cases of a step's batch, over all ranks."""
        epoch, place = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            batch_cases, seed = self.config.batch_cases, self.config.seed
            self._epoch = epoch, plan_epoch(self.kinds, batch_cases, seed=seed, epoch=epoch)
        return self._epoch[1][place]

    def check(self) -> Guarantee:
        """What every batch holds at least, for the pairings and losses that are on.

        Raises:
            TrainingError: that is less than the config asks for.
        """
        config, weights = self.config, self.config.loss.weights()
        return check_guarantee(
            self.kinds,
            config.batch_cases,
            pairings=[
                pair for name, pair in PAIRS.items() if set(pair) <= config.on and weights[name]
            ],
            min_pairs=config.min_pairs,
            min_cancers=config.min_cancers if config.loss.triplet_weight else 0,
        )
