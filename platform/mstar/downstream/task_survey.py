"""Which tasks can be run with the labels and features at hand, and why the others cannot.

A trouble of one task hides nothing of the others: it is kept as that task's reason.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mstar.data.label_tables import LabelTable, read_label_table
from mstar.data.splits.registry import SplitRegistry
from mstar.data.splits.schemes import Split
from mstar.data.task_data import NEEDS_GENES, TaskData, prepare_task
from mstar.data.task_external import prepare_external
from mstar.data.task_genes import GeneReader
from mstar.data.task_registry import TaskRegistry
from mstar.data.tasks import Task
from mstar.errors import MstarError

State = Literal["ready", "no labels", "no genes", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveySettings:
    """What every task of a survey is prepared with; see `prepare_task`."""

    registry: SplitRegistry | None = None
    split: Split | None = None
    published: frozenset[str] = frozenset()  # ids of tasks that run their published split
    max_missing: float = 0.0
    val_share: float = 0.1
    seed: int = 0
    genes: GeneReader | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """One task, and what stands between it and a run.

    reason: why it is not ready; empty when it is.
    table: its labels, once they are read.
    data: encoder → what is ready to be run.
    reasons: encoder → why its features do not do.
    """

    task: Task
    state: State
    reason: str = ""
    table: LabelTable | None = None
    data: Mapping[str, TaskData] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


def survey_tasks(
    tasks: Sequence[Task],
    known: TaskRegistry,
    tables: Mapping[str, str],
    encoders: Mapping[str, Collection[str]],
    settings: SurveySettings,
) -> list[TaskState]:
    """The state of each task, in the order given; those whose heads they need are looked at too.

    Args:
        tasks: chosen ones.
        known: where the tasks that they take heads of are.
        tables: task → address of its label table.
        encoders: name → the slide ids that it has features of.
        settings: for all.
    """
    states: dict[str, TaskState] = {}
    for task in known.with_required(tasks):
        states[task.task_id] = _state(task, tables, encoders, settings, states)
    return [states[task.task_id] for task in tasks]


def _state(
    task: Task,
    tables: Mapping[str, str],
    encoders: Mapping[str, Collection[str]],
    settings: SurveySettings,
    before: Mapping[str, TaskState],
) -> TaskState:
    if task.task_id not in tables:
        reason = f"no label table {task.task_id}.csv (or .tsv, .parquet) in the labels folder"
        return TaskState(task=task, state="no labels", reason=reason)
    try:
        table = read_label_table(tables[task.task_id], task)
    except MstarError as error:
        return TaskState(task=task, state="refused", reason=str(error))
    if task.reads_genes and settings.genes is None:
        return TaskState(task=task, state="no genes", reason=NEEDS_GENES, table=table)
    internal = before.get(task.trained_on or "")
    if internal is not None and internal.state != "ready":
        reason = f"needs the head of {internal.task.task_id}: {internal.reason}"
        state: State = "no labels" if internal.state == "no labels" else "refused"
        return TaskState(task=task, state=state, reason=reason, table=table)
    data, reasons = {}, {}
    for encoder, ids in encoders.items():
        try:
            data[encoder] = _prepared(task, table, ids, settings, internal, encoder)
        except MstarError as error:
            reasons[encoder] = str(error)
    return TaskState(
        task=task,
        state="refused" if reasons else "ready",
        reason="; ".join(dict.fromkeys(reasons.values())),
        table=table,
        data=data,
        reasons=reasons,
    )


def _prepared(
    task: Task,
    table: LabelTable,
    ids: Collection[str],
    settings: SurveySettings,
    internal: TaskState | None,
    encoder: str,
) -> TaskData:
    published = task.task_id in settings.published
    if task.trained_on is not None:
        return prepare_external(
            task,
            table,
            stores=[ids],
            registry=settings.registry,
            internal=internal.data.get(encoder) if internal else None,
            published_split=published,
            max_missing=settings.max_missing,
            genes=settings.genes,
        )
    return prepare_task(
        task,
        table,
        stores=[ids],
        registry=settings.registry,
        split=settings.split,
        published_split=published,
        max_missing=settings.max_missing,
        val_share=settings.val_share,
        seed=settings.seed,
        genes=settings.genes,
    )
