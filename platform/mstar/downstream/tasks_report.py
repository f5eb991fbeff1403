"""What `mstar tasks` prints: lists, one task, and the state of every task."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from mstar.data.label_tables.dialects import DIALECTS
from mstar.data.task_registry import TaskRegistry
from mstar.data.tasks import SPLIT_POLICIES, Task
from mstar.downstream.families import family_of, needs_of
from mstar.downstream.task_survey import TaskState

_MARKS = {
    "I": "inferred",
    "S_conflict": "stated twice, differently",
    "unlisted": "not named by the paper",
}


def listing(registry: TaskRegistry, tasks: Sequence[Task]) -> str:
    """One line a task, and how many there are of each kind."""
    head = ("#", "task", "kind", "unit", "regime", "split", "metric", "classes", "n", "access", "")
    rows = [
        (
            str(task.number or ""),
            task.task_id,
            task.kind,
            task.unit,
            task.regime,
            task.split_policy,
            task.metric,
            str(len(task.class_names) or ("?" if task.has_class_labels else "")),
            f"{task.num_samples:,}" if task.num_samples is not None else "?",
            task.access,
            ", ".join(_remarks(task)),
        )
        for task in tasks
    ]
    counts = Counter(task.kind for task in tasks)
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    lines = _table(head, rows)
    lines += ["", f"{registry.name}: {len(tasks)} tasks: {summary}"]
    auxiliary = [task.task_id for task in registry.auxiliary]
    if auxiliary:
        lines.append(f"train heads for external tasks, none of the list: {', '.join(auxiliary)}")
    return "\n".join(lines)


def details(registry: TaskRegistry, task: Task) -> str:
    """Every column of a task that says something, and what it needs."""
    lines = [f"{task.task_id} ({registry.name})", ""]
    shown = [field.name for field in fields(Task) if field.name not in ("task_id", "class_names")]
    values = {name: getattr(task, name) for name in shown if name not in ("class_counts",)}
    values["classes"] = _classes(task)
    values["label_aliases"] = ", ".join(f"{other} = {name}" for other, name in task.label_aliases)
    lines += [f"  {name:<17} {value}" for name, value in values.items() if value not in (None, "")]
    lines += ["", "needs", *(f"  {line}" for line in needs(registry, task))]
    return "\n".join(lines)


def needs(registry: TaskRegistry, task: Task) -> list[str]:
    """What the user has to bring for a task."""
    has_classes = task.has_class_labels
    columns = "label" if has_classes else "time_months, event" if task.has_survival_labels else ""
    wanted = ", ".join(name for name in ("case_id", "slides", columns) if name)
    lines = [
        f"labels/{task.task_id}.csv: one row a {task.unit}: {wanted}; or a table of "
        f"{', '.join(list(DIALECTS)[1:])}",
        "features of every slide of the table",
        f"split: {SPLIT_POLICIES[task.split_policy]}",
    ]
    if has_classes and not task.class_names:
        lines.append("class names, which are not published: a row of your own (--own)")
    if task.reads_genes:
        lines.append(
            "gene expression of every case: --cohort C (its expression/), or --genes: a store or "
            "<case>.csv files"
        )
        lines.append("for mcat, motcat and cmta groups of genes: --signatures, or C/signatures.csv")
    lines.append(f"run as: {_run_as(task)}")
    if task.trained_on:
        lines.append(f"the head of {task.trained_on}, so its labels and features too")
    users = [other.task_id for other in registry.tasks if other.trained_on == task.task_id]
    if users:
        lines.append(f"its head is taken by {', '.join(users)}")
    return lines


def _run_as(task: Task) -> str:
    """How a sweep runs the task, and what it has to be given for that."""
    family = family_of(task.kind)
    if family is None:
        return "heads of --heads, trained by the one loop"
    methods = []
    for method in family.methods:
        flags = " and ".join(f"--{name}" for name in needs_of(task.kind, method))
        methods.append(f"{method} (needs {flags})" if flags else method)
    return f"one of {', '.join(methods)}, by --methods"


def states(found: Sequence[TaskState], *, reasons: bool) -> str:
    """One line a task, the match of its slides, and why the others cannot be run."""
    head = ("task", "kind", "state", "dialect", "samples", "train:val:test", "folds", "slides", "")
    counts = Counter(state.state for state in found)
    lines = _table(head, [_state_row(state) for state in found])
    lines += ["", ", ".join(f"{count} {state}" for state, count in counts.items())]
    if reasons:
        told: dict[str, list[str]] = {}
        for state in found:
            if state.state in ("refused", "no labels", "no genes"):
                told.setdefault(state.reason.replace(state.task.task_id, "…"), []).append(
                    state.task.task_id
                )
        lines += [f"  {_several(ids)}: {reason}" for reason, ids in told.items()]
    return "\n".join(lines)


def gene_remark(facts: Mapping[str, Any]) -> str:
    """Genes and groups of a fusion task, and what is missing of them, in a line."""
    told = f"{facts['genes']:,} genes"
    if "groups" in facts:
        found = ", ".join(f"{own}/{listed}" for own, listed in facts["groups"].values())
        told += f" in {len(facts['groups'])} groups ({found} found)"
    if facts["values_missing"]:
        told += (
            f", {facts['values_missing']:,} values missing in {facts['cases_missing_some']:,} "
            f"cases ({facts['missing_genes']})"
        )
    return told


def _state_row(state: TaskState) -> tuple[str, ...]:
    data = next(iter(state.data.values()), None)
    samples = len(data.samples) if data else len(state.table.samples) if state.table else 0
    sizes = folds = match = ""
    remarks = []
    if data is not None:
        first = data.folds[0]
        sizes = ":".join(str(len(part)) for part in (first.train, first.val, first.test))
        folds = str(len(data.folds))
        match = "; ".join(
            f"{encoder}: {its.match}" if len(state.data) > 1 else str(its.match)
            for encoder, its in state.data.items()
        )
        remarks += [f"leak: {data.leaked_patients:,} patients"] if data.leaked_patients else []
        remarks += [f"left out: {count:,} {reason}" for reason, count in data.dropped.items()]
        if data.genes is not None:
            remarks.append(gene_remark(data.genes.facts))
        remarks += ["generated"] if data.data_source == "generated" else []
    remarks += [f"not with {', '.join(state.reasons)}"] if state.data and state.reasons else []
    return (
        state.task.task_id,
        state.task.kind,
        state.state,
        state.table.dialect if state.table else "",
        f"{samples:,}" if samples else "",
        sizes,
        folds,
        match,
        "; ".join(remarks),
    )


def _remarks(task: Task) -> list[str]:
    marks = [_MARKS[task.source_certainty]] if task.source_certainty in _MARKS else []
    marks += [f"takes {task.trained_on}"] if task.trained_on else []
    marks += ["class names unpublished"] if task.has_class_labels and not task.class_names else []
    return marks


def _classes(task: Task) -> str:
    """Code, name and published count of every class."""
    counts = task.class_counts or (None,) * len(task.class_names)
    pairs = enumerate(zip(task.class_names, counts, strict=True))
    return ", ".join(f"{code} {n}" + ("" if c is None else f" ({c:,})") for code, (n, c) in pairs)


def _several(ids: Sequence[str]) -> str:
    return ids[0] if len(ids) == 1 else f"{len(ids)} tasks ({', '.join(ids[:3])}, …)"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    return lines
