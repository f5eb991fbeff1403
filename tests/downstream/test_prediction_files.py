"""Prediction files come back as they were written, and say what is wrong with others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mstar.downstream.predictions import (
    NO_LABEL,
    PredictionFacts,
    Predictions,
    read_predictions,
    write_predictions,
)
from mstar.errors import TableError


def some(kind: str = "classification") -> Predictions:
    survival = kind == "survival"
    scores = np.asarray([[0.1], [0.7], [-2.0]] if survival else [[0.2, 0.8], [1, 0], [0.5, 0.5]])
    return Predictions(
        task="t",
        encoder="e",
        head="abmil",
        part="test",
        fold=("0", "0", "1"),
        seed=np.asarray([1, 1, 2]),
        case_id=("a", "b", "a"),
        patient=("P1", "P2", "P1"),
        slides=(("s1", "s/2"), ("s3",), ("s1", "s/2")),
        label=np.full(3, NO_LABEL, np.int32) if survival else np.asarray([1, 0, 1], np.int32),
        time_months=np.asarray([3.5, 7.0, 3.5]) if survival else np.full(3, np.nan),
        event=np.asarray([True, False, True]) if survival else np.zeros(3, bool),
        scores=scores.astype(np.float32),
        facts=PredictionFacts(
            kind=kind,
            metric="c_index" if survival else "macro_auc",
            data_source="generated",
            class_names=() if survival else ("no", "yes"),
            config={"lr": 2e-4, "head_options": {"hidden": 32}},
            digests={"labels": "abc"},
            trials=16,
            leaked_patients=2,
            follow_up={"0": 12.5} if survival else {},
            median_risk={"0/1": -2.25} if survival else {},
            val_scores={"0/1": 0.75},
        ),
    )


@pytest.mark.parametrize("kind", ["classification", "survival"])
def test_what_is_written_comes_back(tmp_path: Path, kind: str) -> None:
    written = some(kind)
    uri = str(tmp_path / "p.parquet")
    write_predictions(uri, written)
    read = read_predictions(uri)
    assert read.facts == written.facts
    for field in dataclasses.fields(Predictions):
        got, expected = getattr(read, field.name), getattr(written, field.name)
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(got, expected, strict=True)
        else:
            assert got == expected


def test_equal_predictions_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_predictions(str(tmp_path / name), some())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_tools_read_columns_and_nulls(tmp_path: Path) -> None:
    write_predictions(str(tmp_path / "p"), some())
    table = pq.read_table(tmp_path / "p").to_pydict()
    assert table["slides"] == ["s1;s/2", "s3", "s1;s/2"]
    assert table["label"] == [1, 0, 1]
    assert table["time_months"] == [None] * 3
    assert table["event"] == [None] * 3
    write_predictions(str(tmp_path / "q"), some("survival"))
    assert pq.read_table(tmp_path / "q").to_pydict()["label"] == [None] * 3


def test_runs_and_evaluated_sets_are_one_per_model() -> None:
    predictions = some("survival")
    assert [(fold, seed, rows.tolist()) for fold, seed, rows in predictions.runs()] == [
        ("0", 1, [0, 1]),
        ("1", 2, [2]),
    ]
    first = predictions.evaluated()[0]
    assert first.patients == ("P1", "P2")
    assert first.follow_up == 12.5
    assert first.times is not None
    assert first.times.tolist() == [3.5, 7.0]


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no")
    pq.write_table(pa.table({"task": ["t"]}), tmp_path / "plain")
    for name, words in (("text", "Parquet"), ("plain", "metadata"), ("gone", "no such file")):
        with pytest.raises(TableError, match=words):
            read_predictions(str(tmp_path / name))


def test_two_studies_in_one_file_are_refused(tmp_path: Path) -> None:
    write_predictions(str(tmp_path / "p"), some())
    table = pq.read_table(tmp_path / "p")
    other = table.set_column(0, "task", pa.array(["t", "t", "u"]))
    pq.write_table(other, tmp_path / "q")
    with pytest.raises(TableError, match=r"one task in the file, got \['t', 'u'\]"):
        read_predictions(str(tmp_path / "q"))
