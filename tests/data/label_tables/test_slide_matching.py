"""Joins of label tables and feature stores: three rules, counted; ambiguity refused."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.data.label_tables import LabelTable, Match, Sample, match_slides
from mstar.errors import TableError

BARCODE = "TCGA-A2-A0T2-01Z-00-DX1"
UUID = "1bd1f8b2-0b6d-4a3a-9c3e-0a1b2c3d4e5f"
OTHER = "2bd1f8b2-0b6d-4a3a-9c3e-0a1b2c3d4e5f"
EXACT, STEM, TCGA = "exact", "without extension", "TCGA id without UUID"


def matched(wanted: list[str], stored: list[str]) -> Match:
    return match_slides(samples(wanted), stored)


def samples(slides: list[str]) -> list[Sample]:
    return [
        Sample(case_id=f"P{n}", slides=(slide,), row=n + 1, patient=f"P{n}")
        for n, slide in enumerate(slides)
    ]


@pytest.mark.parametrize(
    ("wanted", "stored", "rule"),
    [
        ("a", "a", EXACT),
        ("folder/a", "folder/a", EXACT),
        ("a.pt", "a", STEM),
        ("a.svs", "a", STEM),
        ("a.b.tiff", "a.b", STEM),
        (f"{BARCODE}.{UUID}.svs", f"{BARCODE}.{UUID}", STEM),
        (f"{BARCODE}.{UUID}", BARCODE, TCGA),
        (f"{BARCODE}.{UUID}.svs", BARCODE, TCGA),
        (BARCODE, f"{BARCODE}.{UUID}", TCGA),
        (f"{BARCODE}.{OTHER}", f"{BARCODE}.{UUID}", TCGA),
        (BARCODE, f"brca/{BARCODE}.{UUID}", TCGA),
    ],
)
def test_the_first_rule_that_finds_a_slide_is_used(wanted: str, stored: str, rule: str) -> None:
    match = matched([wanted], [stored, "other"])
    assert (match.rule, match.rate, match.resolved) == (rule, 1.0, {wanted: stored})
    assert str(match) == f"1 of 1 slides found (100.0%), by rule: 1 {rule}"


def test_an_exact_id_is_not_ambiguous_and_its_neighbour_is_no_rival() -> None:
    assert matched(["a"], ["a", "a.svs"]).resolved == {"a": "a"}


@pytest.mark.parametrize(
    ("wanted", "stored"),
    [
        (["a.pt"], ["a", "a.svs"]),
        ([BARCODE], [f"{BARCODE}.{UUID}", f"{BARCODE}.{OTHER}"]),
        (["a.pt", "a.svs"], ["a"]),
        ([f"{BARCODE}.{UUID}", f"{BARCODE}.{OTHER}"], [BARCODE]),
    ],
)
def test_ambiguity_is_refused(wanted: list[str], stored: list[str]) -> None:
    match = matched(wanted, stored)
    assert not match.resolved
    assert set(match.ambiguous) == set(wanted)
    table = LabelTable(uri="t.csv", task_id="t", dialect="mstar", samples=tuple(samples(wanted)))
    with pytest.raises(TableError, match=r"t.csv: row 1, column slide: expected an id of one slid"):
        match.refuse_ambiguity(table)


def test_what_is_missing_is_named_and_the_rate_says_how_much() -> None:
    match = matched(["a", "b.pt", "c", "d"], ["a", "b", "x"])
    assert (match.rate, match.missing, match.rule) == (0.5, ("c", "d"), STEM)
    assert str(match) == "2 of 4 slides found (50.0%), by rule: 1 exact, 1 without extension"
    assert matched(["a"], []).rule == "none"


@settings(max_examples=50, deadline=None)
@given(
    wanted=st.lists(st.sampled_from(["a", "a.pt", "a.svs", "b", "b.h5", "c"]), unique=True),
    stored=st.sets(st.sampled_from(["a", "a.svs", "b", "b.tif", "c", "d"])),
)
def test_every_slide_is_found_once_ambiguous_or_missing(
    wanted: list[str], stored: set[str]
) -> None:
    match = matched(wanted, sorted(stored))
    found = [*match.resolved, *match.ambiguous, *match.missing]
    assert sorted(found) == sorted(wanted)
    assert len(set(match.resolved.values())) == len(match.resolved)  # a slide is one sample's
    assert set(match.resolved.values()) <= stored
    assert all(match.resolved.get(slide, slide) == slide for slide in wanted if slide in stored)


def test_the_order_of_rows_and_files_does_not_matter(tmp_path: Path) -> None:
    wanted, stored = ["a.pt", "b", "c.svs"], ["c", "b", "a"]
    assert matched(wanted, stored).resolved == matched(wanted[::-1], stored[::-1]).resolved
