"""Rows of a label table → samples of a task, every label checked against the task row."""

from collections.abc import Sequence

from mstar.data.label_tables.dialects import read_rows
from mstar.data.label_tables.samples import LabelRow, LabelTable, Rows, Sample
from mstar.data.tables import bad_cell
from mstar.data.tasks import Task
from mstar.errors import ConfigError, TableError


def read_label_table(uri: str, task: Task, *, splits: str | None = None) -> LabelTable:
    """The samples of a task, from a table of any dialect.

    A task of cases merges the rows of a case: all slides, one label, one part. In a task of slides
    every row is a sample, with the slides that it names.

    Args:
        uri: the table, local or s3://.
        task: gives the unit and the codes of the classes.
        splits: folder of CLAM's splits; default: `<table>_splits`, where there is one.

    Raises:
        ConfigError: the class names of the task are not known.
        TableError: the file, row and column that is not what it should be.
    """
    if task.has_class_labels and not task.class_names:
        raise ConfigError(
            f"task {task.task_id}: the names of its classes are not published, and they are never "
            "taken from a label table. Name them in a table of your own: "
            f"`task_id,kind,metric,classes` with {task.task_id},{task.kind},{task.metric},low|high."
        )
    found = read_rows(uri, task, splits)
    samples = tuple(_sample(uri, task, found, rows) for rows in _groups(uri, task, found))
    if not samples:
        raise TableError(f"{uri}: expected rows, got a header alone. Fill the table.")
    return LabelTable(
        uri=uri,
        task_id=task.task_id,
        dialect=found.dialect,
        samples=samples,
        folds=found.folds,
        data_source=_data_source(uri, found.rows),
    )


def _groups(uri: str, task: Task, found: Rows) -> list[list[LabelRow]]:
    """The rows of each sample, in the order of the table."""
    if task.unit == "slide":
        groups = [[row] for row in found.rows]
    else:
        of_case: dict[str, list[LabelRow]] = {}
        for row in found.rows:
            of_case.setdefault(row.case_id, []).append(row)
        groups = list(of_case.values())
    _refuse_shared_slides(uri, groups)
    return groups


def _refuse_shared_slides(uri: str, groups: Sequence[Sequence[LabelRow]]) -> None:
    """A slide in two samples could be trained and tested on."""
    owners: dict[str, tuple[int, int]] = {}
    for number, rows in enumerate(groups):
        for row in rows:
            for slide in row.slides:
                owner, first = owners.setdefault(slide, (number, row.row))
                if owner != number:
                    expected = f"slides of this sample alone (row {first + 1:,} has it too)"
                    way_out = "Give it to the sample it is of."
                    raise bad_cell(uri, row.row, "slide", expected, slide, way_out)


def _sample(uri: str, task: Task, found: Rows, rows: Sequence[LabelRow]) -> Sample:
    """One sample; rows that contradict one another are refused."""
    first = rows[0]
    names = {"label": found.label, "time_months": found.time, "event": found.event, "rna": "RNA"}
    for row in rows[1:]:
        for field, column in names.items():
            _refuse_other(uri, column, getattr(first, field), getattr(row, field), first, row)
        for fold in found.folds:
            parts = first.folds.get(fold), row.folds.get(fold)
            _refuse_other(uri, f"{found.fold} (fold {fold})", *parts, first, row)
    slides = tuple(dict.fromkeys(slide for row in rows for slide in row.slides))
    if sum(len(row.slides) for row in rows) > len(slides):
        expected = "each slide once"
        raise bad_cell(
            uri, rows[-1].row, "slides", expected, ";".join(rows[-1].slides), "Drop one."
        )
    return Sample(
        case_id=first.case_id,
        slides=slides,
        label=_code(uri, task, found, first),
        time_months=_months(uri, task, found, first),
        event=first.event == "1" if task.has_survival_labels else None,
        rna=first.rna,
        folds=first.folds,
        row=first.row + 1,
        patient=first.patient or task.patient_of(first.case_id, slides),
    )


def _refuse_other(
    uri: str, column: str, before: object, value: object, first: LabelRow, row: LabelRow
) -> None:
    if before != value:
        expected = f"{before!r} as row {first.row + 1:,} of case {first.case_id} has"
        way_out = "Rows of one case agree in label and part: correct one of them."
        raise bad_cell(uri, row.row, column, expected, value, way_out)


def _code(uri: str, task: Task, found: Rows, row: LabelRow) -> int | None:
    """The code that the task row gives to the label."""
    if not task.has_class_labels:
        return None
    if row.label is None:
        _refuse_dialect(uri, task, found)
        raise bad_cell(uri, row.row, found.label, "a class", None, "Fill it in or drop the row.")
    code = task.code_of(row.label)
    if code is None:
        expected = f"a class of {task.task_id} ({', '.join(task.class_names)})"
        way_out = (
            "Correct the label, drop the row, or map it in label_aliases of a row of your own."
        )
        raise bad_cell(uri, row.row, found.label, expected, row.label, way_out)
    return code


def _months(uri: str, task: Task, found: Rows, row: LabelRow) -> float | None:
    """The time, which is longer than nothing."""
    if not task.has_survival_labels:
        return None
    if row.time_months is None:
        _refuse_dialect(uri, task, found)
        raise bad_cell(uri, row.row, found.time, "a time", None, "Fill it in or drop the row.")
    if row.time_months <= 0:
        way_out = "Correct the time, or drop the row: nobody was observed."
        raise bad_cell(uri, row.row, found.time, "more than 0", row.time_months, way_out)
    return row.time_months


def _refuse_dialect(uri: str, task: Task, found: Rows) -> None:
    """A survival table for a task of classes, or the other way round."""
    survival = any(row.time_months is not None for row in found.rows)
    if survival != task.has_survival_labels:
        has, needs = ("times", "classes") if survival else ("classes", "times and events")
        raise TableError(
            f"{uri}: expected {needs} for the {task.kind} task {task.task_id}, got a table of "
            f"{has} ({found.dialect}). Give the table of this task."
        )


def _data_source(uri: str, rows: Sequence[LabelRow]) -> str:
    """Real or generated; a table never holds both, as they are never averaged."""
    sources = {row.data_source or "real": row.row for row in rows}
    if len(sources) > 1:
        row = min(row.row for row in rows if row.data_source == "generated")
        expected = "rows that are all real or all generated"
        raise bad_cell(uri, row, "data_source", expected, "generated", "Make two tables of it.")
    return next(iter(sources), "real")
