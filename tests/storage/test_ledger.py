"""The ledger and the attempts: durable, one file per slide, whatever the slide is called."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstar.errors import ManifestError
from mstar.storage import objects
from mstar.storage.ids import MAX_STEP_BYTES, check_slide_id, quoted, record_name
from mstar.storage.ledger import Attempt, Attempts, Failure, FailureLedger

UGLY_IDS = [
    "plain",
    "folder/slide",
    "../evil",
    "../../../../etc/passwd",
    "/absolute",
    ".hidden",
    "a/.hidden/b",
    "ü 切片 ñ",
    "50%",
    "%2E%2E%2Fevil",
    "back\\slash",
    "line\nbreak",
    "lone \udce4 surrogate",
    "x" * 400,
    "a//b",
    "clash",
    "clash.json/b",
    " ",
]


def failure(slide_id: str, **changes: object) -> Failure:
    base = Failure(
        slide_id=slide_id,
        uri=f"/data/{slide_id}.svs",
        stage="open",
        kind="SlideError",
        message="cannot be opened",
        traceback="Traceback …",
        attempts=1,
        permanent=True,
        run_id="run",
    )
    return dataclasses.replace(base, **changes)


def test_records_of_any_id_come_back_and_stay_in_the_folder(root: str) -> None:
    ledger = FailureLedger(objects.join(root, "failures"))
    for slide_id in UGLY_IDS:
        ledger.record(failure(slide_id))
    assert {f.slide_id: f for f in ledger.all()} == {i: failure(i) for i in UGLY_IDS}
    for slide_id in UGLY_IDS:
        assert ledger.get(slide_id) == failure(slide_id)
    for info in objects.list_files(root):
        assert info.rel.startswith("failures/")
    for slide_id in UGLY_IDS:
        ledger.clear(slide_id)
        ledger.clear(slide_id)
    assert list(ledger.all()) == []


def test_nothing_is_written_outside_the_root(tmp_path: Path) -> None:
    ledger = FailureLedger(str(tmp_path / "a" / "b" / "failures"))
    for slide_id in UGLY_IDS:
        ledger.record(failure(slide_id))
    for folder, _, files in os.walk(tmp_path):
        assert not files or Path(folder).is_relative_to(tmp_path / "a" / "b" / "failures")


def test_plain_ids_name_their_file(tmp_path: Path) -> None:
    FailureLedger(str(tmp_path)).record(failure("batch 1/slide-ü"))
    assert (tmp_path / "batch 1" / "slide-ü.json").is_file()


def test_the_last_record_counts(root: str) -> None:
    ledger = FailureLedger(root)
    ledger.record(failure("x", attempts=1))
    ledger.record(failure("x", attempts=2, permanent=False))
    assert [(f.attempts, f.permanent) for f in ledger.all()] == [(2, False)]


def test_the_end_of_a_long_traceback_is_kept(root: str) -> None:
    ledger = FailureLedger(root)
    ledger.record(failure("x", traceback="a" * 100_000 + "the cause"))
    kept = ledger.get("x").traceback
    assert len(kept) == 20_000
    assert kept.endswith("the cause")


def test_damaged_records_do_not_hide_the_others(
    root: str, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = FailureLedger(root)
    ledger.record(failure("good"))
    objects.write_whole(objects.join(root, "bad.json"), b"{")
    objects.write_whole(objects.join(root, "other.json"), b'{"no": "failure"}')
    assert [f.slide_id for f in ledger.all()] == ["good"]
    assert ledger.get("bad") is None
    assert "bad.json" in caplog.text
    assert "other.json" in caplog.text


def test_attempts_count_until_finished(root: str) -> None:
    attempts = Attempts(root)
    assert attempts.get("x") is None
    assert attempts.begin("x", alone=False) == Attempt(count=1, alone_deaths=0)
    assert Attempts(root).get("x") == Attempt(count=1, alone_deaths=0), "durable"
    assert attempts.begin("x", alone=False) == Attempt(count=2, alone_deaths=0)
    assert attempts.begin("x", alone=True) == Attempt(count=3, alone_deaths=1)
    assert attempts.get("other") is None
    attempts.finish("x")
    attempts.finish("x")
    assert attempts.get("x") is None


def test_damaged_attempts_do_not_stop_a_slide(root: str, caplog: pytest.LogCaptureFixture) -> None:
    objects.write_whole(objects.join(root, record_name("x")), b'{"count": "many"}')
    assert Attempts(root).get("x") is None
    assert Attempts(root).begin("x", alone=True) == Attempt(count=1, alone_deaths=1)
    assert "x" in caplog.text


@given(st.lists(st.text(max_size=300), min_size=2, max_size=2, unique=True))
def test_different_ids_have_different_names(ids: list[str]) -> None:
    assert len({record_name(slide_id) for slide_id in ids}) == 2
    assert len({quoted(slide_id) for slide_id in ids}) == 2


@given(st.text(st.characters(codec=None), max_size=300))
def test_every_name_is_a_visible_file_below_the_folder(slide_id: str) -> None:
    for name in (record_name(slide_id), quoted(slide_id)):
        steps = name.split("/")
        assert all(step not in ("", ".", "..") and not step.startswith(".") for step in steps)
        assert max(len(step.encode()) for step in steps) <= MAX_STEP_BYTES + len(".json")
        assert name.isprintable() or record_name(slide_id) == slide_id + ".json"


@pytest.mark.parametrize(
    ("slide_id", "reason"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("../x", "'..' is not allowed"),
        ("a/../b", "'..' is not allowed"),
        ("a//b", "'' is not allowed"),
        ("a/", "'' is not allowed"),
        ("/a", "absolute"),
        ("a\\b", "backslash"),
        ("a\x00b", "control character"),
        ("a\nb", "control character"),
        ("a\x85b", "control character"),
        (".a", "starts with a dot"),
        ("a/.b", "starts with a dot"),
        ("\udce4", "not valid Unicode"),
        ("ü" * 101, "more than 200 bytes"),
    ],
)
def test_unfit_ids_are_refused_with_the_reason(slide_id: str, reason: str) -> None:
    with pytest.raises(ManifestError, match=reason) as caught:
        check_slide_id(slide_id)
    assert repr(slide_id) in str(caught.value)
    assert "manifest" in str(caught.value)


@pytest.mark.parametrize(
    "slide_id", ["a", "a b", "a/b.c", "TCGA-A1-01Z-00-DX1.B-C", "切片", "a..b"]
)
def test_fit_ids_pass(slide_id: str) -> None:
    check_slide_id(slide_id)
