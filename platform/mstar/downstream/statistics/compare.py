"""Is one model better than another on a task? Paired differences, over the same patients.

Each resample of patients gives both models the same cases, so what is hard for both cancels. The
two-sided p is twice the share of resamples on the far side of zero, so it agrees with the
percentile interval. It cannot be below 2 / (resamples + 1): Holm over many tasks needs many
resamples, see `resamples_needed`. For a binary AUC DeLong's p has no such floor and is taken.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import norm, wilcoxon

from mstar.downstream.statistics.bootstrap import (
    LEVEL,
    RESAMPLES,
    by_fold,
    percentile_interval,
    replicates,
)
from mstar.downstream.statistics.classification import POSITIVE
from mstar.downstream.statistics.delong import AucDifference, delong, two_sided
from mstar.downstream.statistics.evaluated import Evaluated, mean_defined
from mstar.downstream.statistics.metrics import value_of
from mstar.errors import CohortError

DIFFERENCE_RESAMPLES = 10_000
BINARY_AUC = "macro_auc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much higher the metric of the first model is than that of the second.

    low, high: of the interval.
    p: two-sided, of no difference; NaN where it is undefined.
    smallest_p: that this method could give here.
    method: delong or bootstrap.
    samples, patients: that both were evaluated on.
    """

    metric: str
    value: float
    low: float
    high: float
    p: float
    smallest_p: float
    method: str
    samples: int
    patients: int


def compare(
    metric: str,
    first: Sequence[Evaluated],
    second: Sequence[Evaluated],
    *,
    resamples: int = DIFFERENCE_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Difference:
    """The difference of two models: DeLong for a binary AUC, else the paired bootstrap.

    Args:
        metric: one of METRICS.
        first: one evaluated set for each fold and seed.
        second: the same folds and cases; seeds may differ in number.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        level: of the interval.

    Raises:
        CohortError: the two were not evaluated on the same cases.
    """
    analytic = delong_difference(metric, first, second, level=level)
    if analytic is not None:
        return analytic
    return paired_difference(metric, first, second, resamples=resamples, seed=seed, level=level)


def delong_difference(
    metric: str, first: Sequence[Evaluated], second: Sequence[Evaluated], *, level: float = LEVEL
) -> Difference | None:
    """The difference of two binary AUCs by DeLong; None where it does not apply."""
    check_same_cases(first, second)
    analytic = auc_difference(first, second) if metric == BINARY_AUC else None
    if analytic is None or math.isnan(analytic.p):
        return None
    half = float(norm.ppf((1 + level) / 2)) * analytic.std_error
    return Difference(
        metric=metric,
        value=analytic.value,
        low=analytic.value - half,
        high=analytic.value + half,
        p=analytic.p,
        smallest_p=0.0,
        method="delong",
        **_sizes(first),
    )


def paired_difference(
    metric: str,
    first: Sequence[Evaluated],
    second: Sequence[Evaluated],
    *,
    resamples: int = DIFFERENCE_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Difference:
    """The difference over paired resamples of patients, by its percentiles."""
    check_same_cases(first, second)
    drawn = replicates(metric, first, resamples=resamples, seed=seed)
    drawn -= replicates(metric, second, resamples=resamples, seed=seed)
    return drawn_difference(metric, first, second, drawn, level=level)


def drawn_difference(
    metric: str,
    first: Sequence[Evaluated],
    second: Sequence[Evaluated],
    drawn: Float[np.ndarray, " resample"],
    *,
    level: float = LEVEL,
) -> Difference:
    """The difference whose resamples, the same patients for both, are there already."""
    low, high = percentile_interval(drawn, level)
    defined = drawn[~np.isnan(drawn)]
    return Difference(
        metric=metric,
        value=_mean(metric, first) - _mean(metric, second),
        low=low,
        high=high,
        p=float("nan") if math.isnan(low) else _percentile_p(defined),
        smallest_p=2 / (len(defined) + 1),
        method="bootstrap",
        **_sizes(first),
    )


def auc_difference(first: Sequence[Evaluated], second: Sequence[Evaluated]) -> AucDifference | None:
    """DeLong over seeds and folds; None where it does not apply.

    It needs two classes, both present in each fold, and folds that share no patient (their
    differences are then independent and variances add up).
    """
    ours, theirs = by_fold(first), by_fold(second)
    patients = Counter(name for fold in ours.values() for name in set(fold[0].patients))
    if first[0].num_classes != 2 or max(patients.values()) > 1:
        return None
    differences = []
    for fold, parts in ours.items():
        order = [part.row_order for part in parts]
        positive = parts[0].class_labels[order[0]] == POSITIVE
        if positive.all() or not positive.any():
            return None
        scores = [part.scores[rows, POSITIVE] for part, rows in zip(parts, order, strict=True)]
        other = [part.scores[part.row_order, POSITIVE] for part in theirs[fold]]
        names = [parts[0].patients[row] for row in order[0]]
        differences.append(delong(positive, scores, other, names))
    value = float(np.mean([d.value for d in differences]))
    variance = float(np.sum([d.std_error**2 for d in differences])) / len(differences) ** 2
    return AucDifference(value=value, std_error=math.sqrt(variance), p=two_sided(value, variance))


def check_same_cases(first: Sequence[Evaluated], second: Sequence[Evaluated]) -> None:
    """Raise a CohortError unless both have the same folds, patients and outcomes."""
    ours, theirs = by_fold(first), by_fold(second)
    if ours.keys() != theirs.keys():
        raise CohortError(
            f"folds {', '.join(ours)} of the first model, {', '.join(theirs)} of the second: a "
            "paired comparison needs the same folds. Evaluate both on the folds of one split."
        )
    for fold in ours:
        expected = _cases(ours[fold][0])
        for found in map(_cases, [*ours[fold], *theirs[fold]]):
            if found != expected:
                raise CohortError(
                    f"fold {fold!r}: {(expected - found).total()} cases or outcomes of the first "
                    f"model are not the second's, {(found - expected).total()} the other way "
                    "round. A paired comparison needs the same cases: evaluate both on the cases "
                    "that have features of both."
                )


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down p-values, in the order given; an undefined (NaN) one is no test and stays.

    They keep the chance of any false claim, over all tasks, below the level.
    """
    p = np.asarray(p_values, dtype=np.float64)
    tests = np.flatnonzero(~np.isnan(p))
    order = tests[np.argsort(p[tests], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return tuple(float(value) for value in adjusted)


def resamples_needed(tests: int, level: float = 1 - LEVEL) -> int:
    """Resamples with which the smallest bootstrap p survives Holm over so many tests, halved."""
    return math.ceil(4 * tests / level)


def p_paper_compat(
    metric: str,
    first: Sequence[Evaluated],
    second: Sequence[Evaluated],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> float:
    """The paper's p: a one-sided Wilcoxon signed-rank test on bootstrap replicates. Never use it.

    It asks whether the resamples' differences centre on zero, and they centre on the difference
    that this test set happens to show. So it rejects a true null about half of the time, and more
    replicates make any p as small as one likes. It is given for comparison with the article alone.
    """
    check_same_cases(first, second)
    drawn = replicates(metric, first, resamples=resamples, seed=seed, rows=True)
    drawn = drawn - replicates(metric, second, resamples=resamples, seed=seed, rows=True)
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return float("nan")
    if not defined.any():
        return 1.0
    return float(wilcoxon(defined, alternative="greater", method="asymptotic").pvalue)


def _percentile_p(defined: Float[np.ndarray, " resample"]) -> float:
    below, above = int((defined <= 0).sum()), int((defined >= 0).sum())
    return min(1.0, 2 * (1 + min(below, above)) / (len(defined) + 1))


def _mean(metric: str, parts: Sequence[Evaluated]) -> float:
    """The value of `fold_estimate`: over the seeds of a fold, then over folds."""
    folds = by_fold(parts).values()
    means = [mean_defined(np.array([value_of(metric, part) for part in fold])) for fold in folds]
    return float(mean_defined(np.array(means)))


def _sizes(parts: Sequence[Evaluated]) -> dict[str, int]:
    unique = {part.patients: part for part in parts}.values()
    names = {patient for part in unique for patient in part.patients}
    return {"samples": sum(len(part.patients) for part in unique), "patients": len(names)}


def _cases(part: Evaluated) -> "Counter[tuple[str, float, bool]]":
    if part.labels is not None:
        labels = part.class_labels.tolist()
        return Counter((p, float(c), False) for p, c in zip(part.patients, labels, strict=True))
    if part.times is None:
        return Counter((patient, 0.0, False) for patient in part.patients)
    times, events = part.outcome
    rows = zip(part.patients, times, events, strict=True)
    return Counter((patient, float(t), bool(e)) for patient, t, e in rows)
