"""Labels of the generated cohort: the planted tasks, and any of the 97, each from a latent factor.

    planted_mutation, planted_grade, planted_cancer_type, planted_survival   always
    a task of the 97   its classes, taken from the factor that `FACTOR_OF` names for its endpoint

So every task can be learnt, and what there is to learn is known. A label table holds every case
that has a slide, whatever its cancer type; retrieval and report generation hold those that have a
report too, the case's own id being its label. Splits are left to `mstar cohort split`:
one registry, from which every task is cut.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

import pyarrow as pa

from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.factors import GRADES, CaseFactors, Purpose, rng_of, slide_ids_of
from mstar.cohorts.generated.survival import censoring_rate, draw_survival
from mstar.data.labels import (
    ClassLabel,
    SurvivalLabel,
    write_class_labels,
    write_survival_labels,
)
from mstar.data.tables import write_table
from mstar.data.task_registry import read_task_registry
from mstar.data.tasks import Task
from mstar.errors import ConfigError
from mstar.storage import objects

DATA_SOURCE = "generated"
Factor = Literal["cancer_type", "grade", "mutation", "pathway"]

FACTOR_OF: dict[str, Factor] = {
    "cancer_type": "cancer_type",
    "histological_subtype": "cancer_type",
    "lauren_type": "cancer_type",
    "primary_site": "cancer_type",
    "molecular_subtype": "cancer_type",
    "consensus_molecular_subtype": "cancer_type",
    "grade": "grade",
    "isup_grade": "grade",
    "t_stage": "grade",
    "er_level": "grade",
    "her2_level": "grade",
    "metastasis": "pathway",
    "perineural_invasion": "pathway",
    "vascular_invasion": "pathway",
    "tumor_mutation_burden": "mutation",
}
"""Endpoint → factor; those that end in `_mutation` or `_status` show the mutation."""

_UNPUBLISHED = {"ordinal": ("0", "1", "2", "3")}  # level names that the paper does not give
_NEGATIVE_POSITIVE = ("negative", "positive")


def planted_tasks(config: GenerateConfig) -> tuple[Task, ...]:
    """The tasks that every generated cohort has."""
    kinds: tuple[tuple[str, str, tuple[str, ...]], ...] = (
        ("mutation", "classification", ("wildtype", "mutated")),
        ("grade", "ordinal", tuple(map(str, GRADES))),
        ("cancer_type", "classification", config.cancer_types),
        ("survival", "survival", ()),
    )
    return tuple(
        Task(
            task_id=f"planted_{name}",
            kind=kind,
            metric="c_index" if kind == "survival" else "macro_auc",
            category="planted",
            dataset="generated",
            endpoint="planted_mutation" if name == "mutation" else name,
            class_names=classes,
        )
        for name, kind, classes in kinds
        if len(classes) != 1  # one cancer type is no task
    )


def chosen_tasks(labels: str) -> tuple[Task, ...]:
    """Those of the 97 tasks that `--labels` asks for.

    Raises:
        ConfigError: there is no such task.
    """
    tasks = read_task_registry().by_id  # auxiliary ones too: external tasks need their heads
    if labels.strip() == "all":
        return tuple(tasks.values())
    wanted = list(dict.fromkeys(name.strip() for name in labels.split(",") if name.strip()))
    unknown = [name for name in wanted if name not in tasks]
    if unknown:
        raise ConfigError(
            f"--labels: expected `all` or ids of the {len(tasks)} tasks, got {unknown[0]!r}. "
            f"The first is {next(iter(tasks))}."
        )
    return tuple(tasks[name] for name in wanted)


def write_labels(folder: str, config: GenerateConfig, cases: Sequence[CaseFactors]) -> list[str]:
    """Write the label table of every task, and the planted tasks as rows; returns the task ids."""
    planted = planted_tasks(config)
    tasks = (*planted, *chosen_tasks(config.labels))
    for task in tasks:
        uri = objects.join(folder, "labels", f"{task.task_id}.csv")
        shown = [case for case in cases if case.num_slides]
        if task.has_survival_labels:
            write_survival_labels(uri, survival_labels(config, task, shown))
        else:
            write_class_labels(uri, class_labels(config, task, shown))
    _write_tasks(objects.join(folder, "tasks.csv"), [*planted, *_with_classes(tasks)])
    return [task.task_id for task in tasks]


def class_labels(
    config: GenerateConfig, task: Task, cases: Iterable[CaseFactors]
) -> list[ClassLabel]:
    """The class of every case, or its own id where the task has no classes to name."""
    if not task.has_class_labels:
        return [_class_label(case, case.case_id) for case in cases if case.has_report]
    label_of = labeller(config, task)
    return [_class_label(case, label_of(case)) for case in cases]


def survival_labels(
    config: GenerateConfig, task: Task, cases: Iterable[CaseFactors]
) -> list[SurvivalLabel]:
    """Overall survival is the case's own; other endpoints are drawn anew from its hazard."""
    labels = []
    for case in cases:
        months, event = _time(config, task, case)
        labels.append(
            SurvivalLabel(
                case_id=case.case_id,
                slides=slide_ids_of(case),
                time_months=months,
                event=event,
                data_source=DATA_SOURCE,
            )
        )
    return labels


def labeller(config: GenerateConfig, task: Task) -> Callable[[CaseFactors], str]:
    """The function from a case to its class in a task."""
    classes = task.class_names or _UNPUBLISHED.get(task.kind, _NEGATIVE_POSITIVE)
    factor = factor_of(task)
    if factor == "cancer_type" and config.num_cancer_types < len(classes):
        factor = "pathway"  # too few types for a class each
    return lambda case: classes[_level(config, factor, case, len(classes))]


def factor_of(task: Task) -> Factor:
    """The latent factor that a task with classes shows."""
    if task.endpoint.endswith(("_mutation", "_status")):
        return "mutation"
    return FACTOR_OF[task.endpoint]


def _level(config: GenerateConfig, factor: Factor, case: CaseFactors, num_classes: int) -> int:
    """Which of the classes; they rise with the factor."""
    if factor == "cancer_type":
        return config.cancer_types.index(case.cancer_type) % num_classes
    if factor == "mutation":
        return int(case.mutation) * (num_classes - 1)
    share = case.pathway
    if factor == "grade":
        share = (case.grade - 1 + (case.pathway if num_classes > len(GRADES) else 0.5)) / 3
    return min(int(share * num_classes), num_classes - 1)


def _time(config: GenerateConfig, task: Task, case: CaseFactors) -> tuple[float, int]:
    if task.endpoint in ("OS", "survival"):
        return case.os_months, case.os_event
    rng = rng_of(config, Purpose.LABELS, zlib.crc32(task.endpoint.encode()), case.index)
    rate = censoring_rate(config.censoring, config.hazard_strength)
    drawn = draw_survival(rng, case.hazard * config.hazard_strength, rate)
    return drawn.months, drawn.event


def _class_label(case: CaseFactors, label: str) -> ClassLabel:
    return ClassLabel(
        case_id=case.case_id,
        slides=slide_ids_of(case),
        label=label,
        data_source=DATA_SOURCE,
    )


def _with_classes(tasks: Iterable[Task]) -> list[Task]:
    """Tasks whose class names are not published, with those that their label table has."""
    return [
        replace(task, class_names=_UNPUBLISHED.get(task.kind, _NEGATIVE_POSITIVE))
        for task in tasks
        if task.has_class_labels and not task.class_names
    ]


def _write_tasks(uri: str, tasks: Sequence[Task]) -> None:
    """The planted tasks as a table that `read_tasks` takes."""
    names = ("task_id", "category", "dataset", "endpoint", "kind", "regime", "metric")
    columns: dict[str, list[str]] = {
        name: [getattr(task, name) for task in tasks] for name in names
    }
    columns["classes"] = ["|".join(task.class_names) for task in tasks]
    write_table(uri, pa.table(columns))
