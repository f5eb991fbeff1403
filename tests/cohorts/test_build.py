"""The build job: what goes into a cohort folder, from sources as they are published."""

from __future__ import annotations

import hashlib
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mstar.cohorts import build
from mstar.cohorts.build import BuildConfig, run
from mstar.cohorts.selection import NO_BARCODE, NO_CASE
from mstar.data.cases import Case, read_cases
from mstar.data.rna.config import ExpressionConfig
from mstar.data.rna.store import ExpressionStore
from mstar.errors import CohortError, ConfigError, TableError
from mstar.storage import objects
from mstar.storage.manifest import read_slides

UUID = "25c0b433-5557-4165-922e-2c1eac9c26f0"
A, B, C, D, E = (f"TCGA-{site}-000{n}" for n, site in enumerate(("AA", "BB", "EE", "AA", "DD")))
SLIDES = (
    f"{A}-01Z-00-DX2.{UUID}",
    f"{A}-01Z-00-DX1.{UUID}",
    f"{A}-01A-01-TS1.{UUID}",
    f"{B}-01Z-00-DX1.{UUID}",
    "TCGA-ZZ-9999-01Z-00-DX1",
    "holiday",
)
CLINICAL = f"""#Patient Identifier\tOverall Survival
PATIENT_ID\tCANCER_TYPE_ACRONYM\tOS_STATUS\tOS_MONTHS
{E}\tBRCA\t0:LIVING\t3
{D}\tBRCA\t0:LIVING\t
{C}\tSKCM\t1:DECEASED\t12.25
{B}\tLUAD\t0:LIVING\t7.5
{A}\tBRCA\t1:DECEASED\t20
"""
REPORTS = f"""patient_filename,text
{A}.{UUID},The tumour is large. It is   grade 3.
{C}.{UUID},Melanoma of the skin with ulceration.
TCGA-ZZ-9999.{UUID},Nobody is known by this name.
"""
SAMPLES = (f"{A}-01A-11R-A084-07", f"{A}-01A-11R-A090-07", f"{B}-11", f"{C}-06", f"{D}-01", "Note")
GENES = ("TP53", "BRCA1", "EGFR", "KRAS")
CONFIG = {"expression": ExpressionConfig(unit="rsem", transform="none")}


def rna_frame() -> pd.DataFrame:
    """RSEM-like numbers, genes × samples."""
    rng = np.random.default_rng(0)
    values = rng.gamma(0.5, 4000, (len(GENES), len(SAMPLES))).round(4)
    return pd.DataFrame(values, index=pd.Index(GENES, name="Hugo_Symbol"), columns=SAMPLES)


def write_sources(folder: Path) -> BuildConfig:
    """Sources as TCGA's are; the config that builds a cohort of them."""
    slides = folder / "slides" / UUID
    slides.mkdir(parents=True)
    for name in SLIDES:
        (slides / f"{name}.svs").write_bytes(b"")
    (folder / "clinical.txt").write_text(CLINICAL)
    (folder / "reports.csv").write_text(REPORTS)
    rna_frame().to_csv(folder / "rna.tsv", sep="\t")
    return BuildConfig(
        out=str(folder / "C"),
        clinical=str(folder / "clinical.txt"),
        slides=str(folder / "slides"),
        reports=str(folder / "reports.csv"),
        rna=str(folder / "rna.tsv"),
        **CONFIG,
    )


@pytest.fixture
def config(tmp_path: Path) -> BuildConfig:
    """Sources in a folder of the test's own."""
    return write_sources(tmp_path)


def contents(out: str) -> dict[str, bytes]:
    """Name → bytes of every file of a cohort folder."""
    return {info.rel: objects.read_bytes(info.uri) for info in objects.list_files(out)}


def record_of(out: str) -> dict[str, object]:
    """What cohort.json says."""
    found = json.loads(objects.read_bytes(objects.join(out, "cohort.json")))
    assert isinstance(found, dict)
    return found


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


def test_again_does_nothing(config: BuildConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """The second run writes no file; a build elsewhere gives the same bytes."""
    run(config)
    before = {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*")}
    capsys.readouterr()
    assert run(config) == 0
    assert {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*")} == before
    assert "nothing to do" in capsys.readouterr().out
    elsewhere = replace(config, out=config.out + "2")
    run(elsewhere)
    assert contents(elsewhere.out) == contents(config.out)


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sections": ("DX", "TS")}, ["sections", "'TS'"]),
        ({"rna_samples": ("01",)}, ["rna_samples"]),
        (
            {"expression": ExpressionConfig(unit="rsem", transform="none", log_base="2")},
            ["expression.log_base", "'e'", "'2'"],
        ),
        ({"reports": None}, ["contents of reports"]),
    ],
)
def test_another_configuration_is_refused(
    config: BuildConfig, change: dict[str, object], words: list[str]
) -> None:
    """The difference is said, nothing is touched, and deleting the record allows it."""
    run(config)
    before = contents(config.out)
    other = replace(config, **change)  # type: ignore[arg-type]
    with pytest.raises(CohortError) as caught:
        run(other)
    assert [word for word in words if word not in str(caught.value)] == []
    assert contents(config.out) == before
    (Path(config.out) / "cohort.json").unlink()
    (Path(config.out) / "cases.csv").unlink()
    assert run(other) == 0


def test_changed_sources_are_refused(config: BuildConfig, tmp_path: Path) -> None:
    """By content, not by name or date: a copy is the same source."""
    run(config)
    copy = tmp_path / "copy.csv"
    copy.write_text(REPORTS)
    assert run(replace(config, reports=str(copy))) == 0
    (tmp_path / "reports.csv").write_text(REPORTS.replace("large", "small"))
    with pytest.raises(CohortError, match="contents of reports: expected"):
        run(config)


def test_a_dry_run_writes_nothing(config: BuildConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """It counts as the real one does."""
    assert run(replace(config, dry_run=True)) == 0
    assert not Path(config.out).exists()
    assert "dry run" in capsys.readouterr().out


@pytest.mark.parametrize("step", ["preprocess_expression", "write_cases", "write_record"])
def test_a_killed_build_is_no_cohort_and_starts_over(
    config: BuildConfig, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever step it dies at, the next run ends with what an undisturbed one would have made."""

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, step, die)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert not (Path(config.out) / "cohort.json").exists()
    assert run(config) == 0
    undisturbed = replace(config, out=config.out + "2")
    run(undisturbed)
    assert contents(config.out) == contents(undisturbed.out)


def test_cases_of_unknown_origin_are_not_written_over(config: BuildConfig) -> None:
    """A case table without a record may be somebody's own."""
    Path(config.out).mkdir()
    own = Path(config.out) / "cases.csv"
    own.write_text("case_id,cancer_type,slides,report,rna,split\nmine,X,,,,\n")
    with pytest.raises(CohortError, match=r"other cases, and no cohort\.json"):
        run(config)
    assert "mine" in own.read_text()


def test_a_source_is_not_written_over(config: BuildConfig) -> None:
    """Sources that have the name of an output are refused before anything is written."""
    Path(config.out).mkdir()
    own = Path(config.out) / "reports.csv"
    own.write_text(REPORTS)
    with pytest.raises(ConfigError, match=r"--reports .* would be written over"):
        run(replace(config, reports=str(own)))
    manifest = Path(config.out) / "slides.csv"
    manifest.write_text(f"path,slide_id\nx.svs,{SLIDES[0]}\ny.svs,holiday\n")
    with pytest.raises(ConfigError, match=r"--slides .* would be written over"):
        run(replace(config, slides=str(manifest)))
    assert own.read_text() == REPORTS
    assert [path.name for path in Path(config.out).iterdir() if "cohort" in path.name] == []


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


def test_sources_that_do_not_belong_together(config: BuildConfig, tmp_path: Path) -> None:
    """A source of which nothing is used, and ids of another kind, are errors that say so."""
    (tmp_path / "other.csv").write_text("case_id,text\nTCGA-QQ-0001,Words of somebody.\n")
    with pytest.raises(CohortError, match=r"--reports .*nothing of it.*TCGA-QQ-0001"):
        run(replace(config, reports=str(tmp_path / "other.csv")))
    (tmp_path / "plain.csv").write_text("case_id,cancer_type\nP1,BRCA\n")
    with pytest.raises(CohortError, match=r"got P1\. .*--ids plain"):
        run(replace(config, clinical=str(tmp_path / "plain.csv")))
    nothing = replace(config, slides=None, reports=None, rna=None)
    with pytest.raises(CohortError, match="no case has a slide"):
        run(nothing)
    with pytest.raises(TableError, match=r"absent\.csv: there is no such"):
        run(replace(config, clinical=str(tmp_path / "absent.csv")))
    assert not Path(config.out).exists()


def test_a_folder_with_another_record(config: BuildConfig) -> None:
    """A cohort.json that this job did not write is left alone."""
    Path(config.out).mkdir()
    record = Path(config.out) / "cohort.json"
    for text in ("[1]", "{", '{"job": "other"}'):
        record.write_text(text)
        with pytest.raises(CohortError, match=r"cohort\.json: expected"):
            run(config)
        assert record.read_text() == text


def test_settings_that_cannot_be_meant() -> None:
    """Refused before a file is read."""
    with pytest.raises(ConfigError, match="--sections"):
        BuildConfig(out="o", clinical="c", sections=("ZZ",))
    with pytest.raises(ConfigError, match="--rna-samples"):
        BuildConfig(out="o", clinical="c", rna_samples=("primary",))


def test_in_an_object_store(tmp_path: Path, s3_server: str) -> None:
    """Sources and cohort may lie in a bucket; the bytes are those of a disk."""
    from support.s3 import make_bucket

    config = write_sources(tmp_path)
    root = make_bucket("mstar-cohorts") + "/build"
    for path in tmp_path.rglob("*.*"):
        if path.is_file():
            objects.put_file(path, f"{root}/{path.relative_to(tmp_path)}")
    remote = replace(
        config,
        out=f"{root}/C",
        **{
            name: getattr(config, name).replace(str(tmp_path), root)
            for name in ("clinical", "slides", "reports", "rna")
        },
    )
    assert run(remote) == 0
    run(config)
    near, far = contents(config.out), contents(remote.out)
    same = set(near) - {"cohort.json", "slides.csv"}
    assert {n: near[n] for n in same} == {n: far[n] for n in same}
    assert run(remote) == 0
    slides = [slide.uri for slide in read_slides(f"{remote.out}/slides.csv")]
    assert len(slides) == 3
    assert all(objects.exists(uri) for uri in slides)
