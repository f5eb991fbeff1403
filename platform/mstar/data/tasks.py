"""Tasks: what a model is evaluated on, one row each in `tasks*.csv` beside this file.

    number            order in its registry
    task_id           unique; names the label table labels/<task_id>.csv
    category, application_type, dataset, endpoint   what is predicted, and on which data
    kind              how it is scored and trained: one of KINDS
    classes           name:cases joined by |, in the order of the label codes; names alone where no
                      count is published; empty where there are no classes, or their names are
                      unpublished
    n_samples, split  as published: `train:val:test`, `5fold`, or empty
    regime            held_out (cut from the pretraining cohort) | external (test only) |
                      independent (own split, own data) | zero_shot | training_only
    trained_on        whose head an external task takes: a task_id
    metric, access, source_certainty   S: stated; S_conflict: stated twice, differently;
                      I: inferred; unlisted: counted by the paper, not named
    unit              what a sample is: a slide, or a case with all its slides
    split_policy      who says which part a sample is in: one of SPLIT_POLICIES
    source            where slides and labels come from
    split_file        who publishes the parts: `authors`, `authors@<commit>`, or empty
    label_aliases     other=class joined by |: names that label tables use for a class
    patient_pattern   regular expression; what it finds in the case id (or the slide's) is the
                      patient, for cohorts whose cases are no patients
    notes             what one should know before comparing numbers

Users add rows in tables of their own: only task_id, kind and metric are required there. They are
joined with those of the package in `mstar.data.task_registry`.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mstar.data.splits.leaks import patient_of
from mstar.data.tables import Column, bad_cell, read_table
from mstar.data.task_cells import check_pattern, parse_aliases, parse_classes
from mstar.storage.ids import slide_id_problem

KINDS = (
    "classification",
    "ordinal",
    "survival",
    "fusion_survival",
    "zero_shot",
    "few_shot",
    "retrieval",
    "report_generation",
)
REGIMES = ("held_out", "external", "independent", "zero_shot", "training_only")
METRICS = ("macro_auc", "c_index", "recall_at_k", "bleu_meteor_rouge")
UNITS = ("slide", "case")
SPLIT_POLICIES = {
    "registry": "cut from the cohort's split registry",
    "own": "the label table's own train, val and test, or a split made for it",
    "kfold": "every patient tested once, in one of several folds",
    "test_only": "all of it is tested, with the models of another task",
    "train_only": "trains and validates the head of other tasks, tests nothing",
    "test_fold": "the test part of a labelled data set, nothing is trained",
}
_CLASSED = ("classification", "ordinal", "zero_shot", "few_shot")
_SURVIVAL = ("survival", "fusion_survival")
_POLICY_OF_REGIME = {
    "held_out": "registry",
    "external": "test_only",
    "zero_shot": "test_fold",
    "training_only": "train_only",
}
_SIZES = re.compile(r"[0-9]+:[0-9]+:[0-9]+")
_FOLDS = re.compile(r"[0-9]+fold")
_PACKAGED = Path(__file__).with_name("tasks.csv")


def _optional(name: str, kind: Any = "text", allowed: Sequence[str] = ()) -> Column:
    return Column(name=name, kind=kind, required=False, nullable=True, allowed=tuple(allowed))


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
    _optional("unit", allowed=UNITS),
    _optional("split_policy", allowed=tuple(SPLIT_POLICIES)),
    _optional("source"),
    _optional("split_file"),
    _optional("label_aliases"),
    _optional("patient_pattern"),
    _optional("notes"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task: a cohort, a label, a metric and a split; columns are as the module says.

    class_names: a class's place is its code; empty where there are none, or none are published.
    class_counts: as published, as many as names, or empty.
    split: as published; what a run uses is decided by `split_policy`.
    label_aliases: (other name, class).
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
    unit: str = "case"
    split_policy: str = "own"
    source: str = ""
    split_file: str = ""
    label_aliases: tuple[tuple[str, str], ...] = ()
    patient_pattern: str = ""
    notes: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; a class's place is its code."""
        return self.class_names

    @property
    def has_survival_labels(self) -> bool:
        """Whether its label table holds times and events."""
        return self.kind in _SURVIVAL

    @property
    def has_class_labels(self) -> bool:
        """Whether its label table holds one class a sample."""
        return self.kind in _CLASSED

    @property
    def reads_genes(self) -> bool:
        """Whether its samples are slides and gene expression together."""
        return self.kind == "fusion_survival"

    @property
    def split_sizes(self) -> tuple[int, int, int] | None:
        """Published sizes of train, val and test; None where none are, or it is cross-validated."""
        if not _SIZES.fullmatch(self.split):
            return None
        train, val, test = map(int, self.split.split(":"))
        return train, val, test

    def code_of(self, label: str) -> int | None:
        """The code of a class by its name or another name of it; None when it is no class."""
        name = dict(self.label_aliases).get(label, label)
        return self.class_names.index(name) if name in self.class_names else None

    def patient_of(self, case_id: str, slides: Sequence[str] = ()) -> str:
        """The patient that a sample is of: what must never be in two parts."""
        if self.patient_pattern:
            for text in (case_id, *slides):
                found = re.search(self.patient_pattern, text)
                if found:
                    return found[0]
        return patient_of(case_id)


def read_tasks(uri: str | None = None) -> tuple[Task, ...]:
    """The 97 tasks of the paper, or the tasks of another table of the same columns.

    Raises:
        TableError: a cell is not what it should be, or `trained_on` names no task of the table
            or of the paper.
    """
    where = str(_PACKAGED) if uri is None else uri
    tasks = read_task_rows(where)
    known = {task.task_id for task in tasks} | {task.task_id for task in auxiliary_tasks()}
    if uri is not None:
        known |= {task.task_id for task in read_tasks()}
    check_trained_on(where, tasks, known)
    return tasks


def auxiliary_tasks() -> tuple[Task, ...]:
    """The tasks that only train heads for external tasks, and are none of the 97."""
    return read_task_rows(str(_PACKAGED.with_name("tasks_auxiliary.csv")))


def read_task_rows(uri: str) -> tuple[Task, ...]:
    """The tasks of a table, whatever `trained_on` names."""
    rows = read_table(uri, TASK_COLUMNS).to_pylist()
    return tuple(_task(uri, row, cells) for row, cells in enumerate(rows))


def check_trained_on(uri: str, tasks: Sequence[Task], known: Collection[str]) -> None:
    """Raises TableError when a task takes the head of a task that is not known, or its own."""
    for row, task in enumerate(tasks):
        source = task.trained_on
        if source is not None and (source not in known or source == task.task_id):
            expected = "the id of another task"
            raise bad_cell(uri, row, "trained_on", expected, source, "Correct the id.")


def _task(uri: str, row: int, cells: dict[str, Any]) -> Task:
    """One row, its cells checked and parsed; empty cells fall back to the defaults."""
    problem = slide_id_problem(cells["task_id"])
    if problem or "/" in cells["task_id"]:
        expected = "a name that a file can have"
        raise bad_cell(uri, row, "task_id", expected, cells["task_id"], "Use letters, digits, _.")
    names, counts = parse_classes(uri, row, cells.get("classes") or "")
    if (len(names) == 1) or (names and cells["kind"] not in _CLASSED):
        expected = "two classes or more for a task that has classes, else none"
        raise bad_cell(uri, row, "classes", expected, cells["classes"], "Correct classes or kind.")
    split = cells.get("split") or ""
    if split and not (_SIZES.fullmatch(split) or _FOLDS.fullmatch(split)):
        expected = "train:val:test or 5fold"
        raise bad_cell(uri, row, "split", expected, split, "Leave it empty if unknown.")
    check_pattern(uri, row, cells.get("patient_pattern") or "")
    parsed: dict[str, Any] = {
        "class_names": names,
        "class_counts": counts,
        "num_samples": cells.get("n_samples"),
        "split": split,
        "label_aliases": parse_aliases(uri, row, cells.get("label_aliases") or "", names),
        "split_policy": cells.get("split_policy")
        or _POLICY_OF_REGIME.get(cells.get("regime") or "", "own"),
    }
    left = parsed.keys() | {"classes", "n_samples"}
    plain = {key: value for key, value in cells.items() if value is not None and key not in left}
    return Task(**plain, **parsed)
