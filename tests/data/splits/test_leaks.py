"""Every validator fires on a crafted fault, names the ids and the way out."""

import re

import pytest

from mstar.data.cases import Case
from mstar.data.splits import leaks
from mstar.errors import SplitError


def case(case_id: str, *slides: str) -> Case:
    return Case(case_id=case_id, cancer_type="BRCA", slides=slides)


def test_tcga_samples_are_of_one_patient() -> None:
    assert leaks.patient_of("TCGA-A2-A0T2-01A") == "TCGA-A2-A0T2"
    assert leaks.patient_of("GEN-S03-000012") == "GEN-S03-000012"


def test_two_cases_of_one_patient() -> None:
    cases = [case("TCGA-A2-A0T2-01A"), case("TCGA-A2-A0T2-06A"), case("TCGA-A2-A0T3")]
    with pytest.raises(SplitError, match=r"cases\.csv: patient TCGA-A2-A0T2 has 2 cases .*Merge"):
        leaks.check_patients(cases, "cases.csv")
    leaks.check_patients(cases[1:], "cases.csv")


def test_a_slide_in_two_cases() -> None:
    cases = [case("a", "s1", "s2"), case("b", "s2"), case("c", "s3")]
    with pytest.raises(SplitError, match=r"slide s2 is in 2 cases \(a, b\)"):
        leaks.check_slides(cases, "cases.csv")
    leaks.check_slides(cases[1:], "cases.csv")


def test_a_patient_in_two_parts() -> None:
    rows = [("TCGA-A2-A0T2-01A", "train"), ("TCGA-A2-A0T2-06A", "test"), ("x", "val")]
    with pytest.raises(SplitError, match="patient TCGA-A2-A0T2 is in test and train"):
        leaks.check_one_part(rows, "labels.csv")
    leaks.check_one_part([("a", "train"), ("a", "train"), ("b", "test")], "labels.csv")


def test_a_patient_tested_in_two_folds() -> None:
    with pytest.raises(SplitError, match="patient b is tested in folds 0 and 1"):
        leaks.check_tested_once({"0": ["a", "b"], "1": ["b", "c"]}, "split cv5")
    leaks.check_tested_once({"0": ["a", "b"], "1": ["c"]}, "split cv5")


def test_cases_that_the_table_does_not_have() -> None:
    with pytest.raises(SplitError, match=r"1 case \(z\) of the split are not in the case table"):
        leaks.check_known(["a", "z"], [case("a")], "split cv5")
    leaks.check_known(["a"], [case("a"), case("b")], "split cv5")


def test_test_cases_seen_in_pretraining() -> None:
    seen = ["TCGA-A2-A0T2", "TCGA-A2-A0T3"]
    with pytest.raises(SplitError, match=r"1 case \(TCGA-A2-A0T2-01A\) in validation or test"):
        leaks.check_unseen(["TCGA-A2-A0T2-01A", "x"], seen, "task t")
    leaks.check_unseen(["x"], seen, "task t")


@pytest.mark.parametrize(
    ("text", "part"),
    [("train", "train"), ("Validation", "val"), (" TEST ", "test"), ("valid", "val")],
)
def test_spellings_of_parts(text: str, part: str) -> None:
    assert leaks.part_name(text, "t") == part


@pytest.mark.parametrize("text", ["3", "tst", "", "holdout"])
def test_unknown_parts(text: str) -> None:
    with pytest.raises(SplitError, match=f"labels: expected one of .* got {re.escape(repr(text))}"):
        leaks.part_name(text, "labels")


def test_messages_name_few_of_many() -> None:
    assert (
        leaks.named({f"c{n}" for n in range(2000)}) == "2,000 cases (c0, c1, c10, c100, c1000, …)"
    )
