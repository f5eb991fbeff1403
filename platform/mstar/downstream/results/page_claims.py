"""What the numbers allow to say: winners of tasks, methods over tasks, pairs of methods."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from mstar.downstream.results.across import Average, MethodPair, RankedMethods, method_name
from mstar.downstream.results.rows import ResultRow
from mstar.downstream.results.svg import tag, text
from mstar.downstream.results.svg_overview import Looks, critical_difference
from mstar.downstream.results.text_tables import METRIC_NAMES, number, p_text, signed


def claims_section(rows: Sequence[ResultRow], ranked: Sequence[RankedMethods]) -> str:
    """The first thing to read: sentences, each of which the statistics allow."""
    said = [_ranks_sentence(one) for one in ranked] + [_winners_sentence(rows)]
    said += _contrast_sentences(rows)
    warned = _warnings(rows)
    claims = tag("ul", *(tag("li", words) for words in said), class_="claims")
    return claims + (tag("ul", *(tag("li", w) for w in warned), class_="warned") if warned else "")


def methods_section(
    averages: Sequence[Average],
    ranked: Sequence[RankedMethods],
    pairs: Sequence[MethodPair],
    looks: Looks,
) -> str:
    """Averages, ranks with their critical difference, and pairs."""
    named = {method_name(method): look for method, look in looks.items()}
    parts = []
    for one in ranked:
        parts.append(tag("h3", text(f"Average ranks: {_scope(one)}")))
        drawn = critical_difference(one.ranking, named)
        parts.append(tag("div", drawn, class_="scroll", tabindex=0))
        parts.append(tag("p", text(_rank_note(one)), class_="quiet"))
    if averages:
        parts += [tag("h3", "Averages"), tag("p", text(_AVERAGED), class_="quiet")]
        parts.append(_averages(averages))
    if pairs:
        parts += [tag("h3", "Pairs of methods"), tag("p", text(_PAIRED), class_="quiet")]
        parts.append(_pairs(pairs))
    return "".join(parts)


_AVERAGED = (
    "Mean over the tasks that have every method; tasks that share patients or a model are averaged "
    "first and count once. Rows of splits that leak are not in it. Paper-compat rows have averages "
    "of their own and are never ranked."
)
_PAIRED = (
    "One thing changes at a time: the encoder or the head. A task is won when its paired "
    "difference survives Holm over all tasks of the pair. The last columns test one value for each "
    "independent cohort (Wilcoxon, two-sided); below six cohorts nothing can reach p < 0.05."
)


def _ranks_sentence(one: RankedMethods) -> str:
    ranking = one.ranking
    rank = ranking.average_ranks[0]
    tied = [m for m, r in zip(ranking.methods, ranking.average_ranks, strict=True) if r == rank]
    head = " and ".join(tag("strong", text(name)) for name in tied)
    over = _plural(ranking.cohorts, "independent cohort")
    has = "has" if len(tied) == 1 else "share"
    start = f"{head} {has} the best average rank, {rank:.2f} over {over} ({text(_scope(one))})"
    needed = ranking.critical_difference
    if math.isnan(needed):
        return f"{start}; one cohort cannot tell whether that is chance."
    apart = [
        name
        for name, other in zip(ranking.methods, ranking.average_ranks, strict=True)
        if other - rank > needed
    ]
    if not apart:
        return f"{start}; no method can be told apart from it (critical difference {needed:.2f})."
    return f"{start}; it can be told apart from {text(', '.join(apart))} (Nemenyi, 5 %)."


def _winners_sentence(rows: Sequence[ResultRow]) -> str:
    tasks = {(r.predictions.task, r.predictions.part) for r in rows}
    won = [row for row in rows if row.winner]
    if not won:
        return f"No task has a winner: in none of {len(tasks)} is one row better than all others."
    counted = Counter(method_name(row.method) for row in won)
    named = ", ".join(f"{name} {number}" for name, number in sorted(counted.items(), key=_most))
    return f"{len(won)} of {len(tasks)} tasks have a winner: {text(named)}."


def _most(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _contrast_sentences(rows: Sequence[ResultRow]) -> list[str]:
    """Of each method and its reference: tasks better, worse and undecided."""
    tally: dict[tuple[str, str, str], Counter[str]] = {}
    for row in rows:
        contrast, facts = row.contrast, row.predictions.facts
        if contrast is None or contrast.difference is None or math.isnan(contrast.p_holm):
            continue
        other = method_name((contrast.encoder, contrast.head))
        said = "undecided"
        if contrast.stars:
            said = "better" if contrast.favours_row else "worse"
        key = (facts.data_source, method_name(row.method), other)
        tally.setdefault(key, Counter())[said] += 1
    sentences = []
    for (source, name, other), counts in sorted(tally.items(), key=lambda one: _real_first(one[0])):
        where = "" if source == "real" else f" ({source} data)"
        sentences.append(
            f"{tag('strong', text(name))} against {text(other)}: better in {counts['better']}, "
            f"worse in {counts['worse']}, undecided in {counts['undecided']} of "
            f"{_plural(counts.total(), 'task')}{text(where)}."
        )
    return sentences


def _real_first(key: tuple[str, str, str]) -> tuple[bool, tuple[str, str, str]]:
    return key[0] != "real", key


def _plural(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _warnings(rows: Sequence[ResultRow]) -> list[str]:
    few = {r.predictions.task for r in rows if any(m.endswith("test cases") for m in r.marks)}
    leaking = {r.predictions.task for r in rows if r.predictions.facts.leaked_patients}
    compat = [row for row in rows if row.predictions.facts.protocol != "honest"]
    said = []
    if few:
        said.append(
            f"Fewer than 30 test cases: no stars, no winner in {_plural(len(few), 'task')}."
        )
    if leaking:
        names = text(", ".join(sorted(leaking)))
        said.append(f"Patients leak between parts, as published, and no average has them: {names}.")
    if compat:
        link = tag("a", "they read high", href="#reading")
        said.append(f"{_plural(len(compat), 'paper-compat row')}: {link}, and claim nothing.")
    return said


def _scope(one: RankedMethods) -> str:
    kind = "all tasks" if one.kind == "all" else f"{one.kind} tasks"
    return kind if one.data_source == "real" else f"{kind}, {one.data_source} data"


def _rank_note(one: RankedMethods) -> str:
    ranking = one.ranking
    said = []
    if math.isnan(ranking.critical_difference):
        said.append("All tasks share patients or models, so they are one cohort: nothing to test.")
    else:
        p = p_text(ranking.friedman_p)
        friedman = f"p {p if p.startswith('<') else '= ' + p}"
        said.append(f"Friedman {friedman}. Bars join what cannot be told apart.")
    if ranking.tasks_left_out:
        said.append(f"Without a value of every method: {', '.join(ranking.tasks_left_out)}.")
    return " ".join(said)


def _averages(averages: Sequence[Average]) -> str:
    heads = ("Method", "Metric", "Mean", "Tasks", "Cohorts", "Protocol", "Data")
    best: Mapping[tuple[str, str, str], float] = _best(averages)
    cells = []
    for one in averages:
        top = best[one.data_source, one.protocol, one.metric] == one.value
        cells.append(
            (
                method_name((one.encoder, one.head)),
                METRIC_NAMES.get(one.metric, one.metric),
                number(one.value) + (" (highest)" if top else ""),
                *(str(one.tasks), str(one.cohorts), one.protocol, one.data_source),
            )
        )
    return _plain_table(heads, cells)


def _best(averages: Sequence[Average]) -> dict[tuple[str, str, str], float]:
    best: dict[tuple[str, str, str], float] = {}
    for one in averages:
        key = (one.data_source, one.protocol, one.metric)
        best[key] = max(one.value, best.get(key, -math.inf))
    return best


def _pairs(pairs: Sequence[MethodPair]) -> str:
    heads = (
        "First",
        "Second",
        "Tasks",
        "First better",
        "Second better",
        "Undecided",
        "Mean difference",
        "Cohorts",
        "p",
        "Smallest possible p",
        "Data",
    )
    cells = [
        (
            method_name(one.first),
            method_name(one.second),
            str(one.tasks),
            str(one.first_better),
            str(one.second_better),
            f"{one.undecided}" + (f" ({one.few} too small)" if one.few else ""),
            signed(one.mean),
            str(len(one.test.differences)),
            p_text(one.test.p),
            p_text(one.test.smallest_p),
            one.data_source,
        )
        for one in pairs
    ]
    return _plain_table(heads, cells)


def _plain_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first = "".join(tag("th", text(name), scope="col") for name in heads)
    body = "".join(
        tag("tr", tag("th", text(row[0]), scope="row"), *(tag("td", text(c)) for c in row[1:]))
        for row in rows
    )
    table = tag("table", tag("thead", tag("tr", first)), tag("tbody", body), class_="plain")
    return tag("div", table, class_="scroll", tabindex=0)
