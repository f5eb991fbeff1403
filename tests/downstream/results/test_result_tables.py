"""The tables hold what direct computation gives, and claim no more than the statistics allow."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from mstar.downstream.prediction_parts import evaluated_parts
from mstar.downstream.predictions import Predictions
from mstar.downstream.results.config import ResultsConfig
from mstar.downstream.results.differences import Reference
from mstar.downstream.results.job import run
from mstar.downstream.statistics.bootstrap import fold_estimate
from mstar.downstream.statistics.compare import compare, holm, p_paper_compat
from mstar.errors import ConfigError
from support.prediction_files import classification, survival, write_study

FEW: dict[str, Any] = {"resamples": 100, "difference_resamples": 300, "workers": 1}
NAMES = ("task", "encoder", "head")
Row = dict[str, str]


def results(tmp_path: Path, studies: list[Predictions], **options: Any) -> dict[Any, Row]:
    """Rows of results.csv by task, encoder and head."""
    for study in studies:
        write_study(tmp_path / "run", study)
    options = {"metrics": "main", "formats": ("csv", "parquet")} | FEW | options
    config = ResultsConfig(runs=(str(tmp_path / "run"),), out=str(tmp_path / "out"), **options)
    assert run(config) == 0
    rows = read(tmp_path / "out" / "results.csv")
    return {tuple(row[name] for name in NAMES): row for row in rows}


def read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_values_intervals_and_seed_spread_are_those_of_the_statistics(tmp_path: Path) -> None:
    binary = classification("t_binary", folds=("0", "1"), seeds=(1, 2, 3), cases=80)
    multi = classification("t_multi", classes=("a", "b", "c"), cases=70)
    death = survival("t_os", seeds=(1, 2))
    found = results(tmp_path, [binary, multi, death])
    for study in (binary, multi, death):
        row = found[study.task, "initial", "abmil"]
        expected = fold_estimate(study.facts.metric, evaluated_parts(study), resamples=100)
        for name in ("value", "low", "high"):
            assert float(row[name]) == pytest.approx(getattr(expected, name), abs=1e-12)
        assert int(row["patients"]) == expected.patients
    stored = float(found["t_multi", "initial", "abmil"]["value"])
    one_vs_rest = roc_auc_score(multi.label, multi.scores, multi_class="ovr", labels=[0, 1, 2])
    assert stored == pytest.approx(one_vs_rest, abs=1e-6)
    assert found["t_multi", "initial", "abmil"]["seed_std"] == ""
    per_seed = [
        np.mean(
            [
                roc_auc_score(binary.label[rows], binary.scores[rows, 1])
                for _, seed, rows in binary.runs()
                if seed == wanted
            ]
        )
        for wanted in (1, 2, 3)
    ]
    spread = float(found["t_binary", "initial", "abmil"]["seed_std"])
    assert spread == pytest.approx(np.std(per_seed, ddof=1), abs=1e-6)


def test_differences_p_and_holm_are_those_of_the_statistics(tmp_path: Path) -> None:
    pairs = {}
    for task, made in (("t_a", classification), ("t_b", classification), ("t_os", survival)):
        pairs[task] = [made(task, "uni", signal=1.2), made(task, "initial", signal=0.4)]
    found = results(tmp_path, [study for pair in pairs.values() for study in pair])
    compared = {}
    for task, (ours, theirs) in pairs.items():
        sides = evaluated_parts(ours), evaluated_parts(theirs)
        compared[task] = compare(ours.facts.metric, *sides, resamples=300)
        row = found[task, "uni", "abmil"]
        assert float(row["difference"]) == pytest.approx(compared[task].value, abs=1e-12)
        assert float(row["p"]) == pytest.approx(compared[task].p, abs=1e-12)
        assert float(row["difference_low"]) == pytest.approx(compared[task].low, abs=1e-12)
        paper = p_paper_compat(ours.facts.metric, *sides, resamples=100)
        assert float(row["p_paper_compat"]) == pytest.approx(paper, abs=1e-12)
        assert (row["versus_encoder"], row["versus_head"]) == ("initial", "abmil")
        assert found[task, "initial", "abmil"]["difference"] == ""
    adjusted = holm([compared[task].p for task in pairs])
    for task, p in zip(pairs, adjusted, strict=True):
        assert float(found[task, "uni", "abmil"]["p_holm"]) == pytest.approx(p, abs=1e-12)


def test_ranks_and_the_winner(tmp_path: Path) -> None:
    strengths = {"a": 0.1, "b": 0.9, "c": 3.0}
    studies = [classification("t", name, signal=s, cases=150) for name, s in strengths.items()]
    found = results(tmp_path, studies)
    assert [found["t", name, "abmil"]["rank"] for name in "abc"] == ["3", "2", "1"]
    assert [found["t", name, "abmil"]["winner"] for name in "abc"] == ["false", "false", "true"]
    assert found["t", "c", "abmil"]["stars"] == "***"


@pytest.mark.parametrize(
    ("facts", "cases", "mark"),
    [
        ({}, 28, "28 test cases"),
        ({"leaked_patients": 4}, 150, "leak: 4 patients"),
        ({"protocol": "paper-compat", "warning": "reads high"}, 150, "paper-compat"),
    ],
)
def test_what_may_not_be_claimed_has_no_stars_and_no_winner(
    tmp_path: Path, facts: dict[str, Any], cases: int, mark: str
) -> None:
    studies = [
        classification("t", name, signal=signal, cases=cases, **facts)
        for name, signal in (("a", 0.0), ("b", 4.0))
    ]
    row = results(tmp_path, studies)["t", "b", "abmil"]
    assert float(row["p_paper_compat"]) < 0.001
    assert row["rank"] == "1"
    assert (row["stars"], row["winner"]) == ("", "false")
    assert mark in row["marks"]


def test_leaking_rows_are_in_no_average_and_no_rank(tmp_path: Path) -> None:
    studies = [classification("fair", e, signal=s) for e, s in (("a", 1.0), ("b", 2.0))]
    alone = results(tmp_path / "alone", studies)
    leaking = [classification("leaking", e, signal=5.0, leaked_patients=2) for e in "ab"]
    both = results(tmp_path / "both", [*studies, *leaking])
    assert len(both) == len(alone) + 2
    for name in ("averages", "ranks", "pairs"):
        tables = [tmp_path / which / "out" / f"{name}.csv" for which in ("alone", "both")]
        assert read(tables[0]) == read(tables[1])
    values = [float(alone["fair", e, "abmil"]["value"]) for e in "ab"]
    averages = [float(row["value"]) for row in read(tmp_path / "both" / "out" / "averages.csv")]
    assert averages == pytest.approx(values)


def test_tasks_of_the_same_patients_have_one_vote(tmp_path: Path) -> None:
    studies = [
        classification(task, e, signal=s, prefix=prefix)
        for task, prefix in (("er", "brca"), ("pr", "brca"), ("lung", "luad"))
        for e, s in (("a", 1.0), ("b", 2.0))
    ]
    studies += [
        classification("er_elsewhere", e, part="external", trained_on="er") for e in ("a", "b")
    ]
    found = results(tmp_path, studies)
    votes = {task: row["cohort"] for (task, _, _), row in found.items()}
    assert votes == {"er": "er", "pr": "er", "er_elsewhere": "er", "lung": "lung"}
    assert {row["cohorts"] for row in read(tmp_path / "out" / "averages.csv")} == {"2"}


def test_generated_and_real_rows_never_meet_in_an_average(tmp_path: Path) -> None:
    studies = [
        classification(f"t_{source}", e, data_source=source)
        for source in ("real", "generated")
        for e in ("a", "b")
    ]
    found = results(tmp_path, studies)
    assert "generated data" in found["t_generated", "a", "abmil"]["marks"]
    rows = read(tmp_path / "out" / "averages.csv")
    assert [(row["data_source"], row["tasks"]) for row in rows] == [
        *[("real", "1")] * 2,
        *[("generated", "1")] * 2,
    ]


def test_rows_of_other_cases_are_not_compared(tmp_path: Path) -> None:
    studies = [classification("t", "a", cases=60), classification("t", "b", cases=50)]
    found = results(tmp_path, studies)
    assert {row["rivals"] for row in found.values()} == {"1"}
    assert {row["difference"] for row in found.values()} == {""}


def test_parquet_holds_what_csv_holds(tmp_path: Path) -> None:
    results(tmp_path, [classification("t", e) for e in ("a", "b")])
    stored = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    for row, text in zip(stored, read(tmp_path / "out" / "results.csv"), strict=True):
        assert row["encoder"] == text["encoder"]
        assert row["value"] == pytest.approx(float(text["value"]), abs=1e-12)


def test_several_processes_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mstar.downstream.results.estimates._WORTH_A_PROCESS", 1.0)
    studies = [classification(t, e) for t in ("t", "u") for e in ("a", "b")]
    results(tmp_path / "one", studies)
    results(tmp_path / "two", studies, workers=2)
    one, two = (tmp_path / name / "out" / "metrics.csv" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_diverged_study_is_left_out_and_said(tmp_path: Path) -> None:
    fine, broken = classification("t", "a"), classification("t", "b")
    broken.scores[3] = math.nan
    for study in (fine, broken):
        write_study(tmp_path / "run", study)
    config = ResultsConfig(
        runs=(str(tmp_path / "run"),), out=str(tmp_path / "out"), formats=("csv",), **FEW
    )
    assert run(config) == 3
    assert [row["encoder"] for row in read(tmp_path / "out" / "results.csv")] == ["a"]
    (left_out,) = read(tmp_path / "out" / "left_out.csv")
    assert left_out["encoder"] == "b"
    assert "not finite" in left_out["reason"]


def test_a_metric_that_nobody_knows_leaves_out_its_task_alone(tmp_path: Path) -> None:
    for study in (classification("t"), classification("u", metric="beauty")):
        write_study(tmp_path / "run", study)
    config = ResultsConfig(runs=(str(tmp_path / "run"),), out=str(tmp_path / "out"), **FEW)
    assert run(config) == 3
    assert [row["task"] for row in read(tmp_path / "out" / "results.csv")] == ["t"]
    assert "No metric &#x27;beauty&#x27;" in (tmp_path / "out" / "index.html").read_text()


def test_a_sweep_of_which_all_is_left_out_still_has_its_page(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "left_out.csv").write_text("task,reason\nu,no features\n")
    assert results(tmp_path, [], formats=("csv", "html", "latex", "markdown")) == {}
    assert "no features" in (tmp_path / "out" / "index.html").read_text()


def test_what_a_sweep_left_out_is_listed_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "left_out.csv").write_text('task,reason\nu,"no features, none"\n')
    results(tmp_path, [classification("t")])
    assert read(tmp_path / "out" / "left_out.csv") == [
        {"task": "u", "encoder": "", "head": "", "reason": "no features, none"}
    ]


def test_validation_predictions_are_no_results(tmp_path: Path) -> None:
    studies = [classification("t"), classification("t", part="val", signal=9.0)]
    assert len(results(tmp_path, studies)) == 1


def test_two_results_of_one_study_are_refused_and_copies_are_not(tmp_path: Path) -> None:
    write_study(tmp_path / "one", classification("t"))
    write_study(tmp_path / "copy", classification("t"))
    write_study(tmp_path / "other", classification("t", signal=2.0))
    out, one, copy, other = (str(tmp_path / name) for name in ("out", "one", "copy", "other"))
    assert run(ResultsConfig(runs=(one, copy), out=out, formats=("csv",), **FEW)) == 0
    with pytest.raises(ConfigError, match="expected one result of t/initial/abmil"):
        run(ResultsConfig(runs=(one, other), out=out, formats=("csv",), **FEW))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "expected --runs"),
        ({"tracking_uri": "sqlite:///x.db"}, "expected --experiment"),
        ({"runs": ("r",), "resamples": 3}, "expected 100 or more"),
    ],
)
def test_configs_that_cannot_be_meant(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ResultsConfig(out="o", **options)


def test_an_empty_folder_and_an_unknown_reference_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got none"):
        run(ResultsConfig(runs=(str(tmp_path),), out=str(tmp_path / "out"), **FEW))
    with pytest.raises(ConfigError, match="--reference-encoder nobody"):
        results(tmp_path, [classification("t")], reference_encoder="nobody")


def test_the_reference_changes_one_thing_at_a_time() -> None:
    reference = Reference(encoder="a", heads=("linear", "abmil"))
    every = [(e, h) for e in "ab" for h in ("abmil", "linear")]
    assert reference.of(("b", "abmil"), every) == ("a", "abmil")
    assert reference.of(("a", "abmil"), every) == ("a", "linear")
    assert reference.of(("a", "linear"), every) is None
    assert reference.of(("b", "abmil"), [("b", "abmil")]) is None
