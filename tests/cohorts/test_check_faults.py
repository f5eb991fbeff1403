"""`mstar cohort check`: every crafted fault is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mstar.cohorts.check import run
from mstar.cohorts.check_problems import KINDS
from mstar.training.exit_codes import ExitCode
from support.cohort_faults import (
    add_case_to_registry,
    append,
    bare_case,
    change_case,
    drop_case_from_registry,
    edit,
    edit_further_split,
    empty_features,
    grid_among_features,
    odd_features,
    other_part,
    registry_of_other_table,
    set_rna,
    share_slide,
    two_cases_of_a_patient,
)
from support.sound_cohort import Made

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


@pytest.fixture
def made(sound_cohort: Made, tmp_path: Path) -> Made:
    """A copy to break."""
    return sound_cohort.copied(tmp_path)


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
