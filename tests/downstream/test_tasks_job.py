"""`mstar tasks`: what is listed, what a task needs, and which tasks labels and features carry."""

from pathlib import Path

import pandas as pd
import pytest
import tyro

from mstar.cohorts.generated import labels
from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.factors import iter_cases, slide_ids_of
from mstar.data.cases import Case
from mstar.data.labels import write_class_labels, write_survival_labels
from mstar.data.splits.preset import PresetConfig, make_registry
from mstar.data.splits.registry import write_registry
from mstar.data.task_registry import read_task_registry
from mstar.downstream.task_survey import TaskState
from mstar.downstream.tasks_job import (
    TasksCheckConfig,
    TasksListConfig,
    TasksShowConfig,
    check_tasks,
    parse_features,
    run_check,
    run_list,
    run_show,
)
from mstar.errors import ConfigError
from mstar.features.store import FeatureStore
from mstar.training.exit_codes import ExitCode
from support.label_tables import write_lines

CONFIG = GenerateConfig(out="unused", cases=200, labels="all")
LEVELS = "task_id,kind,metric,classes"
UNPUBLISHED = (
    "zj1_brca_er_level,ordinal,macro_auc,0|1|2|3",
    "zj1_brca_her2_level,ordinal,macro_auc,0|1|2|3",
    "breast_ck5_ihc,classification,macro_auc,negative|positive",
    "lung_ck7_ihc,classification,macro_auc,negative|positive",
)


def named_store(root: Path, slides: set[str]) -> str:
    """A store in which these slides are done, told by their names."""
    FeatureStore.open_or_create(str(root), {"encoder": "x"})
    for slide in slides:
        (root / f"{slide}.h5").write_bytes(b"")
    return str(root)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated cohort of tables: labels of every task, auxiliary ones too, and its registry."""
    folder = tmp_path_factory.mktemp("cohort")
    generated = list(iter_cases(CONFIG))
    shown = [case for case in generated if case.num_slides]
    labels.write_labels(str(folder), CONFIG, generated)
    for task in read_task_registry().auxiliary:
        uri = str(folder / f"labels/{task.task_id}.csv")
        if task.has_survival_labels:
            write_survival_labels(uri, labels.survival_labels(CONFIG, task, shown))
        else:
            write_class_labels(uri, labels.class_labels(CONFIG, task, shown))
    cases = [
        Case(
            case_id=case.case_id,
            cancer_type=case.cancer_type,
            os_months=case.os_months,
            os_event=case.os_event,
        )
        for case in generated
    ]
    registry = make_registry(cases, PresetConfig(cohorts="all", min_cases=0))
    write_registry(str(folder), registry)
    write_lines(folder, "mine.csv", LEVELS, *UNPUBLISHED)
    named_store(folder / "F", {slide for case in shown for slide in slide_ids_of(case)})
    return folder


def check(cohort: Path, **fields: object) -> dict[str, TaskState]:
    given = {
        "labels": str(cohort / "labels"),
        "features": (f"mstar={cohort / 'F'}",),
        "cohort": str(cohort),
        "own": (str(cohort / "mine.csv"),),
    }
    found = check_tasks(TasksCheckConfig(**given | fields))  # type: ignore[arg-type]
    return {state.task.task_id: state for state in found}


def test_every_task_with_labels_of_the_generated_cohort_is_ready(cohort: Path) -> None:
    """All 97, and those that every generated cohort has; fusion asks for gene expression."""
    states = check(cohort)
    refused = {task_id: state.reason for task_id, state in states.items() if state.reason}
    assert len(refused) == 9
    assert all(states[task_id].state == "no genes" for task_id in refused)
    ready = [state for state in states.values() if state.state == "ready"]
    assert len(ready) == 88 + len(labels.planted_tasks(CONFIG))
    for state in ready:
        data = state.data["mstar"]
        assert (data.data_source, data.match.rate) == ("generated", 1.0)
        tests_only = state.task.split_policy in ("test_only", "test_fold")
        assert bool(len(data.folds[0].train)) != tests_only
        trained = {data.patients[at] for at in data.folds[0].train.tolist()}
        assert not trained & {data.patients[at] for at in data.folds[0].test.tolist()}


def test_no_external_case_was_trained_on(cohort: Path) -> None:
    states = check(cohort, tasks=("zj1_os", "tcga_brca_os"))
    inside, outside = (states[name].data["mstar"] for name in ("tcga_brca_os", "zj1_os"))
    used = {inside.patients[at] for part in ("train", "val")
            for at in getattr(inside.folds[0], part).tolist()}  # fmt: skip
    assert used
    assert not used & set(outside.patients)


def test_each_missing_thing_is_a_reason_of_its_task_alone(cohort: Path, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    text = (cohort / "labels/tcga_brca_os.csv").read_text().splitlines()
    write_lines(folder, "tcga_brca_os.csv", *text)
    write_lines(folder, "zj1_dfs.csv", *text)
    write_lines(folder, "tcga_brca_path_subtype.csv", "case_id,slides,label", "GEN-1,x,Neither")
    states = check(cohort, labels=str(folder), tasks=("all",))
    assert states["tcga_brca_os"].state == "ready"
    assert states["tcga_crc_os"].state == "no labels"
    assert "needs the head of tcga_brca_dfs: no label table" in states["zj1_dfs"].reason
    assert "row 1, column label: expected a class" in states["tcga_brca_path_subtype"].reason
    assert states["zj1_brca_er_level"].state == "no labels"


def test_a_task_without_features_is_reported_not_shrunk(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slides = sorted(FeatureStore.open(str(cohort / "F")).done_ids())
    half = named_store(tmp_path / "half", set(slides[::2]))
    config = TasksCheckConfig(
        labels=str(cohort / "labels"),
        features=(f"full={cohort / 'F'}", f"half={half}"),
        cohort=str(cohort),
        tasks=("tcga_brca_os",),
    )
    assert run_check(config) == ExitCode.EXCLUSIONS
    shown = capsys.readouterr().out
    assert "1 refused" in shown
    assert "not with half" in shown
    assert "samples lack features" in shown
    assert "(100.0%), by rule:" in shown
    states = {state.task.task_id: state for state in check_tasks(config)}
    assert list(states["tcga_brca_os"].data) == ["full"]


def test_a_published_split_that_leaks_is_marked(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.read_csv(cohort / "labels/tcga_brca_os.csv")
    frame["split"] = [("train", "val", "test", "train")[at % 4] for at in range(len(frame))]
    (tmp_path / "labels").mkdir()
    frame.to_csv(tmp_path / "labels/tcga_brca_os.csv", index=False)
    fields = {
        "labels": str(tmp_path / "labels"),
        "features": (f"mstar={cohort / 'F'}",),
        "cohort": str(cohort),
        "tasks": ("tcga_brca_os",),
    }
    assert run_check(TasksCheckConfig(**fields)) == ExitCode.EXCLUSIONS  # type: ignore[arg-type]
    assert "--published-split" in capsys.readouterr().out
    marked = TasksCheckConfig(**fields, published_split=("survival",))  # type: ignore[arg-type]
    assert run_check(marked) == ExitCode.COMPLETE
    assert "leak: " in capsys.readouterr().out


def test_all_97_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_list(TasksListConfig()) == ExitCode.COMPLETE
    lines = capsys.readouterr().out.splitlines()
    assert sum(line[:1].isdigit() for line in lines) == 97
    assert "97 tasks: 57 classification, 4 ordinal" in lines[-2]
    assert "aux_tcga_stad_lauren" in lines[-1]
    by_id = {line.split()[1]: line for line in lines[1:98]}
    assert by_id["tcga_mutation_unlisted_1"].endswith("not named by the paper")
    assert run_list(TasksListConfig(registry="mstar-v1")) == ExitCode.COMPLETE
    assert "mstar-v1: 43 tasks" in capsys.readouterr().out


def test_a_task_shows_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_show(TasksShowConfig(task="nfgc_lauren")) == ExitCode.COMPLETE
    shown = capsys.readouterr().out
    assert "0 diffuse (159), 1 intestinal (102), 2 mixed (127)" in shown
    assert "the head of aux_tcga_stad_lauren" in shown
    assert run_show(TasksShowConfig(task="v1_gbmlgg_idh1")) == ExitCode.COMPLETE
    assert "not task 57 of the 97" in capsys.readouterr().out
    run_show(TasksShowConfig(task="zj1_brca_er_level"))
    assert "class names, which are not published" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="Did you mean nfgc_lauren"):
        run_show(TasksShowConfig(task="nfgc_laurent"))


def test_features_are_named_stores() -> None:
    assert parse_features(["uni=F1,F2", "mstar=s3://b/F3"]) == {
        "uni": ("F1", "F2"),
        "mstar": ("s3://b/F3",),
    }
    assert parse_features(["F"]) == {"features": ("F",)}
    for words in ([], ["uni="], ["uni=a", "uni=b"], ["=a"]):
        with pytest.raises(ConfigError, match="--features"):
            parse_features(words)


def test_the_command_line_takes_the_configs() -> None:
    config = tyro.cli(TasksCheckConfig, args=["--labels", "L", "--features", "uni=F1,F2", "m=F3"])
    assert config.features == ("uni=F1,F2", "m=F3")
    assert tyro.cli(TasksShowConfig, args=["tcga_brca_os"]).task == "tcga_brca_os"
    with pytest.raises(ConfigError, match="--split: expected --cohort"):
        TasksCheckConfig(labels="L", features=("F",), split="cv5")
    with pytest.raises(ConfigError, match="--max-missing 1"):
        TasksCheckConfig(labels="L", features=("F",), max_missing=1.0)
