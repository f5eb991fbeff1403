"""Tasks: what the paper evaluates a model on, one row each in `tasks.csv` beside this file.

    number            1 to 97, the order of the paper's groups
    task_id           unique; names the label table labels/<task_id>.csv
    category, application_type, dataset, endpoint   what is predicted, and on which data
    kind              how it is scored and trained: one of KINDS
    classes           name:cases joined by |, in label order; names alone where no count is
                      published; empty where there are no classes or their names are unpublished
    n_samples, split  as published: `train:val:test`, `5fold`, or empty
    regime            held_out (cut from the pretraining cohort) | external (test only) |
                      independent (own split, own data) | zero_shot
    trained_on        whose head an external task takes: a task_id, or `aux_…` for a head that is
                      trained for this purpose alone and is not one of the tasks
    metric, access, source_certainty   S: stated; S_conflict: stated twice, differently;
                      I: inferred; unlisted: counted by the paper, not named

Users add tasks as rows of a table of their own: only task_id, kind and metric are required there.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mstar.data.tables import Column, bad_cell, read_table
from mstar.storage.ids import slide_id_problem

KINDS = (
    "classification",
    "ordinal",
    "survival",
    "fusion_survival",
    "zero_shot",
    "retrieval",
    "report_generation",
)
REGIMES = ("held_out", "external", "independent", "zero_shot")
METRICS = ("macro_auc", "c_index", "recall_at_k", "bleu_meteor_rouge")
AUXILIARY = "aux_"  # heads that external tasks take, but that are no tasks themselves

_CLASSED = ("classification", "ordinal", "zero_shot")
_SURVIVAL = ("survival", "fusion_survival")
_COUNTED = re.compile(r"(?P<name>.+):(?P<count>[0-9]+)")
_SIZES = re.compile(r"[0-9]+:[0-9]+:[0-9]+")
_FOLDS = re.compile(r"[0-9]+fold")
_PACKAGED = Path(__file__).with_name("tasks.csv")


def _optional(name: str, kind: Any = "text", allowed: tuple[str, ...] = ()) -> Column:
    return Column(name=name, kind=kind, required=False, nullable=True, allowed=allowed)


TASK_COLUMNS = (
    _optional("number", "integer"),
    Column(name="task_id", unique=True),
    _optional("category"),
    _optional("application_type"),
    _optional("dataset"),
    _optional("endpoint"),
    Column(name="kind", allowed=KINDS),
    _optional("classes"),
    _optional("n_samples", "integer"),
    _optional("split"),
    _optional("regime", allowed=REGIMES),
    _optional("trained_on"),
    Column(name="metric", allowed=METRICS),
    _optional("access", allowed=("public", "private")),
    _optional("source_certainty"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task: a cohort, a label, a metric and a split.

    class_names: in label order; empty where there are none, or none are published.
    class_counts: cases of each class as published, as many as names, or empty.
    num_samples: as published, slides or cases as the source counts.
    split: as published; what a run uses is the split of its label table.
    trained_on: the task, or auxiliary task, whose head is tested here.
    """

    task_id: str
    kind: str
    metric: str
    number: int | None = None
    category: str = ""
    application_type: str = ""
    dataset: str = ""
    endpoint: str = ""
    class_names: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()
    num_samples: int | None = None
    split: str = ""
    regime: str = "independent"
    trained_on: str | None = None
    access: str = ""
    source_certainty: str = ""

    @property
    def has_survival_labels(self) -> bool:
        """Whether its label table holds times and events."""
        return self.kind in _SURVIVAL

    @property
    def has_class_labels(self) -> bool:
        """Whether its label table holds one class a case."""
        return self.kind in _CLASSED

    @property
    def split_sizes(self) -> tuple[int, int, int] | None:
        """Published sizes of train, val and test; None where none are, or it is cross-validated."""
        if not _SIZES.fullmatch(self.split):
            return None
        train, val, test = map(int, self.split.split(":"))
        return train, val, test


def read_tasks(uri: str | None = None) -> tuple[Task, ...]:
    """The 97 tasks of the paper, or the tasks of another table of the same columns.

    Raises:
        TableError: a cell is not what it should be, or `trained_on` names no task of the table
            or of the paper.
    """
    where = str(_PACKAGED) if uri is None else uri
    rows = read_table(where, TASK_COLUMNS).to_pylist()
    tasks = tuple(_task(where, row, cells) for row, cells in enumerate(rows))
    known = {task.task_id for task in tasks} | ({t.task_id for t in read_tasks()} if uri else set())
    _check_trained_on(where, tasks, known)
    return tasks


def _task(uri: str, row: int, cells: dict[str, Any]) -> Task:
    """One row, its cells checked and parsed; empty cells fall back to the defaults."""
    problem = slide_id_problem(cells["task_id"])
    if problem or "/" in cells["task_id"]:
        expected = "a name that a file can have"
        raise bad_cell(uri, row, "task_id", expected, cells["task_id"], "Use letters, digits, _.")
    names, counts = _classes(uri, row, cells.get("classes") or "")
    if (len(names) == 1) or (names and cells["kind"] not in _CLASSED):
        expected = "two classes or more for a task that has classes, else none"
        raise bad_cell(uri, row, "classes", expected, cells["classes"], "Correct classes or kind.")
    split = cells.get("split") or ""
    if split and not (_SIZES.fullmatch(split) or _FOLDS.fullmatch(split)):
        expected = "train:val:test or 5fold"
        raise bad_cell(uri, row, "split", expected, split, "Leave it empty if unknown.")
    parsed = {"classes", "n_samples", "split"}
    plain = {key: value for key, value in cells.items() if value is not None and key not in parsed}
    return Task(
        **plain,
        class_names=names,
        class_counts=counts,
        num_samples=cells.get("n_samples"),
        split=split,
    )


def _classes(uri: str, row: int, text: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and counts of `IDC:787|ILC:198`; no counts for `low|high`."""
    if not text:
        return (), ()
    parts = text.split("|")
    matches = [match for part in parts if (match := _COUNTED.fullmatch(part))]
    names = tuple(match["name"] for match in matches) if matches else tuple(parts)
    if len(matches) not in (0, len(parts)) or not all(names) or len(set(names)) < len(names):
        expected = "different names joined by |, with `:count` after each or after none"
        raise bad_cell(uri, row, "classes", expected, text, "Write it like IDC:787|ILC:198.")
    return names, tuple(int(match["count"]) for match in matches)


def _check_trained_on(uri: str, tasks: Sequence[Task], known: set[str]) -> None:
    for row, task in enumerate(tasks):
        source = task.trained_on
        if source is None or source.startswith(AUXILIARY):
            continue
        if source not in known or source == task.task_id:
            expected = f"the id of another task, or {AUXILIARY}… for a head that is no task"
            raise bad_cell(uri, row, "trained_on", expected, source, "Correct the id.")
