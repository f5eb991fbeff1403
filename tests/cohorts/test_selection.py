"""What a cohort takes: the stated rules, whatever the order, and everything else counted."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.cohorts.selection import (
    NAMES_KEPT,
    NO_BARCODE,
    NO_CASE,
    Exclusions,
    parse_rna_samples,
    select_reports,
    select_samples,
    select_slides,
)
from mstar.errors import ConfigError
from mstar.schema import SlideRef
from mstar.storage.manifest import BadRow

DEFAULT = parse_rna_samples(("01", "SKCM:06,01", "LAML:03"))
UUID = "25c0b433-5557-4165-922e-2c1eac9c26f0"
OTHER = "11111111-5557-4165-922e-2c1eac9c26f0"
P = "TCGA-A2-A0T2"
KNOWN = {P: "BRCA", "TCGA-EE-0001": "SKCM", "TCGA-AB-0001": "LAML"}


def slide(slide_id: str, uri: str | None = None, case_id: str | None = None) -> SlideRef:
    """A slide, by default in a file of its id's name."""
    return SlideRef(slide_id=slide_id, uri=uri or f"/slides/{slide_id}.svs", case_id=case_id)


def slides_of(entry: SlideRef | BadRow, **rules: object) -> tuple[list[str], dict[str, int]]:
    """The ids taken of one entry, and the reasons for which it was not."""
    out = Exclusions()
    rules = {"ids": "tcga", "sections": ("DX",)} | rules
    chosen = select_slides([entry], KNOWN, out, **rules)  # type: ignore[arg-type]
    return [s.slide_id for refs in chosen.values() for s in refs], out.counts.get("slides", {})


def samples_of(*names: str) -> tuple[dict[str, str], dict[str, int]]:
    """What is taken of an expression matrix, and why the rest is not."""
    out = Exclusions()
    chosen = select_samples(names, KNOWN, out, ids="tcga", sample_types=DEFAULT)
    return chosen, out.counts.get("rna", {})


def test_a_diagnostic_slide_is_taken() -> None:
    """By its id, in a folder named after the file's UUID, or by its file's name."""
    name = f"{P}-01Z-00-DX1.{UUID}"
    for entry in (
        slide(name),
        slide(f"{UUID}/{name}"),
        slide("S1", uri=f"s3://bucket/{name}.svs"),
        slide(name, case_id=P),
        slide(name, case_id=f"{P}-01"),
    ):
        assert slides_of(entry) == ([entry.slide_id], {})


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (slide(f"{P}-01A-01-TS1.{UUID}"), "section TS (top, frozen)"),
        (slide(f"{P}-01A-01-BSA"), "section BS (bottom, frozen)"),
        (slide(f"{P}-11Z-00-DX1"), "sample type 11 (normal solid tissue)"),
        (slide(f"{P}-01A-11R-A084-07"), "a TCGA barcode, but not of a slide"),
        (slide("TCGA-ZZ-9999-01Z-00-DX1"), NO_CASE),
        (slide(f"{P}-01Z-00-DX1-copy"), NO_BARCODE),
        (slide("biopsy 7", case_id=P), NO_BARCODE),
        (
            slide(f"{P}-01Z-00-DX1", case_id="TCGA-EE-0001"),
            "slide id, file name and case_id are not of one patient",
        ),
        (
            slide(f"{P}-01Z-00-DX1", uri="/s/TCGA-EE-0001-01Z-00-DX1.svs"),
            "slide id, file name and case_id are not of one patient",
        ),
        (BadRow(slide_id="x", uri="/x", reason="no mpp"), "unusable in the manifest"),
    ],
)
def test_other_slides_are_counted(entry: SlideRef | BadRow, reason: str) -> None:
    """One reason each, the first that applies."""
    assert slides_of(entry) == ([], {reason: 1})


def test_frozen_slides_on_request() -> None:
    """Sections are a setting."""
    name = f"{P}-01A-01-TS1"
    assert slides_of(slide(name), sections=("DX", "TS")) == ([name], {})


def test_a_file_under_two_ids_counts_once() -> None:
    """Two downloads of a file would give the slide twice the weight; another file is another."""
    name = f"{P}-01Z-00-DX1"
    entries = [slide(f"b/{name}.{UUID}"), slide(f"a/{name}.{UUID}"), slide(f"c/{name}.{OTHER}")]
    out = Exclusions()
    chosen = select_slides(entries, KNOWN, out, ids="tcga", sections=("DX",))
    assert [s.slide_id for s in chosen[P]] == [f"a/{name}.{UUID}", f"c/{name}.{OTHER}"]
    assert out.to_dict()["slides"] == {
        "the same slide is there under another id": {"count": 1, "first": [f"b/{name}.{UUID}"]}
    }


def test_plain_slides_need_a_case() -> None:
    """Nothing is parsed, not even a TCGA name."""
    assert slides_of(slide("any", case_id=P), ids="plain") == (["any"], {})
    name = f"{P}-01Z-00-DX1"
    assert slides_of(slide(name), ids="plain") == ([], {"the manifest gives no case_id": 1})
    assert slides_of(slide("any", case_id="B"), ids="plain") == ([], {NO_CASE: 1})
    found, reasons = slides_of(slide("a;b", case_id=P), ids="plain")
    assert not found
    assert "holds ';'" in next(iter(reasons))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (f"{P}-11A-11R-A084-07", "sample type 11 (normal solid tissue)"),
        (f"{P}-06", "sample type 06 (metastasis)"),
        (f"{P}-02", "sample type 02 (recurrent solid tumour)"),
        (f"{P}-01A-11D-A084-07", "analyte D (DNA)"),
        (P, "a TCGA barcode without a sample type"),
        (f"{P}-01Z-00-DX1", "a TCGA barcode, but of a slide"),
        ("TCGA-ZZ-9999-01", NO_CASE),
        ("TCGA-EE-0001-07", "sample type 07 (additional metastasis)"),
        ("TCGA-AB-0001-01", "sample type 01 (primary solid tumour)"),
        ("Entrez_Gene_Id", NO_BARCODE),
        (f"{P}-01.x", NO_BARCODE),
    ],
)
def test_other_samples_are_counted(name: str, reason: str) -> None:
    """One reason each."""
    assert samples_of(name) == ({}, {reason: 1})


def test_sample_types_by_cancer_type() -> None:
    """Primary tumours; of melanoma the metastasis first; of leukaemia the blood."""
    taken = (f"{P}-01", "TCGA-EE-0001-06A", "TCGA-AB-0001-03")
    chosen, reasons = samples_of("TCGA-EE-0001-01A", *taken)
    assert sorted(chosen) == sorted(taken)
    assert reasons == {"another aliquot of the case is taken": 1}
    assert samples_of("TCGA-EE-0001-01")[0] == {"TCGA-EE-0001-01": "TCGA-EE-0001"}


RANKED = (  # best first: each differs from the next by the rule that decides between them
    f"{P}-01A-21H-A090-07",
    f"{P}-01A-11H-A090-07",
    f"{P}-01A-31H-A084-07",
    f"{P}-01A-41R-A100-07",
    f"{P}-01A-51T-A200-07",
    f"{P}-01B-61H-A300-07",
    f"{P}-01C-71H-A300-07",
)


@pytest.mark.parametrize("first", range(len(RANKED)))
def test_one_aliquot_by_the_stated_rule(first: int) -> None:
    """Vial, analyte, plate, then the name: in whatever order they come, the best is taken."""
    names = list(RANKED[first:])
    random.Random(first).shuffle(names)
    chosen, reasons = samples_of(*names)
    assert chosen == {RANKED[first]: P}
    assert sum(reasons.values()) == len(names) - 1


def test_what_a_name_does_not_say_comes_last() -> None:
    """A sample of known vial before one of unknown, a known analyte before an unknown."""
    assert samples_of(f"{P}-01", f"{P}-01B")[0] == {f"{P}-01B": P}
    assert samples_of(f"{P}-01A", f"{P}-01A-11T-A084-07")[0] == {f"{P}-01A-11T-A084-07": P}


def test_plain_samples_are_case_ids() -> None:
    """Names that are no case are counted."""
    out = Exclusions()
    chosen = select_samples(["A", "B"], {"A": "X"}, out, ids="plain", sample_types=DEFAULT)
    assert chosen == {"A": "A"}
    assert out.counts == {"rna": {NO_CASE: 1}}


def test_reports_go_by_patient() -> None:
    """One a case; what is no barcode, or of no case, is counted."""
    keys = [P, f"TCGA-EE-0001.{UUID}", f"{P}.{UUID}", "TCGA-ZZ-9999", "note.pdf"]
    out = Exclusions()
    chosen = select_reports(keys, KNOWN, out, ids="tcga")
    assert chosen == {P: P, "TCGA-EE-0001": f"TCGA-EE-0001.{UUID}"}
    reasons = out.counts["reports"]
    assert reasons == {NO_CASE: 1, NO_BARCODE: 1, "another report of the case is taken": 1}
    assert select_reports(keys, {"note.pdf": 1}, Exclusions(), ids="plain") == {
        "note.pdf": "note.pdf"
    }


sample_names = st.builds(
    lambda patient, kind, vial, rest: f"{patient}-{kind}{vial}{rest}",
    st.sampled_from([*KNOWN, "TCGA-ZZ-9999", "nothing"]),
    st.sampled_from(["01", "02", "03", "06", "11", "88"]),
    st.sampled_from(["", "A", "B"]),
    st.sampled_from(["", "-11R-A084-07", "-11T-A084-07", "-11D-A084-07", "-00-DX1"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(sample_names, unique=True, max_size=12), st.randoms(use_true_random=False))
def test_each_is_taken_or_counted_whatever_the_order(
    names: list[str], shuffle: random.Random
) -> None:
    """Taken and counted add up to all; a case gets one sample; order changes nothing."""
    chosen, reasons = samples_of(*names)
    assert len(chosen) + sum(reasons.values()) == len(names)
    assert len(set(chosen.values())) == len(chosen)
    again = list(names)
    shuffle.shuffle(again)
    assert samples_of(*again) == (chosen, reasons)
    entries = [slide(name) for name in names]
    slides, out = {}, Exclusions()
    slides = select_slides(entries, KNOWN, out, ids="tcga", sections=("DX",))
    assert sum(map(len, slides.values())) + out.of("slides") == len(entries)


def test_the_first_names_are_kept() -> None:
    """A few names a reason, however many there are."""
    out = Exclusions()
    for number in range(100):
        out.add("slides", "reason", f"s{number}")
    assert out.to_dict() == {
        "slides": {"reason": {"count": 100, "first": [f"s{n}" for n in range(NAMES_KEPT)]}}
    }
    assert out.of("slides") == 100
    assert out.of("rna") == 0


@pytest.mark.parametrize("rules", [("1",), ("SKCM:06,xx",), ("01", "02"), ("A:01", "A:02"), ("",)])
def test_unknown_sample_types_are_refused(rules: tuple[str, ...]) -> None:
    """Before a file is read."""
    with pytest.raises(ConfigError, match="--rna-samples"):
        parse_rna_samples(rules)
