"""What `mstar labels build` prints: counts beside the published ones, and what was dropped."""

from collections import Counter
from collections.abc import Iterator, Sequence

from mstar.cohorts.labels_config import LabelsBuildConfig
from mstar.cohorts.labels_result import TaskOutcome

REASONS_SHOWN = 4
NAMES_SHOWN = 2


def summary_lines(
    outcomes: Sequence[TaskOutcome], config: LabelsBuildConfig, written: int
) -> Iterator[str]:
    """One screen: every task that was built, then why the others were not."""
    states = Counter(outcome.state for outcome in outcomes)
    dry = " (dry run, nothing written)" if config.dry_run else ""
    yield f"labels build: {', '.join(f'{n} {state}' for state, n in states.items())}{dry}"
    built = [outcome for outcome in outcomes if outcome.state == "built"]
    width = max((len(outcome.task.task_id) for outcome in built), default=0)
    for outcome in built:
        yield from _built_lines(outcome, width)
    yield from _others(outcomes)
    if built:
        comparisons = [outcome.comparison for outcome in built if outcome.comparison]
        known = [c for c in comparisons if c.is_published]
        different = sum(comparison.differs for comparison in known)
        yield (
            f"  compared  {len(known)} tasks with published counts: {len(known) - different} "
            f"agree, {different} differ"
        )
        before = len(built) - written
        yield f"  output    {config.out}: {written} tables written, {before} as they were"


def _built_lines(outcome: TaskOutcome, width: int) -> Iterator[str]:
    comparison = outcome.comparison
    assert comparison is not None, "a built task was compared"
    counts = [_pair(f"{comparison.unit}s", *comparison.samples)]
    counts += [_pair(name, *pair) for name, pair in comparison.classes.items()]
    counts += [f"events {comparison.events:,}"] if comparison.events is not None else []
    yield f"  {outcome.task.task_id:<{width}}  {', '.join(counts)}"
    yield f"  {'':<{width}}    {'; '.join(outcome.derived.notes)}"
    dropped = outcome.derived.dropped
    if dropped:
        ranked = dropped.most_common()
        shown = ", ".join(f"{count:,} × {reason}" for reason, count in ranked[:REASONS_SHOWN])
        rest = sum(count for _, count in ranked[REASONS_SHOWN:])
        more = f", {rest:,} × other reasons (labels.json)" if rest else ""
        yield f"  {'':<{width}}    dropped {sum(dropped.values()):,}: {shown}{more}"


def _pair(name: str, here: int, published: int | None) -> str:
    """A count and how far it is from the published one."""
    if published is None:
        return f"{name} {here:,}"
    if here == published:
        return f"{name} {here:,} (as published)"
    return f"{name} {here:,} ({here - published:+,} of {published:,})"


def _others(outcomes: Sequence[TaskOutcome]) -> Iterator[str]:
    """Why tasks were not built, tasks with one reason together."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        if outcome.state != "built":
            reasons.setdefault((outcome.state, outcome.reason), []).append(outcome.task.task_id)
    for (state, reason), ids in reasons.items():
        more = ", …" if len(ids) > NAMES_SHOWN else ""
        shown = ", ".join(ids[:NAMES_SHOWN]) + more
        names = ids[0] if len(ids) == 1 else f"{len(ids)} tasks ({shown})"
        yield f"  {state:<9} {names}: {reason}"
