"""Intervals: resample patients, never rows, and read the percentiles.

Slides of one patient are alike, so a row more of a patient is not a case more; whole patients are
drawn with replacement (Field & Welsh 2007). Draws depend on the seed and the set of patients only:
- the same patients give the same draws, so that encoders, heads and seeds are compared in pairs;
- the test folds of a cross-validation share no patient, so each is resampled on its own;
- folds whose patients overlap (five models on one external cohort) share their draws.

`protocol="paper-compat"` is what the authors' code does: rows are drawn, the value is the mean of
the resamples, the interval that mean ± 1.96 standard deviations.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm

from mstar.downstream.statistics.classification import classes_present
from mstar.downstream.statistics.evaluated import Evaluated, mean_defined, once
from mstar.downstream.statistics.metrics import metric_spec, value_of

Protocol = Literal["honest", "paper-compat"]
RESAMPLES = 1000
LEVEL = 0.95
AT_ONCE = 1000  # resamples drawn together, so that memory does not grow with their number
FEWEST_DEFINED = 0.5  # of the resamples; below it percentiles are those of a selection


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A metric with its interval, and what it rests on.

    value: mean over folds and seeds; NaN where no fold defines it.
    low, high: of the interval; NaN where fewer than half of the resamples define the metric.
    fold_values: mean over the seeds of each fold, in the order of `folds`.
    seeds, seed_std: how many, and the standard deviation of their values (NaN for one).
    samples, patients: evaluated, over all folds; external cohorts count once.
    classes, num_classes: present in the smallest fold, and of the task; 0 for survival.
    resamples, undefined: how many define the metric, and how many do not.
    method: percentile, or normal for paper-compat.
    """

    metric: str
    value: float
    low: float
    high: float
    level: float
    method: str
    folds: tuple[str, ...]
    fold_values: tuple[float, ...]
    seeds: int
    seed_std: float
    samples: int
    patients: int
    classes: int
    num_classes: int
    resamples: int
    undefined: int

    @property
    def has_width(self) -> bool:
        """False when all resamples agree, as at an AUC of 1: such an interval says nothing."""
        return self.high > self.low


def interval(
    metric: str,
    evaluated: Evaluated,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
    protocol: Protocol = "honest",
) -> Estimate:
    """A metric of one evaluated set, with its interval."""
    return fold_estimate(
        metric, [evaluated], resamples=resamples, seed=seed, level=level, protocol=protocol
    )


def fold_estimate(
    metric: str,
    parts: Sequence[Evaluated],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
    protocol: Protocol = "honest",
) -> Estimate:
    """A metric per fold and seed, its mean, and the interval of that mean.

    Args:
        metric: one of METRICS.
        parts: one evaluated set for each fold and seed.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        level: of the interval.
        protocol: paper-compat reproduces the authors' intervals, which are too narrow.
    """
    folds = by_fold(parts)
    drawn = replicates(metric, parts, resamples=resamples, seed=seed, rows=protocol != "honest")
    defined = drawn[~np.isnan(drawn)]
    fold_values = [
        float(mean_defined(np.array([value_of(metric, part) for part in of_fold])))
        for of_fold in folds.values()
    ]
    value = float(mean_defined(np.array(fold_values)))
    if protocol == "honest":
        low, high = percentile_interval(drawn, level)
    else:
        value, low, high = normal_interval(defined, level)
    per_seed = seed_values(metric, parts)
    unique = {part.patients: part for part in parts}.values()
    return Estimate(
        metric=metric,
        value=value,
        low=low,
        high=high,
        level=level,
        method="percentile" if protocol == "honest" else "normal",
        folds=tuple(folds),
        fold_values=tuple(fold_values),
        seeds=len(per_seed),
        seed_std=float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else float("nan"),
        samples=sum(len(part.patients) for part in unique),
        patients=len({patient for part in unique for patient in part.patients}),
        classes=min(_present(part) for part in parts),
        num_classes=parts[0].num_classes,
        resamples=len(defined),
        undefined=len(drawn) - len(defined),
    )


def replicates(
    metric: str,
    parts: Sequence[Evaluated],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    rows: bool = False,
) -> Float[np.ndarray, " resample"]:
    """The metric of every resample: mean over the seeds of a fold, then over folds.

    Two models of the same patients get the same draws, resample by resample.
    """
    function = metric_spec(metric).function
    folds = by_fold(parts)
    chunks = []
    for drawn in _draws(list(folds.values()), resamples, seed, rows):
        means = [
            mean_defined(np.stack([function(part, w) for part, w in zip(fold, ws, strict=True)]))
            for fold, ws in zip(folds.values(), drawn, strict=True)
        ]
        chunks.append(mean_defined(np.stack(means)))
    return np.concatenate(chunks)


def patient_weights(
    patients: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> Int[np.ndarray, "resample sample"]:
    """How often each sample is drawn when patients are drawn with replacement.

    Depends on the seed and the set of patients, not on the order of the samples.
    """
    unique, column = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    counts = _counts(list(unique), resamples, (seed, 0))
    drawn: np.ndarray = counts[:, column]
    return drawn


def percentile_interval(
    drawn: Float[np.ndarray, " resample"], level: float = LEVEL
) -> tuple[float, float]:
    """The middle `level` of the resamples; NaN where fewer than half define the metric."""
    defined = drawn[~np.isnan(drawn)]
    if len(defined) < FEWEST_DEFINED * len(drawn) or not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def normal_interval(
    defined: Float[np.ndarray, " resample"], level: float = LEVEL
) -> tuple[float, float, float]:
    """Mean of the resamples, and that mean ± z standard deviations; not bounded by 0 and 1."""
    if len(defined) < 2:
        return float("nan"), float("nan"), float("nan")
    mean, half = float(defined.mean()), float(norm.ppf((1 + level) / 2) * defined.std(ddof=1))
    return mean, mean - half, mean + half


def seed_values(metric: str, parts: Sequence[Evaluated]) -> tuple[float, ...]:
    """The value of each seed, averaged over its folds, in the order of the seeds."""
    seeds = sorted({part.seed for part in parts})
    return tuple(
        float(mean_defined(np.array([value_of(metric, p) for p in parts if p.seed == seed])))
        for seed in seeds
    )


def by_fold(parts: Sequence[Evaluated]) -> dict[str, list[Evaluated]]:
    """Fold → its parts, one a seed, in the order of the fold names."""
    assert parts, "nothing was evaluated"
    keys = [(part.fold, part.seed) for part in parts]
    assert len(set(keys)) == len(keys), "one evaluated set for each fold and seed"
    folds = sorted({part.fold for part in parts})
    return {fold: [part for part in parts if part.fold == fold] for fold in folds}


def _draws(
    folds: Sequence[Sequence[Evaluated]], resamples: int, seed: int, rows: bool
) -> Iterator[list[list[Int[np.ndarray, "resample sample"]]]]:
    """Weights for every part of every fold, some resamples at a time."""
    named = [[_names(part, rows) for part in fold] for fold in folds]
    pools = _pools([set().union(*fold) for fold in named])
    for start in range(0, resamples, AT_ONCE):
        number = min(AT_ONCE, resamples - start)
        weights = []
        for fold, pool in zip(named, pools, strict=True):
            counts = _counts(pool, number, (seed, start))
            weights.append([counts[:, np.searchsorted(pool, names)] for names in fold])
        yield weights


def _names(part: Evaluated, rows: bool) -> list[str]:
    """What is drawn with each sample: its patient, or for `rows` itself, as its patient's n-th."""
    if not rows:
        return list(part.patients)
    names, seen = [""] * len(part.patients), Counter[str]()
    for row in part.row_order.tolist():
        patient = part.patients[row]
        names[row] = f"{patient}\n{seen[patient]}"
        seen[patient] += 1
    return names


def _pools(patients: Sequence[set[str]]) -> list[list[str]]:
    """Whom to draw from for each fold: its own patients, or all where folds share some."""
    if any(one & other and one != other for one, other in combinations(patients, 2)):
        everybody = sorted(set().union(*patients))
        return [everybody] * len(patients)
    return [sorted(own) for own in patients]


def _counts(
    names: Sequence[str], resamples: int, seed: tuple[int, int]
) -> Int[np.ndarray, "resample name"]:
    """How often each name is drawn, len(names) draws a resample."""
    digest = hashlib.sha256("\n".join(names).encode()).digest()
    rng = np.random.default_rng([*seed, int.from_bytes(digest[:8], "big")])
    size = len(names)
    drawn = rng.integers(0, size, (resamples, size)) + np.arange(resamples)[:, None] * size
    counts = np.bincount(drawn.ravel(), minlength=resamples * size)
    return counts.reshape(resamples, size).astype(np.int32)


def _present(part: Evaluated) -> int:
    if part.labels is None:
        return 0
    return int(classes_present(part.class_labels, part.num_classes, once(len(part.patients)))[0])
