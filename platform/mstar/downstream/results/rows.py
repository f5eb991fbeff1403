"""The rows of the table: rank, winner, significance against the reference, and marks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mstar.data.tasks import Task
from mstar.downstream.predictions import Predictions
from mstar.downstream.results.differences import Method, Reference
from mstar.downstream.results.estimates import HONEST, Group
from mstar.downstream.statistics.bootstrap import Estimate
from mstar.downstream.statistics.compare import Difference, holm
from mstar.downstream.statistics.metrics import metric_spec
from mstar.downstream.statistics.verdict import too_few, verdict

GENERATED = "generated"
UNDEFINED_SHOWN = 0.01  # of the resamples


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A row against its reference, row − reference.

    difference: None where they could not be compared; `note` says why.
    p_holm: corrected over the tasks in which the same two methods are compared.
    stars: of p_holm; never of p_paper_compat.
    """

    encoder: str
    head: str
    difference: Difference | None
    p_holm: float
    stars: str
    note: str
    p_paper_compat: float

    @property
    def favours_row(self) -> bool:
        """Whether the row is on the better side of its reference, by whatever little."""
        if self.difference is None:
            return False
        higher_wins = metric_spec(self.difference.metric).higher_is_better
        return (self.difference.value > 0) == higher_wins


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResultRow:
    """One task × encoder × head.

    estimate: of the task's own metric; `others` of every metric.
    cohort: the task that its evidence goes with, in averages.
    rank: among `rivals` rows of the same task, part, cases and protocol; None without a value.
    winner: best of the task, and better than each rival; `no_winner` says why it has none.
    averaged: whether it enters averages over tasks.
    marks: what a reader must know.
    """

    predictions: Predictions
    uri: str
    category: str
    dataset: str
    cohort: str
    estimate: Estimate
    others: Mapping[str, Estimate]
    rank: int | None
    rivals: int
    winner: bool
    no_winner: str
    contrast: Contrast | None
    averaged: bool
    marks: tuple[str, ...]

    @property
    def method(self) -> Method:
        """Encoder and head."""
        return self.predictions.encoder, self.predictions.head

    @property
    def anchor(self) -> str:
        """The row's name within a page; unique with the protocol and part."""
        p = self.predictions
        return "-".join((p.task, p.encoder, p.head, p.part, p.facts.protocol, p.facts.data_source))


def make_rows(
    groups: Sequence[Group],
    cohorts: Mapping[str, str],
    tasks: Mapping[str, Task],
    reference: Reference,
) -> list[ResultRow]:
    """The table, by task and rank.

    Args:
        groups: the numbers.
        cohorts: task → cohort that it votes with.
        tasks: what is known of tasks; may lack some.
        reference: whom rows are held against.
    """
    contrasts = _contrasts(groups, reference)
    winners = find_winners(groups)
    variants: dict[str, int] = {}
    for group in groups:
        variants[group.task] = variants.get(group.task, 0) + 1
    rows = []
    for at, group in enumerate(groups):
        ranks = rank_values(
            {m: own[group.metric].value for m, own in group.estimates.items()},
            higher_is_better=group.higher_is_better,
        )
        winner, reason = winners[at]
        for method in sorted(group.estimates, key=lambda m: (ranks[m] or math.inf, m)):
            own = group.estimates[method]
            task = tasks.get(group.task)
            rows.append(
                ResultRow(
                    predictions=group.predictions[method],
                    uri=group.uris[method],
                    category=task.category if task else "",
                    dataset=task.dataset if task else "",
                    cohort=cohorts[group.task],
                    estimate=own[group.metric],
                    others=own,
                    rank=ranks[method],
                    rivals=len(ranks),
                    winner=method == winner,
                    no_winner=reason,
                    contrast=contrasts.get((at, method)),
                    averaged=not group.leaked,
                    marks=marks_of(group, method),
                )
            )
    order = {name: at for at, name in enumerate(tasks)}
    return sorted(rows, key=lambda r: order.get(r.predictions.task, len(order)))


def rank_values(
    values: Mapping[Method, float], *, higher_is_better: bool
) -> dict[Method, int | None]:
    """1 is best; equal values share the better rank; NaN has none."""
    sign = 1.0 if higher_is_better else -1.0
    signed = {method: sign * value for method, value in values.items()}
    return {
        method: None if math.isnan(own) else 1 + sum(other > own for other in signed.values())
        for method, own in signed.items()
    }


def find_winners(groups: Sequence[Group]) -> list[tuple[Method | None, str]]:
    """Each group's winner, or None and the reason.

    A winner is better than every one of its rivals: its p is the largest of those comparisons
    (an intersection–union test, two-sided, so that choosing the leader by its value is paid for:
    Gutmann & Maymin 1987), corrected by Holm over the tasks.
    """
    leaders = [_leader(group) for group in groups]
    hardest = [_hardest(group, leader) for group, leader in zip(groups, leaders, strict=True)]
    adjusted = holm([math.nan if d is None else d.p for d, _ in hardest])
    found: list[tuple[Method | None, str]] = []
    for leader, (difference, reason), p in zip(leaders, hardest, adjusted, strict=True):
        if difference is None:
            found.append((None, reason))
            continue
        said = verdict(difference, p_adjusted=p)
        found.append((leader if said.winner == "first" else None, said.reason))
    return found


def marks_of(group: Group, method: Method) -> tuple[str, ...]:
    """What a reader must know of a row, most important first."""
    facts, estimate = group.predictions[method].facts, group.estimates[method][group.metric]
    marks = []
    if facts.leaked_patients:
        marks.append(f"leak: {facts.leaked_patients} patients")
    if facts.protocol != HONEST:
        marks.append(facts.protocol)
    if facts.data_source == GENERATED:
        marks.append("generated data")
    if too_few(estimate.patients):
        marks.append(f"{estimate.patients} test cases")
    if estimate.classes < estimate.num_classes:
        marks.append(f"{estimate.classes} of {estimate.num_classes} classes present")
    if math.isnan(estimate.value):
        marks.append("metric undefined")
    elif math.isnan(estimate.low):
        marks.append("no interval")
    elif not estimate.has_width:
        marks.append("interval without width")
    drawn = estimate.resamples + estimate.undefined
    if estimate.undefined > UNDEFINED_SHOWN * drawn and not math.isnan(estimate.value):
        marks.append(f"undefined in {estimate.undefined / drawn:.0%} of resamples")
    return tuple(marks)


def unclaimable(group: Group) -> str:
    """Why no difference within a group may be claimed; empty where it may."""
    if group.leaked:
        return "patients leak between its parts"
    if group.protocol != HONEST:
        return f"{group.protocol}: models were chosen on the test part too"
    return ""


def _leader(group: Group) -> Method | None:
    values = {m: own[group.metric].value for m, own in group.estimates.items()}
    ranks = rank_values(values, higher_is_better=group.higher_is_better)
    return next((method for method in sorted(ranks) if ranks[method] == 1), None)


def _hardest(group: Group, leader: Method | None) -> tuple[Difference | None, str]:
    """The leader's comparison with the largest p, or why there is none."""
    if reason := unclaimable(group):
        return None, reason
    if leader is None:
        return None, "the metric is undefined here"
    rivals = [method for method in group.estimates if method != leader]
    if not rivals:
        return None, "nothing to compare with"
    compared = [group.compared(leader, rival) for rival in rivals]
    differences = [one.difference for one in compared if one.difference is not None]
    if len(differences) < len(compared):
        return None, next(one.reason for one in compared if one.difference is None)
    return max(differences, key=lambda d: math.inf if math.isnan(d.p) else d.p), ""


def _contrasts(groups: Sequence[Group], reference: Reference) -> dict[tuple[int, Method], Contrast]:
    """Every row against its reference; Holm over the tasks of the same two methods."""
    families: dict[tuple[object, ...], list[tuple[int, Method, Method]]] = {}
    for at, group in enumerate(groups):
        for method in group.estimates:
            other = reference.of(method, group.estimates)
            if other is not None:
                claimable = not unclaimable(group)
                family = (method, other, claimable, group.data_source)
                families.setdefault(family, []).append((at, method, other))
    found = {}
    for members in families.values():
        compared = [groups[at].compared(method, other) for at, method, other in members]
        p_values = holm([one.difference.p if one.difference else math.nan for one in compared])
        for (at, method, other), one, p in zip(members, compared, p_values, strict=True):
            said = verdict(one.difference, p_adjusted=p) if one.difference else None
            barred = unclaimable(groups[at])
            found[at, method] = Contrast(
                encoder=other[0],
                head=other[1],
                difference=one.difference,
                p_holm=math.nan if barred else p,
                stars=said.stars if said and not barred else "",
                note=barred or (said.reason if said else one.reason),
                p_paper_compat=groups[at].paper.get(method, math.nan),
            )
    return found
