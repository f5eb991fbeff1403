"""The guide's steps, run as they stand in docs/cohorts.md on downloads in miniature."""

import re
import shlex
import zipfile
from glob import glob
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mstar.cli.main import main
from mstar.data.cases import read_cases
from mstar.data.rna.store import ExpressionStore
from mstar.data.splits.registry import read_registry

GUIDE = Path(__file__).parents[2] / "platform" / "docs" / "cohorts.md"
UUID = "8c5f4e0a-3d52-4c1b-9a55-0a1b2c3d4e{:02d}"
STUDIES = {
    "brca": [f"TCGA-A2-A0T{i}" for i in range(8)],
    "luad": [f"TCGA-05-424{i}" for i in range(6)],
}
GENES = [("TP53", 7157), ("EGFR", 1956), ("MYC", 4609), ("", 100130426), ("ACTB", 60)]


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slides, TCGA-Reports and two studies of cBioPortal, in the shapes they come in."""
    monkeypatch.chdir(tmp_path)
    patients = [patient for study in STUDIES.values() for patient in study]
    (tmp_path / "slides").mkdir()
    for i, patient in enumerate(patients):
        for section in ("DX1", "TSA"):  # the frozen one is to be left out
            name = f"{patient}-01Z-00-{section}.{UUID.format(i)}.svs"
            (tmp_path / "slides" / name).write_bytes(b"not opened before embedding")
    reports = pd.DataFrame(
        {
            "patient_filename": [f"{p}.{UUID.format(i).upper()}" for i, p in enumerate(patients)],
            "text": ["Page 1 of 2. The invasive carci-. noma of. the breast."] * len(patients),
        }
    )
    with zipfile.ZipFile(tmp_path / "TCGA_Reports.csv.zip", "w") as archive:
        archive.writestr("TCGA_Reports.csv", reports.to_csv(index=False))
        archive.writestr("__MACOSX/._TCGA_Reports.csv", b"\0")
    for study in STUDIES:
        write_study(tmp_path / "cbioportal" / f"{study}_tcga_pan_can_atlas_2018", study)
    return tmp_path


def write_study(folder: Path, study: str) -> None:
    folder.mkdir(parents=True)
    patients = STUDIES[study]
    generator = np.random.default_rng(len(study))
    values = generator.gamma(1.0, 900.0, (len(GENES), len(patients))).round(4)
    expression = pd.DataFrame(values, columns=[f"{patient}-01" for patient in patients])
    expression.insert(0, "Hugo_Symbol", [name for name, _ in GENES])
    expression.insert(1, "Entrez_Gene_Id", [number for _, number in GENES])
    expression.to_csv(folder / "data_mrna_seq_v2_rsem.txt", sep="\t", index=False)
    clinical = pd.DataFrame(
        {
            "PATIENT_ID": patients,
            f"SUBTYPE_{study}": "x",  # columns differ between the studies
            "CANCER_TYPE_ACRONYM": study.upper(),
            "OS_STATUS": ["1:DECEASED", "0:LIVING"] * (len(patients) // 2),
            "OS_MONTHS": generator.gamma(2.0, 20.0, len(patients)).round(3),
        }
    )
    head = "#Patient Identifier\tSubtype\n#text\n#STRING\tSTRING\n#1\t1\n"
    table = clinical.to_csv(sep="\t", index=False)
    (folder / "data_clinical_patient.txt").write_text(head + table)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)


def commands(*words: str) -> list[list[str]]:
    """The guide's `mstar …` commands that begin with these words, without `mstar`."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    start = " ".join(["mstar", *words])
    return [shlex.split(line)[1:] for line in lines if line.startswith(start)]


def expanded(words: list[str]) -> list[str]:
    """A command with its patterns replaced by the files they match, as a shell does."""
    return [name for word in words for name in (sorted(glob(word)) if "*" in word else [word])]


def test_the_guide_leads_from_downloads_to_a_split_cohort(downloads: Path) -> None:
    dry, build = (expanded(line) for line in commands("cohort", "build"))
    assert dry[-1] == "--dry-run"
    assert main(dry) == 0
    assert not (downloads / "C").exists()
    assert main(build) == 0
    cases = read_cases("C/cases.csv")
    assert [case.case_id for case in cases] == sorted(p for s in STUDIES.values() for p in s)
    assert all(len(case.slides) == 1 and case.report and case.rna for case in cases)
    assert all(case.os_months is not None for case in cases)
    assert set(pd.read_csv("C/reports.csv")["text"]) == {"The invasive carcinoma of the breast."}
    source = pd.read_csv(
        "cbioportal/luad_tcga_pan_can_atlas_2018/data_mrna_seq_v2_rsem.txt", sep="\t"
    )
    store = ExpressionStore("C/expression")
    row = dict(zip(store.genes, store.row("TCGA-05-4241"), strict=True))
    assert row["MYC"] == pytest.approx(np.log1p(source.loc[2, "TCGA-05-4241-01"]), rel=1e-6)
    assert main(commands("cohort", "check", "C")[0]) == 0
    preset, by_site = commands("cohort", "split")
    assert main([*preset, "--cohorts", "all", "--min-cases", "5"]) == 0
    assert len(read_registry("C").rows) == len(cases)
    assert main([flag for flag in by_site if flag != "--allow-seen"]) == 1  # pretraining sees them
    assert main(by_site) == 0
    assert set(pd.read_csv("C/splits/loso.csv")["case_id"]) == {case.case_id for case in cases}


def test_every_command_of_the_guide_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Flags that are renamed must be renamed there too."""
    flags = {flag for line in commands() for flag in line if flag.startswith("--")}
    flags |= set(re.findall(r"`(--[a-z][a-z.-]+)", GUIDE.read_text()))
    helps = ""
    for job in (
        ["cohort", "build"],
        ["cohort", "check"],
        ["cohort", "split"],
        ["embed"],
        ["doctor"],
    ):
        with pytest.raises(SystemExit):
            main([*job, "--help"])
        helps += capsys.readouterr().out
    assert {flag for flag in flags if flag not in helps} == set()
