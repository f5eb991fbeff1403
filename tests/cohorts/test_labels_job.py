"""`mstar labels build` from files to tables that `mstar tasks check` takes."""

import json
import re
from pathlib import Path

import pytest

from mstar.cli.main import main
from mstar.cli.resolve import known_flags
from mstar.cohorts.labels_config import LabelsBuildConfig
from mstar.cohorts.labels_job import build_labels, run
from mstar.cohorts.labels_report import summary_lines
from mstar.data.label_build.datasets import DATASETS
from mstar.data.label_build.recipes import KINDS
from mstar.data.label_tables import read_label_table
from mstar.data.labels import ClassLabel, SurvivalLabel
from mstar.data.task_registry import read_task_registry
from mstar.errors import ConfigError, SplitError
from mstar.training.exit_codes import ExitCode
from support.published_files import case, put, tcga, write_cohort, write_public_sets


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Every public data set but TCGA."""
    folder = tmp_path / "S"
    write_public_sets(folder)
    return folder


def config_of(sources: Path, tmp_path: Path, **fields: object) -> LabelsBuildConfig:
    """The job on these files."""
    given: dict[str, object] = {"sources": str(sources), "out": str(tmp_path / "L")}
    return LabelsBuildConfig(**given | fields)  # type: ignore[arg-type]


COUNTS = {
    "panda_isup_grade": {"0": 1, "5": 1},
    "camelyon_metastasis": {"normal": 3, "metastasis": 3},
    "bcnb_er_zero_shot": {"positive": 1, "negative": 1},
    "ubc_ocean_zero_shot": {"HGSC": 1, "LGSC": 1},
    "hancock_path_subtype": {
        "SCC_conventional_keratinizing": 1,
        "SCC_basaloid": 1,
        "SCC_conventional_nonkeratinizing": 1,
    },
    "hancock_hpv": {"negative": 2, "positive": 1},
    "hancock_t_stage": {"T1": 1, "T2": 1, "T4": 1},
    "ebrains_path_subtype": {"GB": 1, "AASTR": 2, "ODG": 1},
    "ebrains_mol_subtype": {"negative": 1, "positive": 2},
}


def test_stated_counts_of_every_public_data_set(sources: Path, tmp_path: Path) -> None:
    outcomes = {o.task.task_id: o for o in build_labels(config_of(sources, tmp_path))}
    for task_id, expected in COUNTS.items():
        outcome = outcomes[task_id]
        assert outcome.comparison is not None, outcome.reason
        found = {name: here for name, (here, _) in outcome.comparison.classes.items() if here}
        assert found == expected, task_id
    two = [x for x in outcomes["ebrains_mol_subtype"].derived.labels if x.case_id == "p2"]
    assert [label.slides for label in two] == [("u2", "u3")], "a case with all its slides"
    assert outcomes["panda_isup_grade"].derived.dropped == {"isup_grade unknown": 1}
    assert outcomes["tcga_brca_os"].state == "no files"
    assert outcomes["tcga_mutation_unlisted_1"].state == "no derivation"


def test_recurrence_free_survival_ends_with_recurrence_or_death(
    sources: Path, tmp_path: Path
) -> None:
    (outcome,) = build_labels(config_of(sources, tmp_path, tasks=("hancock_rfs",)))
    labels = [x for x in outcome.derived.labels if isinstance(x, SurvivalLabel)]
    month = 365.25 / 12
    found = {x.case_id: (round(x.time_months * month), x.event) for x in labels}
    assert found == {"001": (300, 0), "002": (200, 1), "003": (100, 1)}
    assert outcome.derived.dropped == {"time 0": 1}


def test_tables_are_those_that_tasks_read_and_parts_keep_patients(
    sources: Path, tmp_path: Path
) -> None:
    assert run(config_of(sources, tmp_path)) == ExitCode.COMPLETE
    registry = read_task_registry()
    for path in (tmp_path / "L").glob("*.csv"):
        table = read_label_table(str(path), registry.get(path.stem))
        assert table.samples
    first, twin = (
        read_label_table(str(tmp_path / "L" / f"{name}.csv"), registry.get(name)).samples
        for name in ("camelyon_metastasis", "camelyon_zero_shot")
    )
    parts = {sample.folds["0"] for sample in first if sample.patient == "patient_000"}
    assert len(parts) == 1, "nodes of one patient stay together"
    assert [sample.folds for sample in twin] == [sample.folds for sample in first]


def test_parts_have_the_shares_asked_for(tmp_path: Path) -> None:
    rows = "".join(f"i{n},{n % 6}\n" for n in range(600))
    put(tmp_path, "S/panda/train.csv", f"image_id,isup_grade\n{rows}")
    config = config_of(tmp_path / "S", tmp_path, tasks=("panda_isup_grade",))
    (outcome,) = build_labels(config)
    labels = [label for label in outcome.derived.labels if isinstance(label, ClassLabel)]
    for grade in "012345":
        parts = [label.split for label in labels if label.label == grade]
        assert [parts.count(part) for part in ("train", "val", "test")] == [70, 10, 20]


def test_run_again_writes_nothing_and_other_settings_are_refused(
    sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(sources, tmp_path, tasks=("camelyon_metastasis", "hancock_os"))
    assert run(config) == ExitCode.COMPLETE
    before = {path: path.read_bytes() for path in (tmp_path / "L").iterdir()}
    assert run(config) == ExitCode.COMPLETE
    assert "0 tables written, 2 as they were" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (tmp_path / "L").iterdir()} == before
    other = ["--isolated-cells", "normal", "--tasks", "camelyon_metastasis"]
    words = ["labels", "build", "--sources", str(sources), "--out", str(tmp_path / "L"), *other]
    assert main(words) == ExitCode.FAILED
    assert "camelyon_metastasis" in capsys.readouterr().err
    assert main([*words, "--replace"]) == ExitCode.COMPLETE
    task = read_task_registry().get("camelyon_metastasis")
    table = read_label_table(str(tmp_path / "L" / "camelyon_metastasis.csv"), task)
    assert sum(sample.label == 1 for sample in table.samples) == 2


def test_record_says_what_made_the_tables(sources: Path, tmp_path: Path) -> None:
    run(config_of(sources, tmp_path, tasks=("panda_isup_grade",)))
    record = json.loads((tmp_path / "L" / "labels.json").read_text())
    task = record["tasks"]["panda_isup_grade"]
    assert task["samples"] == 2
    assert task["dropped"] == {"isup_grade unknown": 1}
    assert task["counts"]["classes"]["0"] == [1, 2724]
    assert [uri.rpartition("/")[2] for uri in record["sources"]] == ["train.csv"]


def test_differences_from_the_published_counts_are_shown(sources: Path, tmp_path: Path) -> None:
    config = config_of(sources, tmp_path, tasks=("panda_isup_grade", "tcga_brca_os"))
    text = "\n".join(summary_lines(build_labels(config), config, 0))
    assert "slides 2 (-10,200 of 10,202)" in text
    assert "0 1 (-2,723 of 2,724)" in text
    assert "dropped 1: 1 × isup_grade unknown" in text
    assert "tcga_brca_os: nothing in" in text


def test_excluded_ids_are_left_out_and_counted(sources: Path, tmp_path: Path) -> None:
    put(sources, "panda/exclude.csv", "image_id\na1\n")
    (outcome,) = build_labels(config_of(sources, tmp_path, tasks=("panda_isup_grade",)))
    assert [label.case_id for label in outcome.derived.labels] == ["b2"]
    assert outcome.derived.dropped["excluded by exclude.csv"] == 1


def test_types_of_the_cohort_are_the_classes_of_lung_cancer(tmp_path: Path) -> None:
    cases = [case(1, "LUAD", slides=2), case(2, "LUSC"), case(3, "BRCA")]
    cohort = write_cohort(tmp_path / "C", cases)
    config = config_of(
        tmp_path / "S", tmp_path, cohort=(cohort,), tasks=("tcga_nsclc_path_subtype",)
    )
    (outcome,) = build_labels(config)
    assert outcome.comparison is not None
    assert outcome.comparison.classes == {"LUAD": (2, 541), "LUSC": (1, 512)}
    assert {label.case_id for label in outcome.derived.labels} == {tcga(1), tcga(2)}


def test_nothing_built_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "S").mkdir()
    assert run(config_of(tmp_path / "S", tmp_path)) == ExitCode.EXCLUSIONS
    assert not (tmp_path / "L").exists()


def test_parts_that_cannot_be_read() -> None:
    with pytest.raises(ConfigError, match="--parts"):
        LabelsBuildConfig(sources="S", out="L", parts="7:3")


def test_a_changed_table_is_not_written_over(sources: Path, tmp_path: Path) -> None:
    config = config_of(sources, tmp_path, tasks=("panda_isup_grade",))
    run(config)
    put(sources, "panda/train.csv", "image_id,isup_grade\na1,3\nb2,5\n")
    with pytest.raises(SplitError, match="--replace"):
        run(config)


def test_the_guide_names_every_folder_flag_and_derivation() -> None:
    text = (Path(__file__).parents[2] / "platform" / "docs" / "labels.md").read_text()
    for name, dataset in DATASETS.items():
        assert f"`{dataset.folder}/`" in text, name
    flags = set(re.findall(r"`(--[a-z-]+)", text))
    known = {flag.replace("_", "-") for flag in known_flags(LabelsBuildConfig)}
    assert flags <= known, flags - known
    assert all(f"| `{kind}` |" in text for kind in KINDS)
