"""Zero-shot, retrieval and few-shot through a sweep: one row each, known truth, gone on with."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mstar.data.tables import Column, read_table
from mstar.downstream.journal import Journal
from mstar.downstream.language.few_shot import support
from mstar.downstream.predictions import read_predictions
from mstar.downstream.results import job as results
from mstar.downstream.results.config import ResultsConfig
from mstar.downstream.schedule import Schedule, remember
from mstar.downstream.statistics.measured import RETRIEVAL_COLUMNS
from mstar.downstream.statistics.metrics import value_of
from mstar.downstream.studies import plan_sweep
from mstar.embed.config import RunConfig
from mstar.errors import ConfigError, TableError, WeightsError
from mstar.evidence import heatmap_job
from mstar.evidence.config import HeatmapConfig
from mstar.evidence.scores import read_scores
from mstar.predict import job as predict_job
from mstar.predict.config import PredictConfig
from mstar.schema import RESEARCH_ONLY
from support.language_world import World, case_id, write_stage2, write_world
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


def test_few_shot_draws_for_every_fold_and_scores_every_patient_once_a_draw(
    world: World, tmp_path: Path
) -> None:
    """Two folds: what one learns from, the other tests."""
    own = tmp_path / "own.csv"
    own.write_text(
        "task_id,kind,metric,classes,split_policy\nhalves,few_shot,macro_auc,no|yes,own\n"
    )
    lines = ["case_id,slide,label,fold1,fold2"]
    for at in range(world.cases):
        slides = ";".join(f"{case_id(at)}-{number}" for number in range(1 + at % 2))
        parts = ("train,test", "test,train")[at // 2 % 2]
        lines.append(f"{case_id(at)},{slides},{('no', 'yes')[at % 2]},{parts}")
    (tmp_path / "halves.csv").write_text("\n".join(lines) + "\n")
    config = sweep_config(
        world.sweep, labels=str(tmp_path), own=(str(own),), tasks=("halves",), cohort="",
        methods=("few_linear",), option=("few_linear.repeats=3", "few_linear.ks=1,4"),
        out=str(tmp_path / "R"),
    )  # fmt: skip
    (plan,) = plan_sweep(config).tasks.values()
    drawn = [support(plan, 4, draw, fold=fold) for fold in (0, 1) for draw in range(3)]
    assert len({tuple(one.tolist()) for one in drawn}) == 6
    assert all(set(one) <= set(plan.folds[at // 3].train) for at, one in enumerate(drawn))
    assert serve(config).finished
    found = read_predictions(f"{tmp_path}/R/halves/enc/few_linear/predictions-test.parquet")
    tested = Counter(zip(found.case_id, found.seed.tolist(), strict=True))
    assert len(tested) == world.cases * 3
    assert set(tested.values()) == {1}
    curve = found.facts.extra["curve"]
    assert {(row["k"], row["draws"]) for row in curve} == {(1, 3), (4, 3)}
    assert [row["value"] > 0.9 for row in curve if row["k"] == 4] == [True, True]


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


def predict_slides(world: World, task: str, method: str, out: Path, **fields: Any) -> list[Any]:
    """`mstar predict` on every slide of the store, one row each."""
    given: dict[str, Any] = {
        "model": f"{world.root}/R/{task}/enc/{method}", "features": (f"{world.root}/F",),
        "out": str(out), "unit": "slide", "run": RunConfig(tracking=False),
    }  # fmt: skip
    assert predict_job.run(PredictConfig(**given | fields)) == 0
    return pq.read_table(out / "predictions.parquet").to_pylist()


@pytest.mark.parametrize(
    ("task", "method"),
    [
        *(("zero", "mi_zero"), ("zero", "slide_text")),
        *(("few", "few_prototype"), ("few", "few_linear"), ("few", "few_abmil")),
    ],
)
def test_a_new_slide_is_scored_as_in_the_study(
    task: str, method: str, world: World, done: Schedule, tmp_path: Path
) -> None:
    """Zero-shot to the bit; few-shot, the mean of the draws."""
    rows = {row["slides"]: row for row in predict_slides(world, task, method, tmp_path)}
    told = read_predictions(f"{world.root}/R/{task}/enc/{method}/predictions-test.parquet")
    alone = [at for at, slides in enumerate(told.slides) if len(slides) == 1]
    assert alone
    for at in alone:
        row = rows[told.slides[at][0]]
        said = [row["score_no"], row["score_yes"]]
        of_case = [n for n in alone if told.case_id[n] == told.case_id[at]]
        if task == "zero":
            assert said == told.scores[at].tolist()
        else:
            np.testing.assert_allclose(said, told.scores[of_case].mean(axis=0), rtol=1e-5)
        assert row["predicted"] == ("no", "yes")[int(np.argmax(said))]
        assert (row["head"], row["warning"]) == (method, RESEARCH_ONLY)


def test_zero_shot_takes_new_prompts_of_new_classes_and_no_changed_ones(
    world: World, done: Schedule, tmp_path: Path
) -> None:
    own = tmp_path / "mine.json"
    classes = {"gland": ["solid gland"], "stroma": ["pale stroma"], "other": ["lymph vessel"]}
    own.write_text(json.dumps({"classes": classes, "templates": ["CLASSNAME."]}))
    rows = predict_slides(world, "zero", "mi_zero", tmp_path / "P", prompts=str(own))
    assert {f"score_{name}" for name in classes} < rows[0].keys()
    before = predict_slides(world, "zero", "mi_zero", tmp_path / "Q")
    assert rows[0]["prompts"] != before[0]["prompts"]
    copy = tmp_path / "S1"
    shutil.copytree(f"{world.root}/S1", copy)
    moved = predict_slides(world, "zero", "mi_zero", tmp_path / "M", stage1=str(copy))
    assert [row["score_no"] for row in moved] == [row["score_no"] for row in before]
    write_stage2(copy)
    (copy / "projection.safetensors").write_bytes(b"another")
    with pytest.raises(WeightsError, match="expected the encoders of stages 1 and 2"):
        predict_slides(world, "zero", "mi_zero", tmp_path / "N", stage2=str(copy))
    with pytest.raises(ConfigError, match="has no answer for one case"):
        predict_slides(world, "pairs", "mi_zero", tmp_path / "O")
    study = tmp_path / "study"
    shutil.copytree(f"{world.root}/R/zero/enc/mi_zero", study)
    record = json.loads((study / "study.json").read_text())
    record["digests"]["prompts"] = "0" * 64
    (study / "study.json").write_text(json.dumps(record))
    with pytest.raises(TableError, match="expected the prompts of the study"):
        predict_slides(world, "zero", "mi_zero", tmp_path / "T", model=str(study))


def heatmaps(world: World, task: str, method: str, out: Path, **fields: Any) -> None:
    given: dict[str, Any] = {
        "model": f"{world.root}/R/{task}/enc/{method}", "features": (f"{world.root}/F",),
        "slides": (f"{case_id(1)}-0",), "out": str(out), "unit": "slide", "overlay": "none",
        "run": RunConfig(tracking=False),
    }  # fmt: skip
    assert heatmap_job.run(HeatmapConfig(**given | fields)) == 0


def test_heatmaps_of_a_zero_shot_study_are_of_its_prompts(
    world: World, done: Schedule, tmp_path: Path
) -> None:
    """The first twenty rows of a case of class yes were planted along that class's text."""
    heatmaps(world, "zero", "mi_zero", tmp_path / "H")
    found = read_scores(str(tmp_path / "H" / f"{case_id(1)}-0" / "scores.parquet"))
    layers = {layer.class_name: layer.values for layer in found.layers}
    assert set(layers) == {"no", "yes"}
    assert {layer.kind for layer in found.layers} == {"similarity"}
    assert found.layers[0].class_name == found.made_by["prediction"]["predicted"] == "yes"
    best = np.sort(layers["yes"])[::-1]
    assert best[:15].mean() > 0.5
    assert abs(best[25:].mean()) < 0.2
    own = {r["slides"]: r for r in predict_slides(world, "zero", "mi_zero", tmp_path / "P")}
    assert own[f"{case_id(1)}-0"]["score_yes"] == found.made_by["prediction"]["score_yes"]
    with pytest.raises(ConfigError, match="compares the vectors of slides"):
        heatmaps(world, "zero", "slide_text", tmp_path / "N")
    with pytest.raises(ConfigError, match="scores no patches"):
        heatmaps(world, "few", "few_linear", tmp_path / "N")
    heatmaps(world, "few", "few_abmil", tmp_path / "A")
    found = read_scores(str(tmp_path / "A" / f"{case_id(1)}-0" / "scores.parquet"))
    assert found.layers[0].values.sum() == pytest.approx(1, abs=1e-4)
