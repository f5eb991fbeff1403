"""A study of report generation from end to end, as a sweep runs it: files, page, external task."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mstar.config import to_dict
from mstar.downstream.config import Study
from mstar.downstream.families import method_options
from mstar.downstream.family_files import conclude_family
from mstar.downstream.family_job import FamilyJob, FamilySources
from mstar.downstream.pieces import Concluded
from mstar.downstream.predictions import read_predictions
from mstar.downstream.report_generation import family
from mstar.downstream.report_generation.options import HistGenOptions
from mstar.downstream.report_generation.writing import find_writers, load_writer, write_reports
from mstar.downstream.results.sources import read_runs
from mstar.downstream.statistics.generation import GENERATION_COLUMNS, column
from mstar.downstream.stream import BagSource
from mstar.errors import ConfigError, SplitError, TrainingError, WeightsError
from mstar.schema import RESEARCH_ONLY
from support.report_cohort import SMALL, ReportCohort, report_cohort, report_task_data

OPTIONS = HistGenOptions(
    **SMALL, epochs=2, lr=3e-3, batch_slides=4, max_tokens=24, vocabulary_size=300, samples=3
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> ReportCohort:
    return report_cohort(tmp_path_factory.mktemp("reports"), cases=20)


def job_of(cohort: ReportCohort, out: Path, **changes: object) -> FamilyJob:
    given: dict[str, object] = {
        "study": Study(task_id="reports", encoder="planted", head="histgen"),
        "data": cohort.data,
        "roots": (cohort.store,),
        "folder": str(out / "reports" / "planted" / "histgen"),
        "options": OPTIONS,
        "sources": FamilySources(cohort=cohort.folder),
        "seeds": (1, 2),
        "cache_dir": str(out / "cache"),
    }
    return FamilyJob(**{**given, **changes})


@pytest.fixture(scope="module")
def done(cohort: ReportCohort, tmp_path_factory: pytest.TempPathFactory) -> Concluded:
    return conclude_family(job_of(cohort, tmp_path_factory.mktemp("out")))


def rows_of(done: Concluded, part: str) -> list[dict[str, str]]:
    with Path(done.folder, f"reports-{part}.csv").open() as file:
        return list(csv.DictReader(file))


def test_predictions_hold_measures_of_every_test_case_and_seed(
    cohort: ReportCohort, done: Concluded
) -> None:
    found = read_predictions(done.predictions["test"])
    test = [cohort.data.samples[at].case_id for at in cohort.data.folds[0].test.tolist()]
    assert list(found.case_id) == test * 2
    assert found.scores.shape == (2 * len(test), len(GENERATION_COLUMNS))
    assert [found.facts.kind, found.facts.metric] == ["report_generation", "bleu_4"]
    assert "test_bleu_4" in done.scores
    assert done.mean_score == np.mean(list(found.facts.val_scores.values()))
    assert len(read_runs([done.folder]).sources) == 1
    assert found.facts.extra["longer_than_max_tokens"] == 20


def test_texts_stand_beside_the_whole_references(cohort: ReportCohort, done: Concluded) -> None:
    for part in ("val", "test"):
        for row in rows_of(done, part):
            report = Path(cohort.folder, "reports.csv").read_text()
            assert row["reference"].split()[-1] in report
            assert len(row["reference"].split()) > 24  # never cut to what is trained on
            assert int(row["tokens"]) <= 24
    measures = read_predictions(done.predictions["test"]).scores
    counted = [len(re.findall(r"[^\W_]+", row["reference"])) for row in rows_of(done, "test")]
    assert measures[:, column("reference_words")].tolist() == counted


def test_the_page_needs_no_network_and_shows_what_is_generated(done: Concluded) -> None:
    page = Path(done.folder, "samples-test.html").read_text()
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)
    assert "Generated data" in page
    assert RESEARCH_ONLY.capitalize() in page
    assert page.count("<article>") == 3
    assert "grade" in page
    assert str(Path(done.folder, "samples-test.html")) in done.figures


def test_a_model_alone_writes_the_same_again(cohort: ReportCohort, done: Concluded) -> None:
    writer = load_writer(done.models[0])
    assert len(find_writers(done.folder)) == 2
    places = cohort.data.folds[0].test
    again = write_reports(writer, BagSource(cohort.bags), places)
    own = [row["generated"] for row in rows_of(done, "test") if row["seed"] == "1"]
    assert [one.text for one in again] == own
    assert any(own)


def test_words_of_other_parts_are_never_learnt(cohort: ReportCohort, tmp_path: Path) -> None:
    """A word that the test part alone has is no token, however frequent it is there."""
    data, told = cohort.data, Path(tmp_path, "reports.csv")
    test = {data.samples[at].case_id for at in data.folds[0].test.tolist()}
    lines = ["case_id,text"]
    for sample in data.samples:
        word = "zyzzyva" if sample.case_id in test else "ordinary"
        lines.append(f"{sample.case_id},{' '.join([word] * 9)}")
    told.write_text("\n".join(lines) + "\n")
    options = replace(OPTIONS, epochs=1, reports=str(told), vocabulary_size=400)
    made = conclude_family(job_of(cohort, tmp_path, options=options, seeds=(1,)))
    known, unknown = load_writer(made.models[0]).vocabulary.encode(["ordinary", "zyzzyva"])
    assert len(known) == 1 < len(unknown)


def test_an_external_task_takes_the_models_and_trains_nothing(
    cohort: ReportCohort, done: Concluded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family, "train_population", None)
    data = report_task_data(cohort.cases, trained_on="reports", task_id="elsewhere")
    study = Study(task_id="elsewhere", encoder="planted", head="histgen")
    made = conclude_family(job_of(cohort, tmp_path, data=data, study=study, models_of=done.folder))
    found = read_predictions(made.predictions["external"])
    assert len(found) == 2 * len(data.samples)
    inside = {row["case_id"]: row["generated"] for row in rows_of(done, "test")
              if row["seed"] == "1"}  # fmt: skip
    outside = {row["case_id"]: row["generated"] for row in rows_of(made, "external")
               if row["seed"] == "1"}  # fmt: skip
    assert {case: outside[case] for case in inside} == inside


def test_finished_fits_are_found_again_and_the_test_part_opens_to_one_model(
    cohort: ReportCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(cohort, tmp_path, seeds=(1,))
    first = family.run(job)
    trained = family.train_population
    monkeypatch.setattr(family, "train_population", None)
    again = family.run(job)
    scores = [one.predictions["test"].scores for one in (first, again)]
    np.testing.assert_array_equal(*scores)
    monkeypatch.setattr(family, "train_population", trained)
    with pytest.raises(TrainingError, match="scored with another model"):
        family.run(replace(job, options=replace(OPTIONS, lr=1e-3)))


@pytest.mark.parametrize("change", [{"select": "loss"}, {"precision": "bfloat16"}])
def test_the_loss_can_choose_and_half_precision_can_train(
    change: dict[str, str], cohort: ReportCohort, tmp_path: Path
) -> None:
    options = replace(OPTIONS, **change)
    made = family.run(job_of(cohort, tmp_path, options=options, seeds=(1,)))
    described = json.loads(Path(made.models[0].replace(".safetensors", ".json")).read_text())
    history = described["fit"]["history"]
    assert history[1]["train_loss"] < history[0]["train_loss"]
    if change == {"select": "loss"}:
        assert made.mean_score == pytest.approx(-min(row["val_loss"] for row in history))
    rates = [row["lr"] for row in history]
    assert rates == pytest.approx([3e-3, 3e-3 * 0.8])


def test_everything_wrong_is_told_before_a_study_runs(cohort: ReportCohort, tmp_path: Path) -> None:
    data, task = cohort.data, cohort.data.task
    sources = FamilySources(cohort=cohort.folder)
    family.check(task, sources, OPTIONS, data)
    other = tmp_path / "reports.csv"
    other.write_text("case_id,text\nnobody,a report\n")
    with pytest.raises(SplitError, match="expected cases with a report, got none of 14"):
        family.check(task, sources, replace(OPTIONS, reports=str(other)), data)
    with pytest.raises(WeightsError, match="no such folder"):
        family.check(task, sources, replace(OPTIONS, vocabulary=str(tmp_path / "none")), data)
    with pytest.raises(WeightsError, match="expected models of a finished study"):
        family.run(job_of(cohort, tmp_path, models_of=str(tmp_path)))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("histgen.select=rouge", "select 'rouge': expected bleu_4 or loss"),
        ("histgen.precision=float16", "expected float32 or bfloat16"),
        ("histgen.max_tokens=1", "max_tokens of 2 or more"),
        ("histgen.lr_factor=0", "lr_factor above 0"),
        ("histgen.beam=0", "beam and max_new_tokens of 1 or more"),
        ("histgen.width=100", "even multiple of heads 8"),
        ("histgen.epochs=0", "epochs 0: expected at least 1"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        method_options("report_generation", "histgen", [word])


def test_small_sizes_leave_those_that_are_set() -> None:
    small = method_options("report_generation", "histgen", ["histgen.sizes=small"])
    assert [small.model.width, small.model.memory_slots] == [64, 64]
    words = ["histgen.sizes=small", "histgen.width=32"]
    own = method_options("report_generation", "histgen", words)
    assert [own.model.width, own.model.memory_slots] == [32, 64]


def test_the_defaults_are_the_papers() -> None:
    options = to_dict(method_options("report_generation", "histgen", []))
    expected = {
        "epochs": 40, "lr": 1e-4, "lr_factor": 0.8, "weight_decay": 5e-5, "amsgrad": True,
        "clip": 0.1, "batch_slides": 1, "max_tokens": 100, "beam": 3, "d_vf": 2048, "width": 512,
        "ff": 512, "heads": 8, "decoder_layers": 3, "region_tokens": 96, "memory_slots": 2048,
        "memory_top": 512, "prototypes": 512, "feature_dropout": 0.5, "dropout": 0.1,
    }  # fmt: skip
    assert {name: options[name] for name in expected} == expected
