"""Barcodes are parsed as wholes: every part comes back, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.data.barcodes import (
    ANALYTES,
    SAMPLE_TYPES,
    SECTIONS,
    Barcode,
    parse_barcode,
    parse_file_name,
)

UUID = "25c0b433-5557-4165-922e-2c1eac9c26f0"
KNOWN = {
    "TCGA-A2-A0T2": {},
    "TCGA-A2-A0T2-01": {"sample_type": "01"},
    "TCGA-A2-A0T2-06A": {"sample_type": "06", "vial": "A"},
    "TCGA-A2-A0T2-01A-11": {"sample_type": "01", "vial": "A", "portion": "11"},
    "TCGA-A2-A0T2-01A-11R": {
        "sample_type": "01",
        "vial": "A",
        "portion": "11",
        "analyte": "R",
    },
    "TCGA-A2-A0T2-01A-11R-A084-07": {
        "sample_type": "01",
        "vial": "A",
        "portion": "11",
        "analyte": "R",
        "plate": "A084",
        "center": "07",
    },
    "TCGA-A2-A0T2-01A-21-1898-20": {
        "sample_type": "01",
        "vial": "A",
        "portion": "21",
        "plate": "1898",
        "center": "20",
    },
    f"TCGA-A2-A0T2-01Z-00-DX1.{UUID.upper()}.svs": {
        "sample_type": "01",
        "vial": "Z",
        "portion": "00",
        "section": "DX",
        "section_number": "1",
        "uuid": UUID,
    },
    "TCGA-A2-A0T2-01A-01-TSA": {
        "sample_type": "01",
        "vial": "A",
        "portion": "01",
        "section": "TS",
        "section_number": "A",
    },
    "TCGA-A2-A0T2-11A-01-BS10.svs.gz": {
        "sample_type": "11",
        "vial": "A",
        "portion": "01",
        "section": "BS",
        "section_number": "10",
    },
    f"TCGA-A2-A0T2.{UUID}": {"uuid": UUID},
    "TCGA.A2.A0T2.01A.11R.A084.07": {
        "sample_type": "01",
        "vial": "A",
        "portion": "11",
        "analyte": "R",
        "plate": "A084",
        "center": "07",
    },
}


@pytest.mark.parametrize("text", KNOWN)
def test_published_forms(text: str) -> None:
    """The forms that the GDC, cBioPortal, Xena and TCGA-Reports use."""
    expected = Barcode(project="TCGA", site="A2", participant="A0T2", **KNOWN[text])
    assert parse_barcode(text) == expected
    assert expected.patient == "TCGA-A2-A0T2"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "TCGA",
        "TCGA-A2",
        "TCGA-A2-A0T",
        "TCGA-A2-A0T22",
        "tcga-a2-a0t2",
        "CPTAC-A2-A0T2",
        "C3L-00001",
        "xTCGA-A2-A0T2",
        "TCGA-A2-A0T2 ",
        "TCGA-A2-A0T2\n",
        "TCGA_A2_A0T2",
        "TCGA-A2.A0T2",
        "TCGA-A2-A0T2-77",
        "TCGA-A2-A0T2-01-",
        "TCGA-A2-A0T2-01A-11Q",
        "TCGA-A2-A0T2-01Z-00-DX",
        "TCGA-A2-A0T2-01Z-00-DX1-more",
        "TCGA-A2-A0T2-01Z-00-DX1.notauuid",
        "TCGA-A2-A0T2-01Z-00-XX1",
        "TCGA-A2-A0T2-01A-11R-A084-07-x",
        f"copy of TCGA-A2-A0T2.{UUID}",
        "folder/TCGA-A2-A0T2",
        "TCGA-A2-A0T2-0\u0661",
    ],
)
def test_unknown_patterns_are_no_barcodes(text: str) -> None:
    """A name that only holds a barcode, or one with an unknown code, is not cut to fit."""
    assert parse_barcode(text) is None


upper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
alnum = upper + "0123456789"
optional_vial = st.sampled_from(["", *upper])


@st.composite
def barcodes(draw: st.DrawFn) -> tuple[str, Barcode]:
    """A name built from its parts, and the parts."""
    site, person = (draw(st.text(alnum, min_size=n, max_size=n)) for n in (2, 4))
    sample, vial = draw(st.sampled_from(sorted(SAMPLE_TYPES))), draw(optional_vial)
    portion = draw(st.text("0123456789", min_size=2, max_size=2))
    name = f"TCGA-{site}-{person}-{sample}{vial}-{portion}"
    parts = {
        "site": site,
        "participant": person,
        "sample_type": sample,
        "vial": vial or None,
        "portion": portion,
    }
    if draw(st.booleans()):
        section = draw(st.sampled_from(sorted(SECTIONS)))
        number = draw(st.sampled_from([*upper, *map(str, range(1, 20))]))
        parts |= {"section": section, "section_number": number}
        name += f"-{section}{number}"
    else:
        analyte = draw(st.sampled_from(sorted(ANALYTES)))
        plate, center = (draw(st.text(alnum, min_size=n, max_size=n)) for n in (4, 2))
        parts |= {"analyte": analyte, "plate": plate, "center": center}
        name += f"{analyte}-{plate}-{center}"
    if draw(st.booleans()):
        parts["uuid"] = str(draw(st.uuids()))
        name += "." + draw(st.sampled_from([parts["uuid"], parts["uuid"].upper()]))
    name += draw(st.sampled_from(["", ".svs", ".SVS", ".h5", ".svs.gz"]))
    return name, Barcode(project="TCGA", **parts)


@settings(max_examples=200, deadline=None)
@given(barcodes())
def test_every_part_comes_back(built: tuple[str, Barcode]) -> None:
    """Parsing undoes writing, in a folder too; a letter more and it is no barcode."""
    name, parts = built
    assert parse_barcode(name) == parts
    assert parse_file_name(f"s3://bucket/{UUID}/{name}") == parts
    assert parse_barcode("x" + name) is None


def test_tumour_and_normal() -> None:
    """Types 01 to 09 are of tumours, the others and the unsaid are not."""
    tumors = [code for code in SAMPLE_TYPES if parse_barcode(f"TCGA-A2-A0T2-{code}").is_tumor]
    assert tumors == [f"0{digit}" for digit in range(1, 10)]
    assert not parse_barcode("TCGA-A2-A0T2").is_tumor
