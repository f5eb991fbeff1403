"""`mstar report write`: reports of slides that have none, again only where they are missing."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from mstar.data.reports import read_reports
from mstar.downstream.config import Study
from mstar.downstream.family_files import conclude_family
from mstar.downstream.family_job import FamilyJob, FamilySources
from mstar.downstream.report_generation import job
from mstar.downstream.report_generation.job import ReportWriteConfig, run
from mstar.downstream.report_generation.options import HistGenOptions
from mstar.embed.config import RunConfig
from mstar.errors import ConfigError, WeightsError
from mstar.predict import job as predict_job
from mstar.predict.config import PredictConfig
from mstar.schema import RESEARCH_ONLY
from support.report_cohort import SMALL, ReportCohort, report_cohort

OPTIONS = HistGenOptions(
    **SMALL, epochs=1, lr=3e-3, batch_slides=4, max_tokens=8, vocabulary_size=300
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> ReportCohort:
    return report_cohort(tmp_path_factory.mktemp("reports"), cases=10)


@pytest.fixture(scope="module")
def study(cohort: ReportCohort, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("out")
    done = conclude_family(
        FamilyJob(
            study=Study(task_id="reports", encoder="planted", head="histgen"),
            data=cohort.data,
            roots=(cohort.store,),
            folder=str(out),
            options=OPTIONS,
            sources=FamilySources(cohort=cohort.folder),
            cache_dir=str(out / "cache"),
        )
    )
    return done.folder


def config_of(cohort: ReportCohort, study: str, out: Path) -> ReportWriteConfig:
    return ReportWriteConfig(
        model=study, features=cohort.store, out=str(out), device="cpu", tracking=False,
        cases_at_once=4, cache_dir=str(out / "cache"),
    )  # fmt: skip


def test_every_slide_gets_the_report_that_evaluation_gave_it(
    cohort: ReportCohort, study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(cohort, study, tmp_path)
    assert run(config) == 0
    said = capsys.readouterr().out
    assert "10 reports, 10 written by this run" in said
    assert RESEARCH_ONLY in said
    assert (tmp_path / "reports.csv").read_text().count(RESEARCH_ONLY) == 10
    written = read_reports(str(tmp_path / "reports.csv"))
    with Path(study, "reports-test.csv").open() as file:
        for row in csv.DictReader(file):
            assert written[f"{row['case_id']}-1"].text == row["generated"]


def test_again_writes_only_what_is_missing_or_of_another_search(
    cohort: ReportCohort, study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(cohort, study, tmp_path)
    run(config)
    sorted(tmp_path.glob("texts/*.json"))[3].unlink()
    capsys.readouterr()
    run(config)
    assert "10 reports, 1 written by this run" in capsys.readouterr().out
    run(replace(config, max_new_tokens=5))
    assert "10 reports, 10 written by this run" in capsys.readouterr().out
    longest = [json.loads(path.read_text())["tokens"] for path in tmp_path.glob("texts/*.json")]
    assert max(longest) <= 5


def test_cases_without_features_are_counted_and_named(
    cohort: ReportCohort, study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = cohort.cases[0].case_id
    table = tmp_path / "cases.csv"
    table.write_text(
        f"case_id,cancer_type,slides,report,rna,split\n{case},BRCA,{case}-1,,,\n"
        "lost,BRCA,none-1,,,\n"
    )
    config = replace(config_of(cohort, study, tmp_path), cases=str(table))
    assert run(replace(config, dry_run=True)) == 0
    assert not (tmp_path / "texts").exists()
    assert run(config) == 3
    assert "left out: 1 (no features: lost)" in capsys.readouterr().out
    assert list(read_reports(str(tmp_path / "reports.csv"))) == [case]


def test_what_is_no_report_generator_is_refused(
    cohort: ReportCohort, study: str, tmp_path: Path
) -> None:
    config = config_of(cohort, study, tmp_path)
    with pytest.raises(WeightsError, match="expected models of a finished study"):
        run(replace(config, model=str(tmp_path)))
    with pytest.raises(ConfigError, match="--cases-at-once 0: expected 1 or more"):
        replace(config, cases_at_once=0)
    assert job.__all__ == ["ReportWriteConfig", "run"]


def test_predict_gives_the_reports_that_the_study_wrote(
    cohort: ReportCohort, study: str, tmp_path: Path
) -> None:
    config = PredictConfig(
        model=study, features=(cohort.store,), out=str(tmp_path), unit="slide", device="cpu",
        run=RunConfig(tracking=False, cache_dir=str(tmp_path / "cache")),
    )  # fmt: skip
    assert predict_job.run(config) == 0
    with (tmp_path / "predictions.csv").open() as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    assert len(rows) == 10
    with Path(study, "reports-test.csv").open() as file:
        for told in csv.DictReader(file):
            row = rows[f"{told['case_id']}-1"]
            assert row["report"] == told["generated"]
            assert row["warning"] == RESEARCH_ONLY
    assert read_reports(str(tmp_path / "reports" / "reports.csv")).keys() == rows.keys()
