"""Clinical tables of four kinds come out as the same rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from mstar.data.clinical import DAYS_PER_MONTH, ClinicalRow, read_clinical
from mstar.errors import TableError

MSTAR = """case_id,cancer_type,site,os_months,os_event
TCGA-A2-A0T2,BRCA,,10,1
TCGA-AA-0001,coad,X,20.5,0
TCGA-BB-0002,Other,,,
"""
CBIOPORTAL = """#Patient Identifier\tCancer Type Acronym\tOverall Survival Status\tMonths
#comment, with a comma\tx\ty\tz
#STRING\tSTRING\tSTRING\tNUMBER
#1\t1\t1\t1
PATIENT_ID\tCANCER_TYPE\tCANCER_TYPE_ACRONYM\tOS_STATUS\tOS_MONTHS
TCGA-A2-A0T2\tBreast Cancer\tBRCA\t1:DECEASED\t10
TCGA-AA-0001\tColorectal\tCOAD\t0:LIVING\t20.5
TCGA-BB-0002\tOther\tOther\t[Not Available]\t[Not Available]
"""
DAYS = (10 * DAYS_PER_MONTH, 20.5 * DAYS_PER_MONTH)
CDR = f""",bcr_patient_barcode,type,OS,OS.time,DSS
1,TCGA-A2-A0T2,BRCA,1,{DAYS[0]},x
2,TCGA-AA-0001,COAD,0,{DAYS[1]},x
3,TCGA-BB-0002,Other,#N/A,#N/A,x
"""
XENA = f"""sample\t_PATIENT\tcancer type abbreviation\tOS\tOS.time
TCGA-A2-A0T2-01\tTCGA-A2-A0T2\tBRCA\t1.0\t{DAYS[0]}
TCGA-A2-A0T2-11\tTCGA-A2-A0T2\tBRCA\t1.0\t{DAYS[0]}
TCGA-AA-0001-01\tTCGA-AA-0001\tCOAD\t0.0\t{DAYS[1]}
TCGA-BB-0002-01\tTCGA-BB-0002\tOther\t\t
"""


def write(folder: Path, name: str, text: str) -> str:
    """A file with this text; its path."""
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "text", "dialect"),
    [
        ("c.csv", MSTAR, "mstar"),
        ("data_clinical_patient.txt", CBIOPORTAL, "cBioPortal"),
        ("cdr.csv", CDR, "TCGA-CDR"),
        ("survival.tsv", XENA, "UCSC Xena"),
    ],
)
def test_the_four_kinds(tmp_path: Path, name: str, text: str, dialect: str) -> None:
    """Months, events and codes are the same whatever the source, and what lacks is counted."""
    table = read_clinical(write(tmp_path, name, text))
    assert table.dialect == dialect
    assert list(table.rows) == ["TCGA-A2-A0T2", "TCGA-AA-0001", "TCGA-BB-0002"]
    found = [
        (row.cancer_type, row.os_months and pytest.approx(row.os_months), row.os_event)
        for row in table.rows.values()
    ]
    assert found == [("BRCA", 10.0, 1), ("COAD", 20.5, 0), ("Other", None, None)]
    assert table.without_survival == {"no survival time and status": 1}


def test_a_month_is_a_twelfth_of_a_julian_year(tmp_path: Path) -> None:
    """The unit that the docs state: 3,652.5 days are 120 months."""
    text = "bcr_patient_barcode,type,OS,OS.time\nA,BRCA,1,3652.5\n"
    row = read_clinical(write(tmp_path, "cdr.csv", text)).rows["A"]
    assert row.os_months == pytest.approx(120.0)


def test_half_a_survival_is_none(tmp_path: Path) -> None:
    """The case stays; why it has no survival is counted."""
    text = (
        "case_id,cancer_type,os_months,os_event,site,split\n"
        "A,X,5,,S,train\nB,X,,1,,\nC,X,-3,1,,\nD,X,0,0,,\n"
    )
    table = read_clinical(write(tmp_path, "c.csv", text))
    assert table.without_survival == {
        "no survival status": 1,
        "no survival time": 1,
        "a negative survival time": 1,
    }
    assert table.rows["A"] == ClinicalRow(case_id="A", cancer_type="X", site="S", split="train")
    assert table.rows["D"].os_months == 0.0
    assert table.rows["D"].os_event == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("patient,type\nA,X\n", ["expected a column case_id", "bcr_patient_barcode"]),
        ("case_id;cancer_type\nA;X\n", ["by a semicolon"]),
        ("case_id,stage\nA,X\n", ["expected a column cancer_type"]),
        ("case_id,cancer_type\nA,X\nA,X\n", ["row 2, column case_id", "row 1 has it"]),
        ("case_id,cancer_type\nA,X\nB,\n", ["row 2, column cancer_type"]),
        ("PATIENT_ID,type,cancer_type,OS_STATUS\nA,,X,2:GONE\n", ["row 1, column OS_STATUS"]),
        ("case_id,cancer_type,os_months\nA,X,soon\n", ["row 1, column os_months", "'soon'"]),
        ("_PATIENT,cancer_type\nA,X\nA,Y\n", ["row 2, column _PATIENT", "earlier row"]),
    ],
)
def test_faults_are_named(tmp_path: Path, text: str, found: list[str]) -> None:
    """Nothing doubtful is taken."""
    with pytest.raises(TableError) as caught:
        read_clinical(write(tmp_path, "c.csv", text))
    assert [part for part in found if part not in str(caught.value)] == []
