"""Survival: the stated counts on small tables that hold every trap."""

from pathlib import Path

import pytest

from mstar.data.label_build.datasets import DATASETS
from mstar.data.label_build.population import Member
from mstar.data.label_build.settings import LabelSettings
from mstar.data.label_build.sources import Sources
from mstar.data.label_build.survival import read_survival
from mstar.errors import TableError
from support.built_labels import built, times, write_breast_cohort
from support.published_files import case, put, tcga, write_cohort


@pytest.fixture
def breast(tmp_path: Path) -> str:
    return write_breast_cohort(tmp_path / "C")


CDR_HEAD = "bcr_patient_barcode,type,OS,OS.time,DFI,DFI.time,Redaction\n"
CDR_ROWS = (
    f"{tcga(1)},BRCA,1,365.25,0,100,\n"
    f"{tcga(2)},BRCA,0,0,1,50,\n"  # time 0
    f"{tcga(3)},BRCA,0,-5,#N/A,#N/A,\n"
    f"{tcga(4)},BRCA,[Not Available],10,,,\n"
    f"{tcga(5)},BRCA,1,100,,,Redacted\n"
    f"{tcga(6)},BRCA,0,730.5,1,[Not Applicable],\n"
)


def test_survival_drops_by_reason(tmp_path: Path, breast: str) -> None:
    put(tmp_path, "S/tcga/cdr.csv", CDR_HEAD + CDR_ROWS)
    outcome = built(tmp_path / "S", breast, "tcga_brca_os")
    assert times(outcome) == {"0001": (pytest.approx(12.0), 1), "0006": (pytest.approx(24.0), 0)}
    assert outcome.derived.dropped == {
        "time 0": 1,
        "a negative time": 1,
        "no survival status": 1,
        "redacted by TCGA-CDR": 1,
        "in no table": 1,
        "no slide": 1,
    }
    kept = built(tmp_path / "S", breast, "tcga_brca_os", redacted="keep")
    assert times(kept)["0005"] == (pytest.approx(100 / 30.4375), 1)


def test_disease_free_survival_is_cbioportals_unless_asked(tmp_path: Path, breast: str) -> None:
    put(tmp_path, "S/tcga/cdr.csv", CDR_HEAD + CDR_ROWS)
    outcome = built(tmp_path / "S", breast, "tcga_brca_dfs")
    assert outcome.state == "failed"
    assert "DFS_MONTHS" in outcome.reason
    by_cdr = times(built(tmp_path / "S", breast, "tcga_brca_dfs", dfs_source="cdr-dfi"))
    assert set(by_cdr) == {"0001", "0002"}
    put(
        tmp_path,
        "S/tcga/data_clinical_patient.txt",
        "#Patient Identifier\tx\ty\nPATIENT_ID\tDFS_MONTHS\tDFS_STATUS\n"
        f"{tcga(1)}\t7.5\t1:Recurred/Progressed\n{tcga(2)}\t9\t0:DiseaseFree\n{tcga(3)}\t\t\n",
    )
    found = built(tmp_path / "S", breast, "tcga_brca_dfs")
    assert times(found) == {"0001": (7.5, 1), "0002": (9.0, 0)}
    assert found.derived.dropped["no survival time or status"] == 1


def test_survival_of_one_case_said_twice(tmp_path: Path, breast: str) -> None:
    head = "_PATIENT,sample,OS,OS.time\n"
    same = f"{tcga(1)},{tcga(1)}-01,1,300\n{tcga(1)},{tcga(1)}-11,1,300\n"
    other = f"{tcga(2)},{tcga(2)}-01,1,300\n{tcga(2)},{tcga(2)}-06,1,400\n"
    put(tmp_path, "S/tcga/xena.csv", head + same + other)
    outcome = built(tmp_path / "S", breast, "tcga_brca_os")
    assert set(times(outcome)) == {"0001"}
    assert outcome.derived.dropped["rows that contradict one another"] == 1


def test_fusion_tasks_take_cases_with_expression(tmp_path: Path) -> None:
    cases = [case(1, "LUAD", rna="x"), case(2, "LUAD"), case(3, "LUAD", rna="y")]
    cohort = write_cohort(tmp_path / "C", cases)
    rows = "".join(f"{tcga(n)},LUAD,1,300,,,\n" for n in (1, 2, 3))
    put(tmp_path, "S/tcga/cdr.csv", CDR_HEAD + rows)
    fusion = built(tmp_path / "S", cohort, "tcga_luad_os_fusion")
    assert set(times(fusion)) == {"0001", "0003"}
    assert fusion.derived.dropped == {"no gene expression": 1}
    assert set(times(built(tmp_path / "S", cohort, "tcga_luad_os"))) == {"0001", "0002", "0003"}


def test_overall_survival_of_the_cohort_itself(tmp_path: Path) -> None:
    cases = [case(1, "KIRC", os_months=5.0, os_event=1), case(2, "KIRC")]
    cohort = write_cohort(tmp_path / "C", cases)
    put(tmp_path, "S/tcga/note.txt", "nothing here\n")
    outcome = built(tmp_path / "S", cohort, "tcga_kirc_os")
    assert times(outcome) == {"0001": (5.0, 1)}


def test_a_time_that_is_no_number_is_named(tmp_path: Path) -> None:
    put(tmp_path, "tcga/cdr.csv", CDR_HEAD + f"{tcga(1)},BRCA,1,soon,,,\n")
    sources = Sources(str(tmp_path), DATASETS["TCGA"])
    member = Member(case_id=tcga(1), slides=("a",))
    with pytest.raises(TableError, match=r"row 1, column OS.time: expected a number, got 'soon'"):
        read_survival(sources, "OS", LabelSettings(), [member])
