"""Tasks: the 97 rows of the package, and rows of a user's own."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

import mstar.data.tasks as tasks_module
from mstar.data.tasks import KINDS, METRICS, REGIMES, auxiliary_tasks, read_tasks
from mstar.errors import TableError

CSV = Path(tasks_module.__file__).with_name("tasks.csv")


def test_the_97_tasks_are_those_of_the_file() -> None:
    """Every cell of the CSV, read by the standard library, is in its task."""
    with CSV.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    tasks = read_tasks()
    assert len(tasks) == len(rows) == 97
    for task, row in zip(tasks, rows, strict=True):
        assert str(task.number) == row["number"]
        for name in ("task_id", "category", "application_type", "dataset", "endpoint", "kind"):
            assert getattr(task, name) == row[name]
        for name in ("split", "regime", "metric", "access", "source_certainty"):
            assert getattr(task, name) == row[name]
        assert (task.trained_on or "") == row["trained_on"]
        assert str(task.num_samples if task.num_samples is not None else "") == row["n_samples"]
        counts = task.class_counts or [None] * len(task.class_names)
        pairs = zip(task.class_names, counts, strict=True)
        written = "|".join(n if c is None else f"{n}:{c}" for n, c in pairs)
        assert written == row["classes"]


def test_published_numbers() -> None:
    tasks = {task.task_id: task for task in read_tasks()}
    brca = tasks["tcga_brca_path_subtype"]
    assert (brca.class_names, brca.class_counts) == (("IDC", "ILC"), (787, 198))
    assert brca.split_sizes == (656, 95, 234)
    assert tasks["nfcrc_os"].split_sizes is None  # 5fold
    assert tasks["tcga_nsclc_tmb"].class_counts == ()
    assert [task.number for task in read_tasks()] == list(range(1, 98))
    kinds = Counter(task.kind for task in tasks.values())
    assert kinds["survival"] == 16
    assert kinds["fusion_survival"] == 9
    assert sum(task.has_survival_labels for task in tasks.values()) == 25
    assert sum(task.has_class_labels for task in tasks.values()) == 67
    assert set(kinds) == set(KINDS) - {"few_shot"}  # of the older list alone
    assert {task.metric for task in tasks.values()} == set(METRICS)
    assert {task.regime for task in tasks.values()} == set(REGIMES) - {"training_only"}


def test_external_tasks_take_a_head_that_fits() -> None:
    """Where a head is taken from a task, the labels are of one kind and the classes are known."""
    tasks = {task.task_id: task for task in (*read_tasks(), *auxiliary_tasks())}
    for task in tasks.values():
        assert (task.regime == "external") == (task.trained_on is not None)
        if task.trained_on is None:
            continue
        source = tasks[task.trained_on]
        assert task.kind == source.kind
        assert task.class_names == source.class_names  # in one order: a code is one class


def test_the_reference_is_unchanged_and_more_is_said_of_each_row() -> None:
    """Unit by the conventions of the list, a split policy by the regime, a source for all but two.

    Slides are 1 to 11, 20 and 62 to 67.
    """
    slides = {*range(1, 12), 20, *range(62, 68)}
    policies = {"held_out": "registry", "external": "test_only", "zero_shot": "test_fold"}
    for task in read_tasks():
        assert task.unit == ("slide" if task.number in slides else "case")
        own = "kfold" if task.split == "5fold" else "own"
        assert task.split_policy == policies.get(task.regime, own)
        assert task.source or task.number in (53, 54)
        assert (task.source_certainty == "unlisted") == ("unlisted" in task.task_id)
    published = {1, 3, 11, 20, 56, *range(62, 68), *range(73, 82), *range(89, 98)}
    assert {task.number for task in read_tasks() if task.split_file} == published


def test_codes_come_from_the_row_and_aliases_are_taken() -> None:
    task = next(task for task in read_tasks() if task.task_id == "camelyon_metastasis")
    codes = [task.code_of(name) for name in ("normal", "metastasis", "tumor", "Tumor")]
    assert codes == [0, 1, 1, None]


def test_a_patient_is_a_case_a_tcga_participant_or_what_the_pattern_finds() -> None:
    tasks = {task.task_id: task for task in read_tasks()}
    nodes = tasks["camelyon_metastasis"]
    assert nodes.patient_of("patient_004_node_4") == "patient_004"
    assert nodes.patient_of("x", ("patient_004_node_1.tif",)) == "patient_004"
    assert nodes.patient_of("normal_001") == "normal_001"  # CAMELYON16: a slide a patient
    assert tasks["tcga_brca_os"].patient_of("TCGA-A2-A0T2-01Z-00-DX1") == "TCGA-A2-A0T2"


def test_a_table_of_ones_own_needs_three_columns(tmp_path: Path) -> None:
    path = tmp_path / "tasks.csv"
    path.write_text(
        "task_id,kind,metric,classes,trained_on\n"
        "our_her2,classification,macro_auc,0|1+|2+|3+,\n"
        "their_her2,classification,macro_auc,,our_her2\n"
        "their_tp53,classification,macro_auc,,tcga_brca_tp53_mutation\n"
        "our_dfs,survival,c_index,,\n"
    )
    ours = read_tasks(str(path))
    assert [task.task_id for task in ours] == ["our_her2", "their_her2", "their_tp53", "our_dfs"]
    assert ours[0].class_names == ("0", "1+", "2+", "3+")
    assert (ours[0].number, ours[0].num_samples, ours[0].regime) == (None, None, "independent")


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ("a,sorting,macro_auc,,,", "kind"),
        ("a,classification,accuracy,,,", "metric"),
        ("first,survival,c_index,,,", "task_id"),
        ("a/b,survival,c_index,,,", "task_id"),
        ("../a,survival,c_index,,,", "task_id"),
        (",survival,c_index,,,", "task_id"),
        ("a,classification,macro_auc,x:1|y,,", "classes"),
        ("a,classification,macro_auc,x|x,,", "classes"),
        ("a,classification,macro_auc,x||y,,", "classes"),
        ("a,classification,macro_auc,x,,", "classes"),
        ("a,survival,c_index,x|y,,", "classes"),
        ("a,survival,c_index,,nobody,", "trained_on"),
        ("a,survival,c_index,,a,", "trained_on"),
        ("a,survival,c_index,,,7:1", "split"),
        ("a,survival,c_index,,aux_nothing,", "trained_on"),
        ("a,classification,macro_auc,x|y,,,x=y", "label_aliases"),
        ("a,classification,macro_auc,x|y,,,z=w", "label_aliases"),
        ("a,classification,macro_auc,x|y,,,z=x|z=y", "label_aliases"),
        ("a,survival,c_index,,,,,(", "patient_pattern"),
        ("a,survival,c_index,,,,,,patch", "unit"),
        ("a,survival,c_index,,,,,,,whim", "split_policy"),
    ],
)
def test_a_wrong_cell_is_named(tmp_path: Path, row: str, column: str) -> None:
    path = tmp_path / "tasks.csv"
    more = "label_aliases,patient_pattern,unit,split_policy"
    head = f"task_id,kind,metric,classes,trained_on,split,{more}\n"
    path.write_text(f"{head}first,survival,c_index,,,7:1:2,,,,\n{padded(row, head)}\n")
    with pytest.raises(TableError, match=rf"row 2, column {column}: expected"):
        read_tasks(str(path))


def padded(row: str, head: str) -> str:
    """The row with as many cells as the header."""
    return row + "," * (head.count(",") - row.count(","))
