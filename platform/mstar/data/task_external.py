"""External tasks: one fold of test alone, for the models of another task."""

from collections.abc import Sequence

from mstar.data.label_tables.samples import ONE_FOLD, LabelTable, Sample
from mstar.data.splits.registry import SplitRegistry
from mstar.data.task_data import TaskData, add_genes, assemble, keep_with_genes
from mstar.data.task_features import Stores, with_features
from mstar.data.task_folds import (
    NO_PART,
    Cut,
    registry_parts,
)
from mstar.data.task_genes import GeneReader
from mstar.data.tasks import Task
from mstar.errors import ConfigError, SplitError


def prepare_external(
    task: Task,
    table: LabelTable,
    *,
    stores: Stores,
    registry: SplitRegistry | None = None,
    internal: TaskData | None = None,
    published_split: bool = False,
    max_missing: float = 0.0,
    genes: GeneReader | None = None,
) -> TaskData:
    """One fold of test alone, for the models of another task.

    Cases that the registry trains or validates on, or pretraining sees, are left out and counted
    (that happens where one cohort serves both tasks, as a generated one does).

    Args:
        task: the external task.
        table: its labels; parts other than test are refused.
        stores: as for `prepare_task`.
        registry: of the cohort that the models were trained on.
        internal: the task whose models are tested; shared patients are a leak.
        published_split: count leaks in place of refusing them.
        max_missing: as for `prepare_task`.
        genes: as for `prepare_task`.

    Raises:
        ConfigError: the models are of other classes.
        CohortError, FeatureError, SplitError, TableError: as for `prepare_task`.
    """
    if internal is not None:
        _refuse_other_classes(task, internal)
    _refuse_other_parts(table)
    assert table.task_id == task.task_id
    samples, match, dropped = with_features(table, stores, max_missing)
    samples = keep_with_genes(task, table, samples, genes, dropped)
    parts = [("test" if _testable(place) else NO_PART) for place in _places(registry, samples)]
    source = "all of it is tested"
    if NO_PART in parts:
        source = "what the split registry neither trains, validates nor pretrains on is tested"
    cut = Cut(folds={ONE_FOLD: tuple(parts)}, source=source, digest="")
    trained = _trained_patients(internal)
    shared = {s.patient for s, part in zip(samples, parts, strict=True) if part} & trained
    if shared and not published_split:
        raise SplitError(
            f"{table.uri}: patient {min(shared)} is tested here and trained or validated on in "
            f"{internal.task.task_id if internal else ''}; {len(shared):,} patients like this. "
            "Leave them out of one of the tables, or count them with --published-split."
        )
    data = assemble(task, table, samples, cut, match, dropped, len(shared), ("test",))
    return add_genes(data, genes)


def _places(
    registry: SplitRegistry | None, samples: Sequence[Sample]
) -> list[tuple[str, bool] | None]:
    """(part, whether pretraining sees it) of each sample; None for one that is not registered."""
    known = registry_parts(registry, samples) if registry is not None else {}
    return [known.get(sample.case_id) for sample in samples]


def _testable(place: tuple[str, bool] | None) -> bool:
    """Whether a sample can be tested by models of another task of the same cohort."""
    return place is None or place[0] == "test" or place == (NO_PART, False)


def _trained_patients(internal: TaskData | None) -> set[str]:
    if internal is None:
        return set()
    used = [at for fold in internal.folds for at in (*fold.train.tolist(), *fold.val.tolist())]
    return {internal.patients[at] for at in used}


def _refuse_other_classes(task: Task, internal: TaskData) -> None:
    if task.class_names != internal.class_names or (
        task.has_survival_labels != internal.task.has_survival_labels
    ):
        raise ConfigError(
            f"task {task.task_id}: expected the classes of {internal.task.task_id} in their order "
            f"({', '.join(internal.class_names) or 'survival'}), got "
            f"{', '.join(task.class_names) or 'survival'}. Correct the task row."
        )


def _refuse_other_parts(table: LabelTable) -> None:
    """An external table's own fold agrees: everything is tested."""
    for sample in table.samples:
        if not set(sample.folds.values()) <= {"test"}:
            raise SplitError(
                f"{table.uri}: row {sample.row:,}, case {sample.case_id}: expected part test, as "
                f"the task is external, got {', '.join(sample.folds.values())}. Drop the table's "
                "own fold, or run it as a task of its own."
            )
