"""Is one model better than another over many tasks? One value per independent cohort.

Tasks are not independent: ER, PR and HER2 are of the same slides, OS and DFS of the same patients,
a fusion task repeats a unimodal one, and an external task tests a model of an internal one. A test
that counted each of them would count the same evidence several times. So tasks that share a
patient, or a model, form one cohort, and a cohort has one vote.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import chi2, rankdata, studentized_range, wilcoxon

from mstar.errors import CohortError

LEVEL = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortTest:
    """A two-sided Wilcoxon signed-rank test over cohorts.

    differences: of each cohort, the mean over its tasks.
    p: NaN without cohorts.
    smallest_p: what that many cohorts could give at best; above 0.05 no result can be significant.
    """

    differences: Mapping[str, float]
    p: float
    smallest_p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Average ranks over cohorts (1 is best) and the difference that is needed to tell two apart.

    methods: from best to worst, with their ranks in `average_ranks`.
    critical_difference: Nemenyi's; NaN for one method or fewer than two cohorts.
    friedman_p: of all methods being equal.
    cliques: runs of methods that differ by less, as the bars of the figure.
    tasks_left_out: lacked the value of some method.
    """

    methods: tuple[str, ...]
    average_ranks: tuple[float, ...]
    cohorts: int
    critical_difference: float
    friedman_p: float
    cliques: tuple[tuple[str, ...], ...]
    tasks_left_out: tuple[str, ...]


def independent_cohorts(
    patients: Mapping[str, Collection[str]],
    *,
    trained_on: Mapping[str, str | None],
    same: Collection[Collection[str]] = (),
) -> dict[str, str]:
    """Task → the cohort that it votes with, named after the cohort's first task.

    Args:
        patients: task → patients it was evaluated on (with a prefix, where two sites number alike).
        trained_on: task → the task whose model it tests; two externals of one model go together
            even where the internal task itself is not evaluated.
        same: further groups of tasks that are known not to be independent.
    """
    links: dict[str, set[str]] = {}
    for task, names in patients.items():
        model = trained_on.get(task) or task
        links[task] = {f"patient {name}" for name in names} | {f"model {model}"}
    for number, group in enumerate(same):
        for task in links.keys() & set(group):
            links[task].add(f"group {number}")
    return _components(links)


def wilcoxon_across_cohorts(
    differences: Mapping[str, float], cohorts: Mapping[str, str]
) -> CohortTest:
    """Test differences of tasks (first model − second), one mean value a cohort.

    Args:
        differences: task → difference; undefined (NaN) ones are left out.
        cohorts: task → cohort, from `independent_cohorts`.
    """
    members: dict[str, list[float]] = {}
    for task in sorted(differences):
        if not math.isnan(differences[task]):
            members.setdefault(cohorts[task], []).append(differences[task])
    means = {cohort: float(np.mean(values)) for cohort, values in members.items()}
    p = signed_rank_p(np.array(list(means.values())))
    return CohortTest(differences=means, p=p, smallest_p=min(1.0, 2.0 ** (1 - len(means))))


def signed_rank_p(differences: Float[np.ndarray, " cohort"]) -> float:
    """Two-sided p; exact for few cohorts without ties, 1 when all are zero, NaN for none."""
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0 if len(differences) else float("nan")
    tied = len(np.unique(np.abs(moved))) < len(moved)
    method = "exact" if len(moved) <= 50 and not tied else "asymptotic"
    return float(wilcoxon(moved, method=method).pvalue)


def rank_methods(
    values: Mapping[str, Mapping[str, float]],
    cohorts: Mapping[str, str],
    *,
    higher_is_better: Mapping[str, bool],
    level: float = LEVEL,
) -> Ranking:
    """Rank methods in every task, then in every cohort by mean rank, then over cohorts.

    Args:
        values: task → method → metric. A task that lacks a method, or has NaN, is left out.
        cohorts: task → cohort, from `independent_cohorts`.
        higher_is_better: of each task's metric.
        level: of the critical difference.

    Raises:
        CohortError: no task has a value of every method.
    """
    methods = sorted({method for row in values.values() for method in row})
    table = {task: np.array([row.get(m, np.nan) for m in methods]) for task, row in values.items()}
    complete = sorted(task for task, row in table.items() if not np.isnan(row).any())
    if not complete:
        raise CohortError(
            f"No task has a value of every one of {', '.join(methods)}: they cannot be ranked. "
            "Rank fewer methods, or finish the sweep."
        )
    by_cohort: dict[str, list[np.ndarray]] = {}
    for task in complete:
        worse_first = -table[task] if higher_is_better[task] else table[task]
        by_cohort.setdefault(cohorts[task], []).append(rankdata(worse_first))
    ranks = np.stack([rankdata(np.mean(rows, axis=0).round(9)) for rows in by_cohort.values()])
    average = ranks.mean(axis=0)
    best_first = np.argsort(average, kind="stable")
    needed = critical_difference(len(methods), len(ranks), level)
    ordered = tuple(methods[column] for column in best_first)
    return Ranking(
        methods=ordered,
        average_ranks=tuple(float(average[column]) for column in best_first),
        cohorts=len(ranks),
        critical_difference=needed,
        friedman_p=friedman_p(ranks),
        cliques=_cliques(ordered, average[best_first], needed),
        tasks_left_out=tuple(sorted(values.keys() - set(complete))),
    )


def critical_difference(methods: int, cohorts: int, level: float = LEVEL) -> float:
    """Nemenyi's critical difference of average ranks (Demšar 2006, equation 6)."""
    if methods < 2 or cohorts < 2:
        return float("nan")
    quantile = studentized_range.ppf(1 - level, methods, np.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(methods * (methods + 1) / (6 * cohorts)))


def friedman_p(ranks: Float[np.ndarray, "cohort method"]) -> float:
    """The p of Friedman's test, corrected for ties; NaN where it has nothing to test."""
    cohorts, methods = ranks.shape
    spread = float(((ranks - (methods + 1) / 2) ** 2).sum())
    if cohorts < 2 or methods < 2:
        return float("nan")
    if spread == 0:
        return 1.0
    between = float(((ranks.sum(axis=0) - cohorts * (methods + 1) / 2) ** 2).sum())
    return float(chi2.sf((methods - 1) * between / spread, methods - 1))


def _cliques(
    methods: Sequence[str], ranks: Float[np.ndarray, " method"], needed: float
) -> tuple[tuple[str, ...], ...]:
    """Longest runs of neighbours within the critical difference; all are one where it is NaN."""
    if math.isnan(needed):
        return (tuple(methods),)
    runs: list[tuple[int, int]] = []
    for start, rank in enumerate(ranks):
        end = int(np.searchsorted(ranks, rank + needed, side="right"))
        if end - start > 1 and (not runs or end > runs[-1][1]):
            runs.append((start, end))
    return tuple(tuple(methods[start:end]) for start, end in runs)


def _components(links: Mapping[str, set[str]]) -> dict[str, str]:
    """Tasks that share a link, directly or through others, named after the first of them."""
    groups: list[tuple[set[str], set[str]]] = []  # tasks, links
    for task in sorted(links):
        joined = ({task}, set(links[task]))
        apart = []
        for group in groups:
            if group[1] & links[task]:
                joined = (joined[0] | group[0], joined[1] | group[1])
            else:
                apart.append(group)
        groups = [*apart, joined]
    return {task: min(tasks) for tasks, _ in groups for task in sorted(tasks)}
