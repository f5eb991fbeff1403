"""The cancer types that are known by name."""

from __future__ import annotations

from mstar.data.cancer_types import (
    CANCER_TYPES,
    COHORTS,
    PAPER_COHORTS,
    cancer_code,
    cohort_group,
)


def test_the_types_of_the_paper() -> None:
    """32 of TCGA's 33; LAML, without slides, is the one left out."""
    assert len(CANCER_TYPES) == len(set(CANCER_TYPES.values())) == 32
    assert "LAML" not in CANCER_TYPES


def test_groups_are_made_of_known_types() -> None:
    """Merged cohorts are disjoint; every cohort of the paper is a group of known types."""
    members = [code for codes in COHORTS.values() for code in codes]
    assert len(members) == len(set(members))
    assert set(members) < set(CANCER_TYPES)
    assert len(PAPER_COHORTS) == 9
    assert set(PAPER_COHORTS) < {cohort_group(code) for code in CANCER_TYPES}
    assert {cohort_group(c) for c in ("COAD", "READ")} == {"CRC"}
    assert {cohort_group(c) for c in ("GBM", "LGG")} == {"GBMLGG"}
    assert cohort_group("BRCA") == "BRCA"
    assert cohort_group("another") == "another"


def test_codes_and_names_in_any_case() -> None:
    """Known types have one spelling; unknown ones stay as written."""
    for code, name in CANCER_TYPES.items():
        assert {cancer_code(t) for t in (code, code.lower(), name, name.upper())} == {code}
    assert cancer_code(" breast  invasive carcinoma ") == "BRCA"
    assert cancer_code("Merkel cell carcinoma") == "Merkel cell carcinoma"
