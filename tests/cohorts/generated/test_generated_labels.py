"""Labels of generated cohorts: each of the 97 tasks is learnable, and marked."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mstar.cohorts.generated import labels
from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.factors import CaseFactors, iter_cases, slides_of
from mstar.data.labels import read_class_labels, read_survival_labels
from mstar.data.task_registry import read_task_registry
from mstar.data.tasks import Task, read_tasks
from mstar.errors import ConfigError

TASKS = tuple(read_task_registry().by_id.values())
CONFIG = GenerateConfig(out="unused", cases=120, labels="all", missing_wsi=0.1)
PLANTED = ["planted_mutation", "planted_grade", "planted_cancer_type", "planted_survival"]


@pytest.fixture(scope="module")
def cases() -> list[CaseFactors]:
    return list(iter_cases(CONFIG))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cases: list[CaseFactors]) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    ids = labels.write_labels(str(folder), CONFIG, cases)
    assert ids == [*PLANTED, *(task.task_id for task in TASKS)]
    return folder


@pytest.mark.parametrize("task", [t for t in TASKS if t.has_class_labels], ids=lambda t: t.task_id)
def test_a_task_with_classes_shows_its_factor(
    task: Task, folder: Path, cases: list[CaseFactors]
) -> None:
    found = read_class_labels(str(folder / f"labels/{task.task_id}.csv"), task.class_names)
    shown = [case for case in cases if case.num_slides]
    assert [label.case_id for label in found] == [case.case_id for case in shown]
    assert len({label.label for label in found}) >= max(2, len(task.class_names))
    factor = labels.factor_of(task)
    of_value: dict[object, set[str]] = {}
    for case, label in zip(shown, found, strict=True):
        values = (case.cancer_type, case.grade, case.mutation, case.pathway)
        kept = {"cancer_type": 0, "grade": 1, "mutation": 2, "pathway": 3}[factor]
        key = values if factor in ("cancer_type", "grade") else values[kept]
        of_value.setdefault(key, set()).add(label.label)
    assert all(len(names) == 1 for names in of_value.values())


@pytest.mark.parametrize(
    "task", [t for t in TASKS if t.has_survival_labels], ids=lambda t: t.task_id
)
def test_a_survival_task_follows_the_hazard(
    task: Task, folder: Path, cases: list[CaseFactors]
) -> None:
    found = read_survival_labels(str(folder / f"labels/{task.task_id}.csv"))
    shown = [case for case in cases if case.num_slides]
    assert [label.case_id for label in found] == [case.case_id for case in shown]
    if task.endpoint == "OS":
        observed = [(label.time_months, label.event) for label in found]
        assert observed == [(case.os_months, case.os_event) for case in shown]
    months = np.array([label.time_months for label in found])
    hazard = np.array([case.hazard for case in shown])
    assert np.corrcoef(np.log(months), hazard)[0, 1] < -0.25


@pytest.mark.parametrize(
    "task", [t for t in TASKS if not (t.has_class_labels or t.has_survival_labels)],
    ids=lambda t: t.task_id,
)  # fmt: skip
def test_other_tasks_list_the_cases_with_slide_and_report(
    task: Task, folder: Path, cases: list[CaseFactors]
) -> None:
    found = read_class_labels(str(folder / f"labels/{task.task_id}.csv"))
    expected = [case.case_id for case in cases if case.num_slides and case.has_report]
    assert [label.case_id for label in found] == [label.label for label in found] == expected


def test_every_row_is_marked_and_its_split_is_left_to_the_registry(folder: Path) -> None:
    for name in ("planted_mutation", "tcga_crc_mol_subtype", "panda_isup_grade"):
        found = read_class_labels(str(folder / f"labels/{name}.csv"))
        assert {(label.data_source, label.split) for label in found} == {("generated", None)}


def test_planted_labels_are_the_factors(folder: Path, cases: list[CaseFactors]) -> None:
    shown = [case for case in cases if case.num_slides]
    for name, of in {
        "planted_mutation": lambda case: "mutated" if case.mutation else "wildtype",
        "planted_grade": lambda case: str(case.grade),
        "planted_cancer_type": lambda case: case.cancer_type,
    }.items():
        found = read_class_labels(str(folder / f"labels/{name}.csv"))
        assert [label.label for label in found] == [of(case) for case in shown]
        assert found[0].slides == tuple(s.slide_id for s in slides_of(CONFIG, shown[0]))


def test_the_planted_tasks_are_rows_of_a_task_table(folder: Path) -> None:
    tasks = read_tasks(str(folder / "tasks.csv"))
    planted = labels.planted_tasks(CONFIG)
    assert [task.task_id for task in planted] == PLANTED
    assert tasks[: len(planted)] == planted


def test_tasks_without_published_classes_get_those_of_their_labels(folder: Path) -> None:
    rows = {task.task_id: task for task in read_tasks(str(folder / "tasks.csv"))}
    nameless = [t.task_id for t in TASKS if t.has_class_labels and not t.class_names]
    assert set(rows) == {*PLANTED, *nameless}
    for task_id in nameless:
        found = read_class_labels(str(folder / f"labels/{task_id}.csv"))
        assert {label.label for label in found} <= set(rows[task_id].class_names)


def test_one_cancer_type_is_no_task() -> None:
    names = [t.task_id for t in labels.planted_tasks(replace(CONFIG, num_cancer_types=1))]
    assert names == ["planted_mutation", "planted_grade", "planted_survival"]


def test_tasks_are_chosen_by_id_and_wrong_ones_refused() -> None:
    chosen = labels.chosen_tasks("tcga_brca_os, camelyon_metastasis,tcga_brca_os")
    assert [task.task_id for task in chosen] == ["tcga_brca_os", "camelyon_metastasis"]
    assert labels.chosen_tasks("") == ()
    assert len(labels.chosen_tasks("all")) == 97 + 3  # and those that train heads of external tasks
    with pytest.raises(ConfigError, match=r"--labels: .*got 'tcga_brca_oss'"):
        labels.chosen_tasks("tcga_brca_oss")
