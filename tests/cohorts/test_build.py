"""The build job: what goes into a cohort folder, from sources as they are published."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mstar.cohorts.build import BuildConfig, run
from mstar.cohorts.selection import NO_BARCODE, NO_CASE
from mstar.data.cases import Case, read_cases
from mstar.data.rna.store import ExpressionStore
from mstar.errors import CohortError
from mstar.storage.manifest import read_slides
from support.cohort_sources import (
    CLINICAL,
    CONFIG,
    SAMPLES,
    SLIDES,
    UUID,
    A,
    B,
    C,
    D,
    E,
    contents,
    record_of,
    rna_frame,
    write_sources,
)


@pytest.fixture
def config(tmp_path: Path) -> BuildConfig:
    """Sources in a folder of the test's own."""
    return write_sources(tmp_path)


def test_a_cohort_of_tcga_sources(config: BuildConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """Every table holds what the rules take; survival, site and keys are where they belong."""
    assert run(config) == 0
    folder = f"{UUID}/"
    assert read_cases(f"{config.out}/cases.csv") == [
        Case(
            case_id=A,
            cancer_type="BRCA",
            slides=(folder + SLIDES[1], folder + SLIDES[0]),
            report=A,
            rna=A,
            site="AA",
            os_months=20.0,
            os_event=1,
        ),
        Case(case_id=D, cancer_type="BRCA", rna=D, site="AA"),
        Case(
            case_id=B,
            cancer_type="LUAD",
            slides=(folder + SLIDES[3],),
            site="BB",
            os_months=7.5,
            os_event=0,
        ),
        Case(
            case_id=C,
            cancer_type="SKCM",
            report=C,
            rna=C,
            site="EE",
            os_months=12.25,
            os_event=1,
        ),
    ]
    slides = list(read_slides(f"{config.out}/slides.csv"))
    assert [(s.slide_id, s.case_id) for s in slides] == [
        (folder + SLIDES[1], A),
        (folder + SLIDES[0], A),
        (folder + SLIDES[3], B),
    ]
    assert all(Path(slide.uri).exists() for slide in slides)
    reports = pd.read_csv(f"{config.out}/reports.csv", dtype=str)
    assert reports["case_id"].tolist() == [A, C]
    assert "large. It is grade 3" in reports["text"].tolist()[0]
    store = ExpressionStore.open(f"{config.out}/expression")
    chosen = rna_frame()[[SAMPLES[1], SAMPLES[4], SAMPLES[3]]]
    expected = np.log1p(chosen.loc[list(store.genes)].to_numpy().T)
    np.testing.assert_allclose(store.rows([A, D, C]), expected, rtol=1e-6)
    assert set(store.case_ids) == {A, C, D}
    assert "slide–report 1, slide–RNA 1, report–RNA 2, all three 1" in capsys.readouterr().out


def test_everything_left_out_is_counted_and_named(
    config: BuildConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reasons, counts and first names are in cohort.json and on the screen."""
    run(config)
    exclusions = record_of(config.out)["exclusions"]
    folder = f"{UUID}/"
    assert exclusions == {
        "cases": {"no slide, report or expression": {"count": 1, "first": [E]}},
        "reports": {NO_CASE: {"count": 1, "first": ["TCGA-ZZ-9999"]}},
        "rna": {
            "another aliquot of the case is taken": {"count": 1, "first": [SAMPLES[0]]},
            "sample type 11 (normal solid tissue)": {"count": 1, "first": [SAMPLES[2]]},
            NO_BARCODE: {"count": 1, "first": ["Note"]},
        },
        "slides": {
            NO_BARCODE: {"count": 1, "first": [folder + "holiday"]},
            NO_CASE: {"count": 1, "first": [folder + SLIDES[4]]},
            "section TS (top, frozen)": {"count": 1, "first": [folder + SLIDES[2]]},
        },
    }
    screen = capsys.readouterr().out
    assert [r for reasons in exclusions.values() for r in reasons if r not in screen] == []
    assert "of the clinical table 1 with no survival time" in screen
    assert len(screen.splitlines()) < 40


def test_the_record_says_what_made_it(config: BuildConfig) -> None:
    """Counts agree with the tables, digests with the files."""
    run(config)
    record = record_of(config.out)
    assert record["data_source"] == "real"
    counts = record["counts"]
    assert (counts["cases"], counts["slides"], counts["wsi"]) == (4, 3, 2)
    assert counts["cancer_types"] == {"BRCA": 2, "LUAD": 1, "SKCM": 1}
    files = contents(config.out)
    assert set(record["outputs"]) == set(files) - {"cohort.json"}
    found = {name: hashlib.sha256(files[name]).hexdigest() for name in record["outputs"]}
    assert found == record["outputs"]
    assert set(record["sources"]) == {"clinical", "reports", "rna", "slides"}


def test_the_order_of_rows_does_not_matter(config: BuildConfig, tmp_path: Path) -> None:
    """Shuffled sources give the same tables."""
    run(config)
    shuffled = replace(config, out=str(tmp_path / "shuffled"))
    shuffle = random.Random(3).shuffle
    for name, num_head in (("clinical.txt", 2), ("reports.csv", 1)):
        lines = (tmp_path / name).read_text().splitlines(keepends=True)
        rows = lines[num_head:]
        shuffle(rows)
        (tmp_path / name).write_text("".join([*lines[:num_head], *rows]))
    frame = rna_frame().sample(frac=1, random_state=1).sample(frac=1, axis=1, random_state=1)
    frame.to_csv(tmp_path / "rna.tsv", sep="\t")
    run(shuffled)
    first, second = contents(config.out), contents(shuffled.out)
    tables = {"cases.csv", "slides.csv", "reports.csv", "expression/values.npy"}
    assert {n: first[n] for n in tables} == {n: second[n] for n in tables}


def plain_sources(folder: Path) -> BuildConfig:
    """A cohort of ids of its own, whose manifest and slides lie in the cohort's folder."""
    out = folder / "C"
    (out / "slides").mkdir(parents=True)
    (out / "slides.csv").write_text(
        "path,slide_id,mpp,case_id\nslides/b.svs,b,0.5,P2\nslides/a.svs,a,,P1\n"
    )
    (folder / "clinical.csv").write_text("case_id,cancer_type,site\nP1,mine,S\nP2,BRCA,\nP3,X,\n")
    (folder / "reports.csv").write_text("case_id,text\nP3,Some words of it.\n")
    frame = rna_frame().iloc[:, :2].set_axis(["P1", "P3"], axis=1)
    frame.to_csv(folder / "rna.tsv", sep="\t")
    return BuildConfig(
        out=str(out),
        clinical=str(folder / "clinical.csv"),
        slides=str(out / "slides.csv"),
        reports=str(folder / "reports.csv"),
        rna=str(folder / "rna.tsv"),
        ids="plain",
        data_source="generated",
        **CONFIG,
    )


def test_plain_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is parsed; a manifest that fits stays as it is; other cancer types are named."""
    config = plain_sources(tmp_path)
    manifest = (Path(config.out) / "slides.csv").read_bytes()
    assert run(config) == 0
    assert (Path(config.out) / "slides.csv").read_bytes() == manifest
    assert read_cases(f"{config.out}/cases.csv") == [
        Case(case_id="P1", cancer_type="mine", slides=("a",), rna="P1", site="S"),
        Case(case_id="P2", cancer_type="BRCA", slides=("b",)),
        Case(case_id="P3", cancer_type="X", report="P3", rna="P3"),
    ]
    assert record_of(config.out)["data_source"] == "generated"
    screen = capsys.readouterr().out
    assert "not among TCGA's: X (1), mine (1)" in screen
    assert "generated" in screen
    assert run(config) == 0


def test_a_folder_that_moves_stays_a_cohort(tmp_path: Path) -> None:
    """Slides that lie in the cohort's folder are named relative to it."""
    config = plain_sources(tmp_path)
    run(config)
    first = contents(config.out)
    moved = tmp_path / "elsewhere"
    os.rename(config.out, moved)
    assert run(replace(config, out=str(moved), slides=str(moved / "slides.csv"))) == 0
    assert contents(str(moved)) == first
    slides = [slide.uri for slide in read_slides(f"{moved}/slides.csv")]
    assert slides == [f"{moved}/slides/b.svs", f"{moved}/slides/a.svs"]


def test_modalities_may_be_absent(config: BuildConfig) -> None:
    """What is not given is not written, and its cells are empty."""
    run(replace(config, reports=None, rna=None))
    assert set(contents(config.out)) == {"cases.csv", "slides.csv", "cohort.json"}
    cases = read_cases(f"{config.out}/cases.csv")
    assert [case.case_id for case in cases] == [A, B]
    assert not any(case.report or case.rna for case in cases)


def test_studies_are_joined(config: BuildConfig, tmp_path: Path) -> None:
    """Clinical and expression tables of several studies make the cohort that one of each makes."""
    run(config)
    lines = CLINICAL.splitlines(keepends=True)
    clinical, rna = [], []
    for number, rows in enumerate((lines[2:4], lines[4:])):
        clinical.append(tmp_path / f"clinical_{number}.txt")
        clinical[-1].write_text("".join([*lines[:2], *rows]))
        rna.append(tmp_path / f"rna_{number}.tsv")
        rna_frame().iloc[:, 3 * number : 3 * number + 3].to_csv(rna[-1], sep="\t")
    parts = replace(
        config,
        out=config.out + "2",
        clinical=tuple(map(str, clinical)),
        rna=tuple(map(str, rna)),
    )
    run(parts)
    one, two = contents(config.out), contents(parts.out)
    for name in ("cases.csv", "expression/values.npy", "expression/rows.csv"):
        assert one[name] == two[name]
    with pytest.raises(CohortError, match=f"case {E} is in"):
        run(replace(parts, out=config.out + "3", clinical=(str(clinical[0]),) * 2))
