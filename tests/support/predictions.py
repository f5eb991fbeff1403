"""Random evaluated sets, with ties and clusters where a test asks for them."""

import numpy as np

from mstar.downstream.statistics.evaluated import Evaluated


def classified(
    seed: int,
    *,
    samples: int = 60,
    classes: int = 2,
    signal: float = 1.0,
    digits: int | None = None,
    patients: int | None = None,
    fold: str = "",
) -> Evaluated:
    """Class probabilities that know the label by `signal`; `digits` rounds them into ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    logits = rng.normal(size=(samples, classes)) + signal * np.eye(classes)[labels]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if digits is not None:
        scores = scores.round(digits)
    who = np.arange(samples) if patients is None else rng.integers(0, patients, samples)
    names = tuple(f"{fold}P{number:04d}" for number in who)
    return Evaluated(patients=names, scores=scores, labels=labels, fold=fold)


def followed(
    seed: int,
    *,
    samples: int = 60,
    signal: float = 1.0,
    digits: int | None = None,
    censored: float = 0.4,
    follow_up: float = float("inf"),
    fold: str = "",
) -> Evaluated:
    """Times of death that know the risk; `digits` rounds times and risks into ties."""
    rng = np.random.default_rng(seed)
    hazard = rng.normal(size=samples)
    death = rng.exponential(20.0 * np.exp(-hazard))
    leaves = rng.exponential(20.0 * (1 - censored) / max(censored, 1e-3), samples)
    times, risks = np.minimum(death, leaves) + 0.1, signal * hazard + rng.normal(size=samples)
    if digits is not None:
        times, risks = times.round(digits) + 0.1, risks.round(digits)
    return Evaluated(
        patients=tuple(f"{fold}P{number:04d}" for number in range(samples)),
        scores=risks[:, None],
        times=times,
        events=death <= leaves,
        follow_up=follow_up,
        fold=fold,
    )


def resampled(evaluated: Evaluated, weights: np.ndarray) -> Evaluated:
    """The set with its rows repeated as often as one row of weights says."""
    rows = np.repeat(np.arange(len(weights)), weights)

    def take(column: np.ndarray | None) -> np.ndarray | None:
        return None if column is None else column[rows]

    return Evaluated(
        patients=tuple(evaluated.patients[row] for row in rows),
        scores=evaluated.scores[rows],
        labels=take(evaluated.labels),
        times=take(evaluated.times),
        events=take(evaluated.events),
        follow_up=evaluated.follow_up,
    )
