"""`mstar cohort check`: a sound cohort passes, and every crafted fault is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from mstar.cohorts.check import CheckConfig, check_cohort, run
from mstar.cohorts.check_problems import KINDS
from mstar.cohorts.check_result import ALL, PRETRAINING, USABLE
from mstar.data.cases import Case, read_cases, write_cases
from mstar.data.rna.config import ExpressionConfig
from mstar.data.rna.expression import preprocess_expression
from mstar.data.splits.registry import SplitRegistry, SplitRow, cases_digest, write_registry
from mstar.errors import CohortError, FeatureError
from mstar.features.files import write_features, write_grid
from mstar.features.store import FeatureStore, GridStore
from mstar.training.exit_codes import ExitCode
from support.feature_files import CONFIG, toy_features, toy_grid, toy_provenance

GENES = ("TP53", "EGFR", "KRAS", "ACTB")
# case → cancer type, slides, report?, RNA?, part
ROWS = {
    "P1": ("BRCA", ("s1a", "s1b"), True, True, "train"),
    "P2": ("BRCA", ("s2",), True, False, "test"),
    "P3": ("BRCA", ("s3",), False, True, "val"),
    "P4": ("LUAD", (), True, True, ""),
    "P5": ("LUAD", ("s5",), True, True, ""),
    "P6": ("LUAD", ("s6",), False, False, "train"),
}
PATCHES = {"s1a": 12, "s1b": 5, "s2": 7, "s3": 3, "s5": 9, "s6": 4}


@dataclass(frozen=True)
class Made:
    """A cohort on disk and its features."""

    folder: Path
    features: Path

    @property
    def config(self) -> CheckConfig:
        return CheckConfig(cohort=str(self.folder), features=str(self.features))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("sound")
    made = Made(root / "C", root / "F")
    (made.folder / "slides").mkdir(parents=True)
    cases = [
        Case(
            case_id=name,
            cancer_type=cancer,
            slides=slides,
            report=name if report else None,
            rna=name if rna else None,
        )
        for name, (cancer, slides, report, rna, _) in ROWS.items()
    ]
    write_cases(str(made.folder / "cases.csv"), cases)
    write_slides(made.folder, cases)
    lines = [f"{c.case_id},Invasive carcinoma of case {c.case_id}." for c in cases if c.report]
    (made.folder / "reports.csv").write_text("\n".join(["case_id,text", *lines]) + "\n")
    write_expression(root, made.folder, [case.case_id for case in cases if case.rna])
    write_split_registry(made.folder, cases)
    (made.folder / "labels").mkdir()
    (made.folder / "labels" / "t1.csv").write_text(
        "case_id,slides,label,split,data_source\nP1,s1a,a,train,real\nP2,s2,b,test,real\n"
    )
    (made.folder / "cohort.json").write_text(json.dumps({"data_source": "generated"}))
    write_store(made.features)
    return made


def write_slides(folder: Path, cases: list[Case]) -> None:
    rows = ["path,slide_id,mpp,case_id"]
    for case in cases:
        for slide in case.slides:
            (folder / "slides" / f"{slide}.svs").write_bytes(b"not looked into")
            rows.append(f"slides/{slide}.svs,{slide},0.5,{case.case_id}")
    (folder / "slides.csv").write_text("\n".join(rows) + "\n")


def write_expression(root: Path, folder: Path, cases: list[str]) -> None:
    values = np.random.default_rng(0).integers(1, 5000, (len(GENES), len(cases)))
    frame = pd.DataFrame(values, columns=cases)
    frame.insert(0, "Hugo_Symbol", GENES)
    frame.to_csv(root / "rna.tsv", sep="\t", index=False)
    config = ExpressionConfig(unit="rsem", transform="none")
    preprocess_expression(str(root / "rna.tsv"), str(folder / "expression"), config)


def write_split_registry(folder: Path, cases: list[Case], **fields: Any) -> None:
    rows = tuple(
        SplitRow(
            case_id=case.case_id,
            cohort=case.cancer_type,
            part=ROWS[case.case_id][4] if case.case_id in ROWS else "",
            pretraining=case.case_id in ROWS and ROWS[case.case_id][4] in ("", "train"),
        )
        for case in cases
    )
    settings = {"name": "mstar", "seed": 0, "cases_digest": cases_digest(cases)} | fields
    write_registry(str(folder), SplitRegistry(rows=rows, **settings))


def write_store(root: Path) -> None:
    store = FeatureStore.open_or_create(str(root), CONFIG)
    for slide, num in PATCHES.items():
        grid, features = toy_grid(slide, num), toy_features(num)
        store.write(slide, grid, features, toy_provenance(store.fingerprint))


@pytest.fixture
def made(sound: Made, tmp_path: Path) -> Made:
    """A copy to break."""
    shutil.copytree(sound.folder, tmp_path / "C")
    shutil.copytree(sound.features, tmp_path / "F")
    return Made(tmp_path / "C", tmp_path / "F")


def test_a_sound_cohort_has_no_problems(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made.config) == ExitCode.COMPLETE
    out = capsys.readouterr().out
    assert "no problem found" in out
    assert "data: generated" in out
    assert f"{sum(PATCHES.values())} in 6 slides" in out
    assert len(out.splitlines()) <= 24  # one screen
    assert max(map(len, out.replace(str(made.folder.parent), "").splitlines())) <= 120


def test_counts_equal_those_of_pandas(made: Made) -> None:
    """Pairs before and after the held-out cases, held against pandas on the case table itself."""
    check = check_cohort(made.config)
    table = pd.read_csv(made.folder / "cases.csv").notna()
    pretraining = pd.read_csv(made.folder / "splits.csv").pretraining == 1
    for name, rows in ((ALL, table), (USABLE, table), (PRETRAINING, table[pretraining])):
        pairs = check.pairs[name]
        assert pairs.cases == len(rows)
        assert pairs.wsi_report == (rows.slides & rows.report).sum()
        assert pairs.wsi_rna == (rows.slides & rows.rna).sum()
        assert pairs.report_rna == (rows.report & rows.rna).sum()
        assert pairs.all_three == (rows.slides & rows.report & rows.rna).sum()
    assert {name: n.cases for name, n in check.cancer_types.items()} == {"BRCA": 3, "LUAD": 3}
    assert {name: n.held_out for name, n in check.cancer_types.items()} == {"BRCA": 2, "LUAD": 0}
    assert (check.num_slides, check.patches.total, check.num_genes) == (6, 40, 4)
    assert sum(check.overlap.values()) == 6


def test_json_and_figure_are_written_and_the_same_each_time(made: Made) -> None:
    run(made.config)
    first = [(made.folder / name).read_bytes() for name in ("check.json", "check.png")]
    content = json.loads(first[0])
    assert content["problems"] == []
    assert content["slides"] == 6
    assert content["patches"] == 40
    assert content["pairs"]["all cases"]["wsi_report"] == 3
    image = matplotlib.image.imread(made.folder / "check.png")
    assert image.shape[0] > 400
    assert image[..., :3].std() > 0.05  # something is drawn
    run(made.config)
    assert first == [(made.folder / name).read_bytes() for name in ("check.json", "check.png")]


def test_outputs_go_where_asked_or_nowhere(made: Made, tmp_path: Path) -> None:
    before = sorted(made.folder.rglob("*"))
    run(replace(made.config, json=str(tmp_path / "x" / "a.json"), figure="none"))
    assert sorted(made.folder.rglob("*")) == before
    assert json.loads((tmp_path / "x" / "a.json").read_text())["errors"] == 0


def test_without_features_patches_come_from_the_cohorts_grids(made: Made) -> None:
    config = replace(made.config, features="")
    assert check_cohort(config).patches.source == "none"
    store = GridStore.open_or_create(str(made.folder / "grids"), CONFIG)
    for slide, num in PATCHES.items():
        store.write(slide, toy_grid(slide, num))
    patches = check_cohort(config).patches
    assert (patches.source, patches.total) == ("grids", 40)
    elsewhere = replace(config, grids=str(made.folder / "grids"))
    assert check_cohort(elsewhere).patches.total == 40


def test_a_slide_that_is_gone_is_no_error_when_its_features_are_there(made: Made) -> None:
    (made.folder / "slides" / "s5.svs").unlink()
    assert [p.kind for p in check_cohort(made.config).problems] == ["slide_file_gone"]
    assert run(made.config) == ExitCode.COMPLETE
    assert run(replace(made.config, strict=True)) == ExitCode.EXCLUSIONS


def test_what_problems_take_away_is_not_counted_as_usable(made: Made) -> None:
    (made.features / "s5.h5").unlink()
    set_rna(made, "P1", 0.0)
    pairs = check_cohort(made.config).pairs
    assert (pairs[ALL].wsi_report, pairs[USABLE].wsi_report) == (3, 2)
    assert (pairs[ALL].all_three, pairs[USABLE].all_three) == (2, 0)
    assert pairs[PRETRAINING].wsi_rna == 0


def test_what_is_no_cohort_or_store_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"expected a cohort folder with cases\.csv"):
        run(CheckConfig(cohort=str(tmp_path / "nothing")))
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(FeatureError, match="expected a store"):
        run(replace(made.config, features=str(tmp_path / "nothing")))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text().replace('"', "")  # no cell here needs its quotes
    assert text.count(old) == 1, (old, text)
    path.write_text(text.replace(old, new))


def append(path: Path, line: str) -> None:
    path.write_text(path.read_text() + line + "\n")


def change_case(made: Made, case_id: str, **fields: Any) -> None:
    """Change a case and make the registry fit, so that nothing else is wrong."""
    uri = str(made.folder / "cases.csv")
    cases = [
        replace(case, **fields) if case.case_id == case_id else case for case in read_cases(uri)
    ]
    write_cases(uri, cases)
    renew_registry(made, cases)


def renew_registry(made: Made, cases: list[Case], **fields: Any) -> None:
    for name in ("splits.csv", "splits.json"):
        (made.folder / name).unlink()
    write_split_registry(made.folder, cases, **fields)


def set_rna(made: Made, case_id: str, value: float) -> None:
    path = made.folder / "expression" / "values.npy"
    values = np.load(path)
    rows = pd.read_csv(made.folder / "expression" / "rows.csv").case_id.tolist()
    values[rows.index(case_id)] = value
    np.save(path, values)


def share_slide(made: Made) -> None:
    edit(made.folder / "cases.csv", "P3,BRCA,s3", "P3,BRCA,s3;s2")
    cases = read_cases(str(made.folder / "cases.csv"), allow_shared_slides=True)
    renew_registry(made, cases)


def two_cases_of_a_patient(made: Made) -> None:
    uri = str(made.folder / "cases.csv")
    ids = {"P4": "TCGA-A2-A0T2", "P6": "TCGA-A2-A0T2-06A"}
    cases = [replace(c, case_id=ids.get(c.case_id, c.case_id)) for c in read_cases(uri)]
    write_cases(uri, cases)
    edit(made.folder / "slides.csv", "0.5,P6", "0.5,TCGA-A2-A0T2-06A")
    renew_registry(made, cases)


def odd_features(made: Made) -> None:
    (made.features / "s5.h5").unlink()
    write_features(
        made.features / "s5.h5", toy_grid("s5", 9), toy_features(9, 16), toy_provenance()
    )


def empty_features(made: Made) -> None:
    (made.features / "s1b.h5").unlink()
    write_features(made.features / "s1b.h5", toy_grid("s1b", 0), toy_features(0), toy_provenance())


def grid_among_features(made: Made) -> None:
    (made.features / "s5.h5").unlink()
    write_grid(made.features / "s5.h5", toy_grid("s5", 9))


def bare_case(made: Made) -> None:
    change_case(made, "P6", slides=())
    edit(made.folder / "slides.csv", "slides/s6.svs,s6,0.5,P6\n", "")


def other_part(made: Made) -> None:
    cases = [
        replace(case, split="val") if case.case_id == "P2" else case for case in cases_of(made)
    ]
    write_cases(str(made.folder / "cases.csv"), cases)
    renew_registry(made, cases)


def cases_of(made: Made) -> list[Case]:
    return read_cases(str(made.folder / "cases.csv"))


def drop_case_from_registry(made: Made) -> None:
    renew_registry(made, cases_of(made)[:-1])


def add_case_to_registry(made: Made) -> None:
    renew_registry(made, [*cases_of(made), Case(case_id="P7", cancer_type="LUAD")])


def registry_of_other_table(made: Made) -> None:
    edit(made.folder / "cases.csv", "P6,LUAD", "P6,LUSC")


def edit_further_split(made: Made) -> None:
    (made.folder / "splits").mkdir()
    (made.folder / "splits" / "kfold.csv").write_text("fold,case_id,part\n0,P1,train\n")


FAULTS: dict[str, tuple[Callable[[Made], None], str, str]] = {
    # name: what breaks the cohort, the kind that must be found, what must be named
    "case table cell": (
        lambda m: edit(m.folder / "cases.csv", "case_id,", "case_no,"),
        "unreadable_table",
        "cases.csv: expected a column case_id",
    ),
    "reports encoding": (
        lambda m: (m.folder / "reports.csv").write_bytes(b"case_id,text\nP1,\xff\xfe\n"),
        "unreadable_table",
        "reports.csv: row 1",
    ),
    "slide table": (
        lambda m: (m.folder / "slides.csv").write_text("slide_id\ns1a\n"),
        "unreadable_table",
        "slides.csv",
    ),
    "slide table gone": (
        lambda m: (m.folder / "slides.csv").unlink(),
        "unreadable_table",
        "slides.csv: there is no such",
    ),
    "expression": (
        lambda m: shutil.rmtree(m.folder / "expression"),
        "unreadable_table",
        "expression",
    ),
    "expression facts": (
        lambda m: (m.folder / "expression" / "expression.json").write_text("{"),
        "unreadable_table",
        "expression",
    ),
    "label table": (
        lambda m: (m.folder / "labels" / "t1.csv").write_text("slide,label\nx,a\n"),
        "unreadable_table",
        "t1.csv: expected a column case_id",
    ),
    "cohort.json": (
        lambda m: (m.folder / "cohort.json").write_text("{"),
        "unreadable_table",
        "cohort.json: expected JSON",
    ),
    "case twice": (
        lambda m: append(m.folder / "cases.csv", "P2,BRCA,,,,,,,"),
        "duplicate_case",
        "P2",
    ),
    "slide in two cases": (share_slide, "shared_slide", "s2"),
    "patient in two cases": (two_cases_of_a_patient, "two_cases_of_one_patient", "TCGA-A2-A0T2"),
    "slide not listed": (
        lambda m: edit(m.folder / "slides.csv", "slides/s5.svs,s5,0.5,P5\n", ""),
        "unlisted_slide",
        "s5",
    ),
    "slide row": (
        lambda m: append(m.folder / "slides.csv", "slides/x.svs,x,fast,"),
        "unusable_slide",
        "x: line 8: mpp",
    ),
    "slide of another case": (
        lambda m: edit(m.folder / "slides.csv", "s5,0.5,P5", "s5,0.5,P6"),
        "slide_of_other_case",
        "s5",
    ),
    "slide file": (
        lambda m: [
            (m.folder / "slides" / "s5.svs").unlink(),
            (m.features / "s5.h5").unlink(),
        ],
        "missing_slide_file",
        "s5",
    ),
    "slide file, embedded": (
        lambda m: (m.folder / "slides" / "s5.svs").unlink(),
        "slide_file_gone",
        "s5",
    ),
    "slide of no case": (
        lambda m: append(m.folder / "slides.csv", "slides/s6.svs,extra,0.5,"),
        "slide_without_case",
        "extra",
    ),
    "features": (lambda m: (m.features / "s3.h5").unlink(), "missing_features", "s3"),
    "features cut off": (
        lambda m: (m.features / "s3.h5").write_bytes((m.features / "s3.h5").read_bytes()[:100]),
        "unreadable_features",
        "s3",
    ),
    "grid for features": (grid_among_features, "unreadable_features", "s5"),
    "features of other dims": (odd_features, "other_features", "s5"),
    "no patch": (empty_features, "slide_without_patches", "s1b"),
    "report absent": (
        lambda m: edit(m.folder / "reports.csv", "P2,Invasive carcinoma of case P2.\n", ""),
        "missing_report",
        "P2",
    ),
    "report empty": (
        lambda m: edit(m.folder / "reports.csv", "Invasive carcinoma of case P2.", "  "),
        "empty_report",
        "P2",
    ),
    "report of no case": (
        lambda m: append(m.folder / "reports.csv", "P9,A report."),
        "report_without_case",
        "P9",
    ),
    "RNA absent": (lambda m: change_case(m, "P2", rna="P2"), "missing_rna", "P2"),
    "RNA zeros": (lambda m: set_rna(m, "P3", 0.0), "zero_rna", "P3"),
    "RNA NaN": (lambda m: set_rna(m, "P3", np.nan), "not_finite_rna", "P3"),
    "RNA of no case": (lambda m: change_case(m, "P3", rna=None), "rna_without_case", "P3"),
    "no modality": (bare_case, "case_without_modality", "P6"),
    "unknown split": (lambda m: change_case(m, "P2", split="tset"), "unknown_split", "tset"),
    "registry edited": (
        lambda m: edit(m.folder / "splits.csv", "P2,BRCA,test,0", "P2,BRCA,train,1"),
        "bad_registry",
        "the table was edited",
    ),
    "registry without digest": (
        lambda m: (m.folder / "splits.json").unlink(),
        "bad_registry",
        "splits.csv",
    ),
    "further split without digest": (edit_further_split, "bad_registry", "kfold.csv"),
    "case without registry row": (drop_case_from_registry, "case_not_in_registry", "P6"),
    "registry row without case": (add_case_to_registry, "registry_case_unknown", "P7"),
    "registry of another table": (registry_of_other_table, "registry_of_other_table", ""),
    "split against registry": (other_part, "split_contradicts_registry", "P2"),
    "test case in pretraining": (
        lambda m: append(m.folder / "labels" / "t1.csv", "P5,s5,a,test,real"),
        "seen_in_pretraining",
        "t1.csv: P5",
    ),
    "label of no case": (
        lambda m: append(m.folder / "labels" / "t1.csv", "P8,,a,,real"),
        "label_without_case",
        "t1.csv: P8",
    ),
}
ACCOMPANIED = {  # what a fault brings with it
    "case table cell": {"slide_without_case", "report_without_case", "rna_without_case"}
    | {"missing_features", "registry_case_unknown", "label_without_case"},
    "case twice": {"unreadable_table"},
    "slide file": {"missing_features"},
    "features": set(),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_found_and_named(
    made: Made, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A crafted fault gives its own kind of problem, and no other than those it must bring."""
    break_it, kind, named = FAULTS[name]
    break_it(made)
    code = run(replace(made.config, figure="none"))
    out = capsys.readouterr().out
    content = json.loads((made.folder / "check.json").read_text())
    found = {problem["kind"]: problem for problem in content["problems"]}
    assert found.keys() - ACCOMPANIED.get(name, set()) == {kind}
    assert found[kind]["count"] == 1
    assert named in found[kind]["examples"][0]
    assert KINDS[kind].what in out
    worst = {KINDS[k].severity for k in found}
    if kind == "unreadable_table":
        assert code == ExitCode.USAGE
    else:
        assert code == (ExitCode.EXCLUSIONS if "error" in worst else ExitCode.COMPLETE)
    assert "Traceback" not in out


def test_every_kind_of_problem_has_a_fault() -> None:
    assert {kind for _, kind, _ in FAULTS.values()} == set(KINDS)


def test_many_examples_are_counted_and_cut(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"X{line:03},A report." for line in range(500)]
    append(made.folder / "reports.csv", "\n".join(lines))
    assert run(made.config) == ExitCode.COMPLETE
    assert "500 reports of no case: X000, X001, X002 and 497 more" in capsys.readouterr().out
    problem = json.loads((made.folder / "check.json").read_text())["problems"][0]
    assert (problem["count"], len(problem["examples"])) == (500, 100)
