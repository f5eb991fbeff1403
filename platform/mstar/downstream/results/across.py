"""Methods over tasks: who votes with whom, averages, ranks, and pairs of methods.

Only rows that leak nothing enter, one protocol and one source of data at a time. Generated and real
tasks never meet in an average.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mstar.downstream.predictions import Predictions
from mstar.downstream.results.differences import Method
from mstar.downstream.results.estimates import HONEST, Group
from mstar.downstream.results.rows import unclaimable
from mstar.downstream.statistics.across_tasks import (
    CohortTest,
    Ranking,
    independent_cohorts,
    rank_methods,
    wilcoxon_across_cohorts,
)
from mstar.downstream.statistics.compare import holm
from mstar.downstream.statistics.metrics import METRICS
from mstar.downstream.statistics.verdict import verdict

EVERY_KIND = "all"
REAL = "real"


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """A method's mean over tasks of one metric: over the tasks of a cohort, then over cohorts."""

    data_source: str
    protocol: str
    metric: str
    encoder: str
    head: str
    value: float
    tasks: int
    cohorts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedMethods:
    """Average ranks of methods over the cohorts of some kind of task."""

    data_source: str
    protocol: str
    kind: str
    ranking: Ranking


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodPair:
    """Two methods over all tasks that have both, first − second; one thing differs between them.

    first_better, second_better, undecided: tasks, after Holm over them.
    few: of the undecided, tasks with too few test cases to decide anything.
    mean: of the differences, one value a cohort; above zero the first is better.
    """

    data_source: str
    metrics: tuple[str, ...]
    first: Method
    second: Method
    tasks: int
    first_better: int
    second_better: int
    undecided: int
    few: int
    mean: float
    test: CohortTest


def find_cohorts(predictions: Sequence[Predictions]) -> dict[str, str]:
    """Task → the cohort that it votes with: tasks that share patients, or a model, go together."""
    patients: dict[str, set[str]] = {}
    trained_on: dict[str, str | None] = {}
    for one in predictions:
        patients.setdefault(one.task, set()).update(one.patient)
        trained_on[one.task] = one.facts.trained_on or None
    return independent_cohorts(patients, trained_on=trained_on)


def average_methods(groups: Sequence[Group], cohorts: Mapping[str, str]) -> list[Average]:
    """Means of every method, over tasks that have a value of every method of their metric."""
    found = []
    for (source, protocol, metric), members in _scopes(groups).items():
        methods = {method for group in members for method in group.estimates}
        values = _complete(members, methods)
        for method in sorted(methods) if values else ():
            by_cohort: dict[str, list[float]] = {}
            for task, row in values.items():
                by_cohort.setdefault(cohorts[task], []).append(row[method])
            found.append(
                Average(
                    data_source=source,
                    protocol=protocol,
                    metric=metric,
                    encoder=method[0],
                    head=method[1],
                    value=float(np.mean([np.mean(of_one) for of_one in by_cohort.values()])),
                    tasks=len(values),
                    cohorts=len(by_cohort),
                )
            )
    return found


def rank_over_cohorts(groups: Sequence[Group], cohorts: Mapping[str, str]) -> list[RankedMethods]:
    """Ranks over all tasks where all have the same methods, else by kind of task.

    Paper-compat rows are not ranked: their models were chosen on the test part.
    """
    found = []
    for source in data_sources(groups):
        fair = [g for g in groups if g.data_source == source and not unclaimable(g) and g.estimates]
        kinds = sorted({METRICS[group.metric].kind for group in fair})
        methods = [
            {m for g in fair if METRICS[g.metric].kind == k for m in g.estimates} for k in kinds
        ]
        together = all(own == methods[0] for own in methods)
        for kind in [EVERY_KIND] if together and len(kinds) > 1 else kinds:
            chosen = [g for g in fair if kind in (EVERY_KIND, METRICS[g.metric].kind)]
            ranking = _ranked(chosen, cohorts)
            if ranking is not None:
                found.append(
                    RankedMethods(data_source=source, protocol=HONEST, kind=kind, ranking=ranking)
                )
    return found


def compare_methods(groups: Sequence[Group], cohorts: Mapping[str, str]) -> list[MethodPair]:
    """Every two encoders with the same head, and every two heads of the same encoder."""
    found = []
    for source in data_sources(groups):
        fair = [g for g in groups if g.data_source == source and not unclaimable(g)]
        methods = sorted({method for group in fair for method in group.estimates})
        for first, second in itertools.combinations(methods, 2):
            both = [g for g in fair if {first, second} <= g.estimates.keys()]
            if both and (first[0] == second[0]) != (first[1] == second[1]):
                found.append(_method_pair(both, first, second, cohorts))
    return found


def _method_pair(
    groups: Sequence[Group], first: Method, second: Method, cohorts: Mapping[str, str]
) -> MethodPair:
    compared = {group.task: group.compared(first, second).difference for group in groups}
    known = {task: one for task, one in compared.items() if one is not None}
    adjusted = holm([one.p for one in known.values()])
    said = [verdict(d, p_adjusted=p) for d, p in zip(known.values(), adjusted, strict=True)]
    won = Counter(one.winner for one in said)
    sign = {group.task: 1.0 if group.higher_is_better else -1.0 for group in groups}
    differences = {task: sign[task] * one.value for task, one in known.items()}
    test = wilcoxon_across_cohorts(differences, cohorts)
    return MethodPair(
        data_source=groups[0].data_source,
        metrics=tuple(sorted({group.metric for group in groups})),
        first=first,
        second=second,
        tasks=len(known),
        first_better=won["first"],
        second_better=won["second"],
        undecided=won["none"],
        few=sum("test cases" in one.reason for one in said),
        mean=float(np.mean(list(test.differences.values()))) if test.differences else math.nan,
        test=test,
    )


def _scopes(groups: Sequence[Group]) -> dict[tuple[str, str, str], list[Group]]:
    found: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        if not group.leaked and group.estimates:
            key = (group.data_source, group.protocol, group.metric)
            found.setdefault(key, []).append(group)
    return dict(sorted(found.items(), key=lambda one: (one[0][0] != REAL, one[0])))


def _complete(groups: Sequence[Group], methods: set[Method]) -> dict[str, dict[Method, float]]:
    """Task → values, of tasks that have all methods on the same cases."""
    values = {
        group.task: {m: group.estimates[m][group.metric].value for m in methods}
        for group in groups
        if methods <= group.estimates.keys()
    }
    return {task: row for task, row in values.items() if not any(map(math.isnan, row.values()))}


def _ranked(groups: Sequence[Group], cohorts: Mapping[str, str]) -> Ranking | None:
    """None where no task has all methods."""
    methods = {method for group in groups for method in group.estimates}
    names = {method: method_name(method) for method in methods}
    values: dict[str, dict[str, float]] = {}
    for group in groups:
        own = {names[m]: e[group.metric].value for m, e in group.estimates.items()}
        if len(own) > len(values.get(group.task, {})):  # of other cases: the fuller one
            values[group.task] = own
    wanted = set(names.values())
    if len(methods) < 2 or not any(_has_all(row, wanted) for row in values.values()):
        return None
    higher = {group.task: group.higher_is_better for group in groups}
    return rank_methods(values, cohorts, higher_is_better=higher)


def _has_all(row: Mapping[str, float], names: set[str]) -> bool:
    return all(not math.isnan(row.get(name, math.nan)) for name in names)


def data_sources(groups: Sequence[Group]) -> list[str]:
    """Real data first."""
    return sorted({group.data_source for group in groups}, key=lambda s: (s != REAL, s))


def method_name(method: Method) -> str:
    """A method in tables and figures."""
    return " · ".join(method)
