"""Survival times from the hazard: Weibull deaths, independent exponential censoring.

Death: T = SCALE · (E / exp(h))^(1 / SHAPE), E ~ Exp(1), h the log hazard (proportional hazards).
Censoring: C ~ Exp with a rate that is solved for, so that the stated share of cases is censored
when h is normal. What is observed is min(T, C), and whether it was T.
"""

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np

SHAPE = 1.2
SCALE_MONTHS = 48.0
_GRID = 64
_LEAST_MONTHS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Survival:
    """Months under observation, and 1 when they ended in death (0: censored)."""

    months: float
    event: int


def draw_survival(rng: np.random.Generator, log_hazard: float, censoring: float) -> Survival:
    """Time and event of one case; censoring: rate a month of `censoring_rate`."""
    death = float(_months_to_death(rng.exponential(), log_hazard))
    gone = float(rng.exponential()) / censoring if censoring > 0 else math.inf
    return Survival(months=max(round(min(death, gone), 2), _LEAST_MONTHS), event=int(death <= gone))


@cache
def censoring_rate(share: float, hazard_strength: float) -> float:
    """The censoring rate a month at which `share` of the cases is censored, in expectation."""
    if share <= 0:
        return 0.0
    quantiles = (np.arange(_GRID) + 0.5) / _GRID
    hazards = hazard_strength * np.array([NormalDist().inv_cdf(q) for q in quantiles])
    deaths = _months_to_death(-np.log(quantiles)[:, None], hazards[None])
    low, high = 1e-8, 1e3
    for _ in range(80):
        middle = math.sqrt(low * high)
        if 1 - np.exp(-middle * deaths).mean() < share:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def _months_to_death(exponential: Any, log_hazard: Any) -> Any:
    """Of a number or an array."""
    return SCALE_MONTHS * (exponential / np.exp(log_hazard)) ** (1 / SHAPE)
