"""Files as data sets publish them, small, with every trap; the counts that follow are stated."""

import io
import json
import zipfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

from mstar.data.cases import Case, write_cases

MAF_HEAD = (
    "#version gdc-1.0.0\n"
    "Hugo_Symbol\tChromosome\tVariant_Classification\tTumor_Sample_Barcode\tHGVSp_Short\n"
)


def tcga(number: int) -> str:
    """A patient."""
    return f"TCGA-AA-{number:04d}"


def aliquot(number: int, sample: str = "01", last: str = "01") -> str:
    """An aliquot of a patient's sample."""
    return f"{tcga(number)}-{sample}A-11D-A100-{last}"


def put(folder: Path, name: str, text: str) -> Path:
    """A file of the folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_cohort(folder: Path, cases: Sequence[Case]) -> str:
    """A cohort folder that holds its case table alone."""
    folder.mkdir(parents=True, exist_ok=True)
    write_cases(str(folder / "cases.csv"), cases)
    return str(folder)


def case(number: int, cancer_type: str, slides: int = 1, **fields: object) -> Case:
    """A case of the cohort with slides named after it."""
    names = tuple(f"{tcga(number)}-01Z-00-DX{place + 1}" for place in range(slides))
    given = {"case_id": tcga(number), "cancer_type": cancer_type, "slides": names}
    return Case(**given | fields)  # type: ignore[arg-type]


def maf(*rows: tuple[str, str, str], change: str = "p.V600E") -> str:
    """A MAF of (gene, class, sample)."""
    lines = [f"{gene}\t17\t{kind}\t{sample}\t{change}" for gene, kind, sample in rows]
    return MAF_HEAD + "".join(f"{line}\n" for line in lines)


def workbook(sheets: dict[str, list[list[str | float | None]]], *, shared: bool = True) -> bytes:
    """An .xlsx as Excel writes it (shared strings), or as other programs do (inline ones)."""
    strings: list[str] = []
    parts = {}
    for number, rows in enumerate(sheets.values(), start=1):
        lines = []
        for at, row in enumerate(rows, start=1):
            cells = (_cell(value, place, at, strings, shared) for place, value in enumerate(row))
            lines.append(f'<row r="{at}">{"".join(cells)}</row>')
        parts[f"xl/worksheets/sheet{number}.xml"] = f"<sheetData>{''.join(lines)}</sheetData>"
    names = enumerate(sheets, start=1)
    parts["xl/workbook.xml"] = "".join(
        f'<sheet name="{escape(name)}" sheetId="{n}" r:id="rId{n}"/>' for n, name in names
    )
    parts["xl/_rels/workbook.xml.rels"] = "".join(
        f'<Relationship Id="rId{n}" Target="worksheets/sheet{n}.xml"/>'
        for n in range(1, len(sheets) + 1)
    )
    items = "".join(f"<si><t>{escape(text)}</t></si>" for text in strings)
    parts["xl/sharedStrings.xml"] = f"<sst>{items}</sst>"
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return sink.getvalue()


def _cell(value: str | float | None, place: int, row: int, strings: list[str], shared: bool) -> str:
    reference = f"{chr(65 + place)}{row}"
    if value is None:
        return ""
    if not isinstance(value, str):
        return f'<c r="{reference}"><v>{value}</v></c>'
    if not shared:
        return f'<c r="{reference}" t="inlineStr"><is><t>{escape(value)}</t></is></c>'
    if value not in strings:
        strings.append(value)
    return f'<c r="{reference}" t="s"><v>{strings.index(value)}</v></c>'


def write_public_sets(sources: Path) -> None:
    """A little of every public data set that is no TCGA, in the layout of platform/docs/labels.md.

    PANDA 2 slides of grade 0 and 5, one of an unknown grade. CAMELYON: 2 normal, 3 metastases, one
    patient row and one slide that only its name labels. BCNB: 2 cases, ER one of each. UBC-OCEAN: 2
    slides. HANCOCK: 4 cases. EBRAINS: 5 slides of 4 patients.
    """
    put(sources, "panda/train.csv", "image_id,isup_grade\na1,0\nb2,5\nc3,\n")
    put(
        sources,
        "camelyon/stages.csv",
        "patient,stage\npatient_000.zip,pN1\npatient_000_node_0.tif,negative\n"
        "patient_000_node_1.tif,itc\npatient_000_node_2.tif,macro\n",
    )
    put(sources, "camelyon/reference.csv", "test_001,Tumor,IDC,Macro\ntest_002,Normal,None,None\n")
    put(
        sources,
        "camelyon/slides.csv",
        "path,case_id\n"
        + "".join(f"/x/patient_000_node_{n}.tif,patient_000\n" for n in range(3))
        + "".join(f"/x/{name}.tif,{name}\n" for name in ("test_001", "test_002", "normal_007")),
    )
    rows: list[list[str | float | None]] = [["Patient ID", "ER", "PR", "HER2"]]
    rows += [[1, "Positive", "Negative", "Negative"], [2, "Negative", "Positive", "Negative"]]
    (sources / "bcnb").mkdir()
    (sources / "bcnb" / "patient-clinical-data.xlsx").write_bytes(workbook({"Sheet1": rows}))
    put(sources, "ubc-ocean/train.csv", "image_id,label,is_tma\n4,HGSC,False\n66,LGSC,True\n")
    clinical = [
        _hancock("001", "living", 300, "no", None),
        _hancock("002", "deceased", 200, "no", None),
        _hancock("003", "living", 400, "yes", 100),
        _hancock("004", "living", 0, "no", None),
    ]
    put(sources, "hancock/clinical_data.json", json.dumps(clinical))
    pathology = [
        ("001", "SCC_Conventional-Keratinizing", "negative", "pT1"),
        ("002", "SCC_Basaloid", "positive", "pT4a"),
        ("003", "SCC_Conventional-NonKeratinizing", "not_tested", "pT2"),
        ("004", "Adenoid", "negative", "pTX"),
    ]
    names = ("patient_id", "histologic_type", "hpv_association_p16", "pT_stage")
    records = [dict(zip(names, row, strict=True)) for row in pathology]
    put(sources, "hancock/pathological_data.json", json.dumps(records))
    put(
        sources,
        "ebrains/annotation.csv",
        "uuid,pat_id,diagnosis\n"
        'u1,p1,"Glioblastoma, IDH-wildtype"\n'
        'u2,p2,"Anaplastic astrocytoma, IDH-mutant"\n'
        'u3,p2,"Anaplastic astrocytoma, IDH-mutant"\n'
        'u4,p3,"Oligodendroglioma, IDH-mutant and 1p/19q codeleted"\n'
        'u5,p4,"Diffuse astrocytoma, IDH-wildtype"\n',
    )


def _hancock(
    patient: str, status: str, days: int, again: str, after: int | None
) -> dict[str, object]:
    return {
        "patient_id": patient,
        "survival_status": status,
        "days_to_last_information": days,
        "recurrence": again,
        "days_to_recurrence": after,
    }
