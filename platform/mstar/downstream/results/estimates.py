"""The numbers: metrics of every row with intervals, and differences between rows of one task.

Rows are grouped so that within a group every comparison is fair: one task and part, the same cases,
one protocol, one source of data, and either all leaking or none. Groups are independent of one
another and are computed in several processes.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from mstar.downstream.prediction_parts import cases_digest, evaluated_parts
from mstar.downstream.predictions import Predictions
from mstar.downstream.results.differences import (
    Compared,
    Method,
    Pair,
    Reference,
    compare_all,
    paper_p_values,
    reversed_difference,
)
from mstar.downstream.statistics.bootstrap import Estimate, Protocol, fold_estimate
from mstar.downstream.statistics.evaluated import Evaluated
from mstar.downstream.statistics.metrics import METRICS, metric_spec
from mstar.errors import MstarError

HONEST = "honest"
_WORTH_A_PROCESS = 5e7  # drawn numbers; below it starting one costs more than it saves
_ORDERED = "quadratic_kappa"  # means nothing where classes have no order


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the numbers depend on besides the predictions."""

    reference: Reference

    resamples: int
    difference_resamples: int
    seed: int
    all_metrics: bool
    ordinal: frozenset[str]  # tasks whose classes are ordered


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Rows that may be compared.

    predictions, uris: by encoder and head.
    estimates: method → metric → estimate; the task's own metric comes first.
    pairs: every two methods, in the order of their names.
    paper: method → the paper's p against its reference.
    failed: method → why it has no numbers.
    """

    task: str
    part: str
    protocol: str
    data_source: str
    leaked: bool
    predictions: Mapping[Method, Predictions]
    uris: Mapping[Method, str]
    estimates: Mapping[Method, Mapping[str, Estimate]]
    pairs: Mapping[Pair, Compared]
    paper: Mapping[Method, float]
    failed: Mapping[Method, str]

    @property
    def metric(self) -> str:
        """The task's own."""
        return next(iter(self.predictions.values())).facts.metric

    @property
    def higher_is_better(self) -> bool:
        """Of the task's own metric."""
        return metric_spec(self.metric).higher_is_better

    def compared(self, first: Method, second: Method) -> Compared:
        """The comparison of two methods, first − second."""
        if (first, second) in self.pairs:
            return self.pairs[first, second]
        back = self.pairs[second, first]
        if back.difference is None:
            return back
        return Compared(difference=reversed_difference(back.difference))


def group_key(predictions: Predictions) -> tuple[str, ...]:
    """Equal for rows that may be compared."""
    facts = predictions.facts
    leaked = "leak" if facts.leaked_patients else ""
    fields = (predictions.task, predictions.part, facts.protocol, facts.data_source, leaked)
    return (*fields, facts.metric, cases_digest(predictions))


def estimate_groups(
    groups: Sequence[Mapping[Method, tuple[str, Predictions]]], settings: Settings, workers: int
) -> list[Group]:
    """The numbers of every group, in the order given.

    Args:
        groups: encoder and head → address and predictions.
        settings: of the bootstrap.
        workers: processes; 0 takes one a core if there is enough to do.
    """
    work = [_work(group, settings) for group in groups]
    useful = min(len(groups), int(sum(work) // _WORTH_A_PROCESS) + 1)
    workers = min(workers or os.cpu_count() or 1, useful)
    if workers < 2:
        return [estimate_group(group, settings) for group in groups]
    order = sorted(range(len(groups)), key=lambda at: -work[at])  # the longest first
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = {at: pool.submit(estimate_group, groups[at], settings) for at in order}
        return [jobs[at].result() for at in range(len(groups))]


def estimate_group(group: Mapping[Method, tuple[str, Predictions]], settings: Settings) -> Group:
    """Metrics and differences of one group; a row that cannot be computed spoils no other."""
    first = next(iter(group.values()))[1]
    parts: dict[Method, list[Evaluated]] = {}
    estimates: dict[Method, Mapping[str, Estimate]] = {}
    failed: dict[Method, str] = {}
    for method, (_, predictions) in sorted(group.items()):
        try:
            parts[method] = evaluated_parts(predictions)
            estimates[method] = _estimates(predictions, parts[method], settings)
        except MstarError as error:
            failed[method] = str(error)
    metric, kept = first.facts.metric, {method: parts[method] for method in estimates}
    return Group(
        task=first.task,
        part=first.part,
        protocol=first.facts.protocol,
        data_source=first.facts.data_source,
        leaked=bool(first.facts.leaked_patients),
        predictions={method: group[method][1] for method in estimates},
        uris={method: group[method][0] for method in estimates},
        estimates=estimates,
        pairs=compare_all(metric, kept, settings.difference_resamples, settings.seed),
        paper=paper_p_values(metric, kept, settings.reference, settings.resamples, settings.seed),
        failed=failed,
    )


def metrics_of(predictions: Predictions, settings: Settings) -> tuple[str, ...]:
    """The task's own metric, and the others of its kind."""
    facts = predictions.facts
    others = [name for name, spec in METRICS.items() if spec.kind == facts.kind]
    if predictions.task not in settings.ordinal:
        others = [name for name in others if name != _ORDERED]
    more = others if settings.all_metrics else []
    return tuple(dict.fromkeys((facts.metric, *more)))


def _estimates(
    predictions: Predictions, parts: Sequence[Evaluated], settings: Settings
) -> dict[str, Estimate]:
    protocol: Protocol = "honest" if predictions.facts.protocol == HONEST else "paper-compat"
    return {
        metric: fold_estimate(
            metric, parts, resamples=settings.resamples, seed=settings.seed, protocol=protocol
        )
        for metric in metrics_of(predictions, settings)
    }


def _work(group: Mapping[Method, tuple[str, Predictions]], settings: Settings) -> float:
    """Numbers that are drawn: what the time goes with."""
    rows = sum(len(predictions) for _, predictions in group.values())
    metrics = len(METRICS) if settings.all_metrics else 1
    return float(rows * (settings.resamples * metrics + settings.difference_resamples))
