"""Bad inputs: each is named, and is left out or refused; none is trained on."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.cli.main import main
from mstar.data.bags import BagReader
from mstar.data.cases import Case, read_cases, write_cases
from mstar.data.report_tokens import ReportTokenizer
from mstar.data.reports import Report, read_reports, write_reports
from mstar.data.rna.store import ExpressionStore
from mstar.features.store import FeatureStore
from mstar.pretrain import stage1_export
from mstar.pretrain.stage1_batches import CaseInputs
from mstar.pretrain.stage1_cases import settle_feature_kind
from mstar.training.exit_codes import ExitCode
from support.stage1_inputs import (
    Stage1Inputs,
    losses_of,
    stage1_args,
    write_expression,
    write_slide_features,
    write_stage1_inputs,
)

WHICH = 24  # a training case with all three modalities and two slides
CASE_ID = f"GEN-S00-{WHICH:06d}"
Spoil = Callable[[Stage1Inputs], str]
ALLOW = ("--max-bad-cases", "2", "--epochs", "1")
# dropout would be drawn otherwise where a batch has one input less than planned
EXACT = ("--aggregator.input-dropout", "0", "--aggregator.attention-dropout", "0")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take half of the time of such short runs."""
    monkeypatch.setattr(stage1_export, "curves", lambda *_: None)
    monkeypatch.setattr(stage1_export, "retrieval_matrix", lambda *_: None)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Stage1Inputs:
    """A cohort without a fault, and a report encoder without dropout."""
    made = write_stage1_inputs(tmp_path_factory.mktemp("sound"))
    case = next(c for c in read_cases(str(made.cohort / "cases.csv")) if c.case_id == CASE_ID)
    assert len(case.slides) == 2
    assert case.report
    assert case.rna
    config = json.loads((made.text / "config.json").read_text())
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (made.text / "config.json").write_text(json.dumps(config | off))
    return made


def copied(sound: Stage1Inputs, folder: Path) -> Stage1Inputs:
    shutil.copytree(sound.cohort, folder / "c")
    shutil.copytree(sound.features, folder / "f")
    return Stage1Inputs(cohort=folder / "c", features=folder / "f", text=sound.text)


def change_case(inputs: Stage1Inputs, **fields: Any) -> None:
    uri = str(inputs.cohort / "cases.csv")
    cases = read_cases(uri)
    write_cases(uri, [replace(c, **fields) if c.case_id == CASE_ID else c for c in cases])


def rewrite_slide(inputs: Stage1Inputs, slide_id: str, values: np.ndarray) -> None:
    store = FeatureStore.open(str(inputs.features))
    (inputs.features / f"{slide_id}.h5").unlink(missing_ok=True)
    write_slide_features(replace(store, writable=True), slide_id, values)


def no_patches(inputs: Stage1Inputs) -> str:
    for number in (1, 2):
        rewrite_slide(inputs, f"{CASE_ID}-{number}", np.zeros((0, 32), np.float16))
    return "expected patches, got none in its 2 slides"


def no_features(inputs: Stage1Inputs) -> str:
    (inputs.features / f"{CASE_ID}-2.h5").unlink()
    return f"slide {CASE_ID}-2: expected features"


def other_dimension(inputs: Stage1Inputs) -> str:
    rewrite_slide(inputs, f"{CASE_ID}-2", np.ones((30, 16), np.float16))
    return f"slide {CASE_ID}-2: features: expected 32 dims"


def report_of_signs(inputs: Stage1Inputs) -> str:
    reports = dict(read_reports(str(inputs.cohort / "reports.csv")))
    reports[CASE_ID] = Report(text="\ufffd -- ?")
    write_reports(str(inputs.cohort / "reports.csv"), reports)
    return f"report {CASE_ID}: expected text, got none"


def report_without_text(inputs: Stage1Inputs) -> str:
    path = inputs.cohort / "reports.csv"
    rows = list(csv.reader(path.open(newline="")))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([row[0], "" if row[0] == CASE_ID else row[1]] for row in rows)
    return f"report {CASE_ID}: expected text, got none"


def rna_of_zeros(inputs: Stage1Inputs) -> str:
    folder = inputs.cohort / "expression"
    store = ExpressionStore.open(str(folder))
    rows = {case_id: store.row(case_id) for case_id in store.case_ids}
    rows[CASE_ID] = np.zeros_like(rows[CASE_ID])
    shutil.rmtree(folder)
    write_expression(folder, rows)
    return f"RNA row {CASE_ID}: expected expression, got zeros only"


# fault → the column of the case table that a cohort without this input leaves empty
FOUND_BEFORE: dict[Spoil, dict[str, Any]] = {
    no_patches: {"slides": ()},
    no_features: {"slides": ()},
    other_dimension: {"slides": ()},
    report_of_signs: {"report": None},
    report_without_text: {"report": None},
    rna_of_zeros: {"rna": None},
}


@pytest.fixture(scope="module")
def losses_without(
    sound: Stage1Inputs, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[int, float]]:
    """Losses of the cohort in which the case never had an input; one run per input and flags."""
    made: dict[str, dict[int, float]] = {}

    def losses(fields: dict[str, Any], *flags: str) -> dict[int, float]:
        key = repr((fields, flags))
        if key not in made:
            folder = tmp_path_factory.mktemp("without")
            inputs = copied(sound, folder)
            change_case(inputs, **fields)
            assert main(stage1_args(inputs, folder / "out", *ALLOW, *flags)) == ExitCode.COMPLETE
            made[key] = losses_of(folder / "out")
        return made[key]

    return losses


@pytest.mark.parametrize("spoil", FOUND_BEFORE, ids=lambda spoil: spoil.__name__)
def test_a_bad_input_is_named_and_trained_on_as_if_it_were_not_there(
    sound: Stage1Inputs,
    tmp_path: Path,
    losses_without: Callable[..., dict[int, float]],
    capsys: pytest.CaptureFixture[str],
    spoil: Spoil,
) -> None:
    inputs = copied(sound, tmp_path)
    said = spoil(inputs)
    assert main(stage1_args(inputs, tmp_path / "out", *ALLOW)) == ExitCode.COMPLETE
    assert losses_of(tmp_path / "out") == losses_without(FOUND_BEFORE[spoil])
    assert re_join(said) in re_join(capsys.readouterr().out)
    facts = json.loads((tmp_path / "out" / "stage1.json").read_text())
    (bad,) = facts["bad_inputs"]
    assert bad["case_id"] == CASE_ID
    assert said in bad["reason"]


def re_join(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("spoil", FOUND_BEFORE, ids=lambda spoil: spoil.__name__)
def test_a_bad_input_is_refused_where_that_is_the_policy(
    sound: Stage1Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Spoil
) -> None:
    inputs = copied(sound, tmp_path)
    said = spoil(inputs)
    args = stage1_args(inputs, tmp_path / "out", *ALLOW, "--bad-cases", "refuse")
    assert main(args) == ExitCode.FAILED
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "steps.jsonl").exists()


def test_a_report_that_the_tokenizer_makes_nothing_of_is_named_and_left_out(
    sound: Stage1Inputs,
    tmp_path: Path,
    losses_without: Callable[..., dict[int, float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No WordPiece vocabulary does that to a word; another tokenizer may."""
    text = read_reports(str(sound.cohort / "reports.csv"))[CASE_ID].text
    token_ids = ReportTokenizer.token_ids

    def none_of_this(self: ReportTokenizer, texts: Any) -> Any:
        made = token_ids(self, texts)
        return [ids[:0] if text == one else ids for one, ids in zip(texts, made, strict=True)]

    monkeypatch.setattr(ReportTokenizer, "token_ids", none_of_this)
    assert main(stage1_args(sound, tmp_path / "out", *ALLOW)) == ExitCode.COMPLETE
    assert losses_of(tmp_path / "out") == losses_without({"report": None})
    (bad,) = json.loads((tmp_path / "out" / "stage1.json").read_text())["bad_inputs"]
    assert bad["reason"] == f"report {CASE_ID}: expected text, got zero tokens"


def test_more_bad_cases_than_allowed_are_refused(
    sound: Stage1Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = copied(sound, tmp_path)
    for path in sorted(inputs.features.glob("*.h5"))[:20]:
        path.unlink()
    assert main(stage1_args(inputs, tmp_path / "out")) == ExitCode.FAILED
    said = capsys.readouterr().err
    assert "of 60 cases have inputs that cannot be used" in said
    assert "--max-bad-cases" in said


def nan_in_features(inputs: Stage1Inputs) -> str:
    with h5py.File(inputs.features / f"{CASE_ID}-1.h5", "r+") as file:
        file["features"][3, 5] = np.nan
    return f"slide {CASE_ID}-1"


def undeclared_zeros(inputs: Stage1Inputs) -> str:
    values = np.load(inputs.cohort / "expression" / "values.npy")
    row = ExpressionStore.open(str(inputs.cohort / "expression")).case_ids.index(CASE_ID)
    values[row] = 0
    np.save(inputs.cohort / "expression" / "values.npy", values)
    return f"RNA row {CASE_ID}: expected values from 0 on, not all 0"


def undeclared_nan(inputs: Stage1Inputs) -> str:
    undeclared_zeros(inputs)
    values = np.load(inputs.cohort / "expression" / "values.npy")
    values[~values.any(1)] = np.nan
    np.save(inputs.cohort / "expression" / "values.npy", values)
    return f"RNA row {CASE_ID}: expected values from 0 on, not all 0"


# These show only when the value is read: the batch is planned with them. With all cases in one
# batch and bags that hold every patch, it is the same batch.
FOUND_WHILE_READING: dict[Spoil, dict[str, Any]] = {
    nan_in_features: {"slides": ()},
    undeclared_zeros: {"rna": None},
    undeclared_nan: {"rna": None},
}
ONE_BATCH = ("--batch-cases", "60", "--chunk-cases", "60", "--bag-patches", "128", *EXACT)


@pytest.mark.parametrize("spoil", FOUND_WHILE_READING, ids=lambda spoil: spoil.__name__)
def test_a_bad_value_met_while_reading_never_enters_a_batch(
    sound: Stage1Inputs,
    tmp_path: Path,
    losses_without: Callable[..., dict[int, float]],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Spoil,
) -> None:
    inputs = copied(sound, tmp_path)
    said = spoil(inputs)
    read = CaseInputs.chunk
    rows: list[int] = []

    def spy(self: CaseInputs, cases: Any, **how: Any) -> Any:
        chunk = read(self, cases, **how)
        if CASE_ID in chunk.case_ids:
            place = chunk.case_ids.index(CASE_ID)
            name = "bag_cases" if "slides" in FOUND_WHILE_READING[spoil] else "expression_cases"
            rows.append(int((getattr(chunk.batch, name) == place).sum()))
        return chunk

    monkeypatch.setattr(CaseInputs, "chunk", spy)
    assert main(stage1_args(inputs, tmp_path / "out", *ALLOW, *ONE_BATCH)) == ExitCode.COMPLETE
    assert rows == [0], "it is in the batch, without its bad input"
    without = losses_without(FOUND_WHILE_READING[spoil], *ONE_BATCH)
    assert losses_of(tmp_path / "out") == without
    (bad,) = json.loads((tmp_path / "out" / "stage1.json").read_text())["found_bad"]
    assert bad["case_id"] == CASE_ID
    assert said in bad["reason"]


@pytest.mark.parametrize("spoil", FOUND_WHILE_READING, ids=lambda spoil: spoil.__name__)
def test_a_bad_value_met_while_reading_ends_the_run_where_that_is_the_policy(
    sound: Stage1Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Spoil
) -> None:
    inputs = copied(sound, tmp_path)
    said = spoil(inputs)
    flags = (*ALLOW, *ONE_BATCH, "--bad-cases", "refuse")
    assert main(stage1_args(inputs, tmp_path / "out", *flags)) == ExitCode.FAILED
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "steps.jsonl").exists(), "before the step that would use it"


@settings(max_examples=10, deadline=None)
@given(odd=st.integers(0, 59))
def test_the_usual_dimension_is_found_whichever_slide_is_the_odd_one(
    sound: Stage1Inputs, odd: int
) -> None:
    cases = [case for case in read_cases(str(sound.cohort / "cases.csv")) if case.slides]
    odd_case = cases[odd % len(cases)]
    bags = BagReader(str(sound.features))
    slide = sound.features / f"{odd_case.slides[0]}.h5"
    kept = slide.read_bytes()
    try:
        rewrite_slide(sound, odd_case.slides[0], np.ones((3, 7), np.float16))
        settle_feature_kind(bags, cases, 9)
        sane = next(case for case in cases if case is not odd_case)
        assert bags.views(sane.case_id, sane.slides)[0].shape[1] == 32
    finally:
        slide.write_bytes(kept)


def test_a_slide_without_patches_beside_one_with_patches_is_no_fault(
    sound: Stage1Inputs, tmp_path: Path
) -> None:
    inputs = copied(sound, tmp_path)
    rewrite_slide(inputs, f"{CASE_ID}-1", np.zeros((0, 32), np.float16))
    assert main(stage1_args(inputs, tmp_path / "out", *ALLOW)) == ExitCode.COMPLETE
    expected = copied(sound, tmp_path / "other")
    case = next(c for c in read_cases(str(expected.cohort / "cases.csv")) if c.case_id == CASE_ID)
    assert isinstance(case, Case)
    change_case(expected, slides=case.slides[1:])
    args = stage1_args(expected, tmp_path / "other" / "out", *ALLOW)
    assert main(args) == ExitCode.COMPLETE
    assert losses_of(tmp_path / "out") == losses_of(tmp_path / "other" / "out")
