"""Zero-shot, retrieval and few-shot through a sweep: one row each, known truth, gone on with."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstar.data.tables import Column, read_table
from mstar.downstream.journal import Journal
from mstar.downstream.predictions import read_predictions
from mstar.downstream.results import job as results
from mstar.downstream.results.config import ResultsConfig
from mstar.downstream.schedule import Schedule, remember
from mstar.downstream.statistics.measured import RETRIEVAL_COLUMNS
from mstar.downstream.statistics.metrics import value_of
from mstar.downstream.studies import plan_sweep
from support.language_world import World, write_world
from support.planted_sweep import sweep_config
from support.serve_sweep import files, serve

QUICK = (
    *("few_prototype.repeats=4", "few_linear.repeats=4", "few_abmil.repeats=2"),
    *("few_abmil.epochs=4", "few_prototype.ks=1,4", "few_linear.ks=1,4", "few_abmil.ks=1,4"),
    *("mi_zero.top=10", "mi_zero.tops=1,5,10,50,100"),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def done(world: World) -> Schedule:
    """Every method of every family, into one folder."""
    config = sweep_config(world.sweep, methods=("all",), option=QUICK, tasks=("zero", "few"))
    assert serve(config).finished
    return serve(sweep_config(pairs_of(world), methods=("all",), option=QUICK))


def pairs_of(world: World) -> dict[str, Any]:
    """Settings of the sweep over the features that reports were planted in."""
    return world.sweep | {"tasks": ("pairs",), "features": (f"enc={world.root}/FR",)}


def score(world: World, task: str, method: str, metric: str) -> float:
    found = read_predictions(f"{world.root}/R/{task}/enc/{method}/predictions-test.parquet")
    return float(np.mean([value_of(metric, one) for one in found.evaluated()]))


def test_every_method_of_every_family_is_a_study_with_a_row(world: World, done: Schedule) -> None:
    assert not [run.failed for run in done.studies.values() if run.failed]
    with closing(Journal(f"{world.root}/R")) as journal:
        concluded = remember(journal.lines).concluded
    assert concluded.keys() == {
        *("zero/enc/mi_zero", "zero/enc/slide_text"),
        *("pairs/enc/mi_zero", "pairs/enc/slide_text", "pairs/enc/slide_rna"),
        *("few/enc/few_prototype", "few/enc/few_linear", "few/enc/few_abmil"),
    }
    for key, (_, found) in concluded.items():
        folder = Path(found.folder)
        assert json.loads((folder / "study.json").read_text())["family"]
        assert not (folder / "work").exists()
        assert any(name.startswith("test_") for name in found.scores), key


def test_planted_patches_are_found_by_their_text(world: World, done: Schedule) -> None:
    """The untrained aggregator's slide vector, which nothing was planted in, finds nothing sure."""
    assert score(world, "zero", "mi_zero", "macro_auc") > 0.95
    assert score(world, "pairs", "mi_zero", "recall_at_1") > 0.9
    assert score(world, "pairs", "mi_zero", "median_rank") == 1.0
    assert score(world, "pairs", "slide_rna", "recall_at_1") < 0.6


def test_few_slides_are_enough_for_what_was_planted(world: World, done: Schedule) -> None:
    for method in ("few_prototype", "few_linear"):
        assert score(world, "few", method, "macro_auc") > 0.9, method


def test_the_page_has_a_row_of_each_and_says_that_none_is_real(
    world: World, done: Schedule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ResultsConfig(
        runs=(f"{world.root}/R",), out=str(tmp_path), own=(f"{world.root}/own.csv",),
        resamples=100, difference_resamples=100, workers=1,
    )  # fmt: skip
    assert results.run(config) == 0
    rows = read_table(
        f"{tmp_path}/results.csv", (Column(name="task"), Column(name="head"))
    ).to_pylist()
    assert len(rows) == 8
    page = (tmp_path / "index.html").read_text()
    assert "Recall@10" in page
    assert page.count("generated data") >= 8
    assert "8 rows" in capsys.readouterr().out


def test_run_again_does_nothing_and_killed_gives_the_same(
    world: World, done: Schedule, tmp_path: Path
) -> None:
    config = sweep_config(
        pairs_of(world), methods=("mi_zero,slide_rna",), option=QUICK, out=str(tmp_path / "R"),
    )  # fmt: skip
    assert not serve(config, most=1).finished
    assert serve(config).finished
    before = dict(files(config.out))
    assert serve(config, most=0).finished
    assert dict(files(config.out)) == before
    whole = dict(files(f"{world.root}/R"))
    assert before
    assert all(whole[name] == content for name, content in before.items() if "predictions" in name)


def test_without_stage_1_they_are_left_out_with_the_reason(world: World) -> None:
    plan = plan_sweep(sweep_config(world.sweep, stage1="", cohort=""))
    assert not plan.studies
    reasons = {one.task: one.reason for one in plan.left_out}
    assert reasons == {
        "zero": "mi_zero needs --stage1",
        "pairs": "mi_zero needs --stage1 and --cohort",
        "few": "few_prototype needs --stage1",
    }
    assert not any(one.refused for one in plan.left_out)


def test_columns_of_a_retrieval_are_shares_and_places(world: World, done: Schedule) -> None:
    """Cases without a report, or without RNA, are no queries, and counted."""
    absent = 4
    for method in ("mi_zero", "slide_rna"):
        found = read_predictions(f"{world.root}/R/pairs/enc/{method}/predictions-test.parquet")
        assert found.scores.shape == (16 - absent, len(RETRIEVAL_COLUMNS))
        assert sum(found.facts.extra["without"].values()) == absent
        shares = found.scores[:, :-2]
        assert ((shares >= 0) & (shares <= 1)).all()
        assert (found.scores[:, -2:] >= 1).all()
