"""What a part must hold to be learnt from, chosen by, or scored."""

from collections.abc import Sequence

from mstar.data.label_tables.samples import LabelTable, Sample
from mstar.data.tasks import Task
from mstar.errors import SplitError

_MEANING = {
    "train": "a head cannot be trained on it",
    "val": "no head can be chosen by it",
    "test": "it cannot be scored",
}


def check_parts(
    task: Task,
    table: LabelTable,
    fold: str,
    samples: Sequence[Sample],
    parts: Sequence[str],
    *,
    needed: Sequence[str],
) -> None:
    """Raises SplitError when a part that is needed is empty, of one class, or ranks nobody.

    parts: of each sample; an empty one is none.
    """
    for part in needed:
        of_part = [s for s, its in zip(samples, parts, strict=True) if its == part]
        problem = _problem(task, of_part)
        if problem:
            row = f"row {of_part[0].row:,}, " if of_part else ""
            raise SplitError(
                f"{table.uri}: {row}fold {fold}, part {part}: {problem}: {_MEANING[part]}. "
                "Give the part more patients, or make another split stratified by label "
                "(`mstar cohort split C --scheme label|survival --name NAME`)."
            )


def _problem(task: Task, samples: Sequence[Sample]) -> str:
    """Why scores of these samples are undefined; empty when they are not."""
    if not samples:
        return "expected samples, got none"
    if task.has_survival_labels:
        return "" if _has_pair(samples) else (
            f"expected two patients of whom one had the event before the other's time, got none "
            f"among {len(samples):,}"
        )  # fmt: skip
    if not task.has_class_labels:  # matched with reports, or described in words
        return ""
    classes = {sample.label for sample in samples}
    if len(classes) == 1:
        (label,) = classes
        name = task.class_names[label] if label is not None else "none"
        return f"expected two classes or more, got {name} alone in all {len(samples):,} samples"
    return ""


def _has_pair(samples: Sequence[Sample]) -> bool:
    """Whether a concordance index is defined: an event before another time."""
    events = [s.time_months for s in samples if s.event and s.time_months is not None]
    last = max((s.time_months or 0.0) for s in samples)
    return bool(events) and min(events) < last
