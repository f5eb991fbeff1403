"""`mstar predict`: new slides seen as the training slides were, scored as in the study."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

import mstar
from mstar.data.task_data import TaskFold
from mstar.downstream.config import Study, TrialConfig
from mstar.downstream.predictions import read_predictions
from mstar.downstream.study import run_study
from mstar.embed.assembly import EmbedPlan
from mstar.embed.config import EmbedConfig, RunConfig
from mstar.embed.here import embed_here
from mstar.errors import ConfigError, FeatureError, WeightsError
from mstar.features.store import FeatureStore
from mstar.models.patch_encoders import prepare_weights
from mstar.predict.config import PredictConfig
from mstar.predict.job import run
from mstar.predict.temperature import calibrated, fit_temperature
from mstar.schema import RESEARCH_ONLY, SlideRef
from mstar.storage.ledger import FailureLedger
from mstar.storage.manifest import read_slides
from mstar.training.exit_codes import ExitCode
from support.cohorts import write_cohort
from support.planted_tasks import planted_task
from support.slides import (
    SlideSpec,
    write_non_image,
    write_slide,
    write_truncated,
    write_without_mpp,
    write_zero_byte,
)
from support.store_study import train_on_store

STUDY = Study(task_id="planted", encoder="micro", head="abmil")
HEAD = TrialConfig(head_options={"hidden": 8, "attention_dim": 4}, epochs=1, lr=1e-2)

FOLD = TaskFold(name="0", train=np.arange(4), val=np.arange(4, 6), test=np.arange(6, 8))


def plan_for(slides: Path, out: Path) -> EmbedPlan:
    """Embedding in this process, by an encoder of half a million weights."""
    config = EmbedConfig(
        slides=str(slides), out=str(out), encoder="vit_micro", weights="random:3", device="cpu",
        precision="float32", batch_size=32, run=RunConfig(tracking=False),
    )  # fmt: skip
    weights = prepare_weights(config.encoder, config.weights)
    return EmbedPlan(
        config=config, run_id="t", weights=weights, device="cpu", precision="float32",
        batch_size=32, torch_threads=1, reader_threads=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, FeatureStore]:
    """A folder of slides, a finished study on their features, and the store of these."""
    root = tmp_path_factory.mktemp("predict")
    slides = write_cohort(root / "slides", num_slides=8)
    plan = plan_for(slides, root / "F")
    found = [entry for entry in read_slides(str(slides)) if isinstance(entry, SlideRef)]
    store, _ = embed_here(plan, found)
    train_on_store(root, store, found, study=STUDY, config=HEAD, fold=FOLD)
    return slides, root / "R" / STUDY.key, store


def settings(world: tuple[Path, Path, FeatureStore], out: Path, **fields: Any) -> PredictConfig:
    slides, model, _ = world
    given: dict[str, Any] = {"slides": str(slides), "model": str(model), "out": str(out)}
    quiet = RunConfig(tracking=False, max_failures=fields.pop("max_failures", "0"))
    more = {"weights": "random:3", "device": "cpu", "batch_size": 32, "where": "here", "run": quiet}
    return PredictConfig(**given | more | fields)


def table_of(out: Path) -> dict[str, dict[str, str]]:
    with (out / "predictions.csv").open(newline="") as file:
        return {row["case_id"]: row for row in csv.DictReader(file)}


def test_slides_are_embedded_alike_and_scored_as_in_the_study(
    world: tuple[Path, Path, FeatureStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, model, store = world
    assert run(settings(world, tmp_path)) == ExitCode.COMPLETE
    made = FeatureStore.open(str(tmp_path / "features"))
    for slide in store.done_ids():
        np.testing.assert_array_equal(made.read(slide).features, store.read(slide).features)
    told, found = read_predictions(str(model / "predictions-test.parquet")), table_of(tmp_path)
    assert set(found) == set(store.done_ids())
    for name, scores in zip(told.case_id, told.scores, strict=True):
        row = found[name]
        said = [float(row["score_class0"]), float(row["score_class1"])]
        assert said == scores.tolist()  # to the bit
        assert row["predicted"] == f"class{int(np.argmax(scores))}"
        assert float(row["calibrated_class0"]) + float(row["calibrated_class1"]) == pytest.approx(1)
        assert row["warning"] == RESEARCH_ONLY
    assert RESEARCH_ONLY in capsys.readouterr().out
    record = json.loads((tmp_path / "predict.json").read_text())
    assert (record["cases"], record["failed"]) == (8, 0)
    assert record["warning"] == RESEARCH_ONLY


@pytest.mark.slow
def test_the_run_is_in_mlflow(
    world: tuple[Path, Path, FeatureStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read back by the client: settings, counts, tables, and a call that failed as FAILED."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = write_cohort(tmp_path / "slides", num_slides=1)
    write_non_image(folder / "corrupt.svs")
    config = settings(world, tmp_path / "P", slides=str(folder))
    config = replace(config, run=RunConfig(tracking=True, max_failures="1"))
    assert run(config) == ExitCode.COMPLETE
    with pytest.raises(WeightsError, match="expected the weights"):
        run(replace(config, weights="random:4", slides=str(world[0]), unit="slide"))
    client = MlflowClient(f"sqlite:///{tmp_path}/P/mlflow.db")
    experiment = client.get_experiment_by_name("predict")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    assert [found.info.status for found in runs] == ["FINISHED", "FAILED"]
    first = runs[0].data
    assert first.params["model"] == config.model
    assert first.params["run.max_failures"] == "1"
    assert (first.metrics["cases"], first.metrics["failed"]) == (1, 1)
    assert first.metrics["seconds"] > 0
    assert (first.tags["task"], first.tags["head"]) == ("planted", "abmil")
    assert first.tags["warning"] == RESEARCH_ONLY
    names = {file.path for file in client.list_artifacts(runs[0].info.run_id)}
    assert {"predictions.csv", "failures.csv", "predict.json", "config.json"} <= names
    path = client.download_artifacts(runs[0].info.run_id, "failures.csv", str(tmp_path))
    assert "corrupt" in Path(path).read_text()


def test_stores_made_before_give_the_same_without_slides(
    world: tuple[Path, Path, FeatureStore], tmp_path: Path
) -> None:
    config = settings(world, tmp_path, slides=None, features=(world[2].root,))
    assert run(config) == ExitCode.COMPLETE
    assert not (tmp_path / "features").exists()
    assert len(table_of(tmp_path)) == 8


def test_broken_slides_are_in_the_ledger_and_the_others_predicted(
    world: tuple[Path, Path, FeatureStore], tmp_path: Path
) -> None:
    """Corrupt, cut off, zero bytes, no resolution, far too coarse, and nothing but glass."""
    folder = write_cohort(tmp_path / "slides", num_slides=1)
    write_non_image(folder / "corrupt.svs")
    write_truncated(folder / "cut.svs", keep=0.2)
    write_zero_byte(folder / "nothing.svs")
    write_without_mpp(folder / "nowhere.svs")
    write_slide(folder / "coarse.svs", SlideSpec(mpp=4.0, objective=2.5))
    write_slide(folder / "glass.svs", SlideSpec(tissue=False))
    config = settings(world, tmp_path / "P", slides=str(folder))
    assert run(config) == ExitCode.EXCLUSIONS
    assert list(table_of(tmp_path / "P")) == ["slide 0 ü"]
    with (tmp_path / "P" / "failures.csv").open(newline="") as file:
        failed = {row["name"]: row["reason"] for row in csv.DictReader(file)}
    assert set(failed) == {"corrupt", "cut", "nothing", "nowhere", "coarse", "glass"}
    assert "mpp" in failed["nowhere"]
    assert "4" in failed["coarse"]
    assert "mpp" in failed["coarse"]
    assert "no patches" in failed["glass"]
    ledger = FailureLedger(str(tmp_path / "P" / "features" / "failures"))
    assert all(ledger.get(name) for name in set(failed) - {"glass"})
    assert run(replace(config, run=replace(config.run, max_failures="6"))) == ExitCode.COMPLETE


def test_slides_of_one_case_are_one_row(
    world: tuple[Path, Path, FeatureStore], tmp_path: Path
) -> None:
    slides, model, store = world
    paths = sorted(slides.glob("*.svs"))[:3]
    lines = [
        f"{path},{path.stem},{case}" for path, case in zip(paths, ("A", "A", "B"), strict=True)
    ]
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,slide_id,case_id\n" + "\n".join(lines) + "\n")
    config = settings(world, tmp_path / "P", slides=str(manifest), features=(store.root,))
    assert run(replace(config, unit="case")) == ExitCode.COMPLETE
    rows = table_of(tmp_path / "P")
    assert set(rows) == {"A", "B"}
    bag = mstar.Bag.of(store, paths[0].stem, paths[1].stem)
    expected = mstar.load_head(str(model)).predict(bag).scores
    said = [float(rows["A"][f"score_class{code}"]) for code in (0, 1)]
    np.testing.assert_allclose(said, expected, rtol=1e-6)
    assert int(rows["A"]["num_patches"]) == len(bag)


def test_another_encoder_is_refused(world: tuple[Path, Path, FeatureStore], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="expected the weights"):
        run(settings(world, tmp_path / "a", weights="random:4"))
    other = plan_for(world[0], tmp_path / "other")
    config = replace(other.config, dtype="float32")
    slides = [one for one in read_slides(str(world[0])) if isinstance(one, SlideRef)][:1]
    store, _ = embed_here(replace(other, config=config), slides)
    with pytest.raises(FeatureError, match="dtype: expected 'float16', got 'float32'"):
        run(settings(world, tmp_path / "b", slides=None, features=(store.root,)))
    with pytest.raises(ConfigError, match="expected --slides, --features"):
        settings(world, tmp_path, slides=None)


def test_a_dry_run_writes_nothing(
    world: tuple[Path, Path, FeatureStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(world, tmp_path / "P")
    assert run(replace(config, run=replace(config.run, dry_run=True))) == ExitCode.COMPLETE
    assert "Nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "P").exists()


def test_survival_gives_risk_group_and_a_falling_curve(tmp_path: Path) -> None:
    data, bags, store = planted_task(tmp_path, "survival", cases=24, most_slides=1)
    run_study(STUDY, data, bags, [HEAD], out=str(tmp_path / "R"))
    config = PredictConfig(
        model=str(tmp_path / "R" / STUDY.key), out=str(tmp_path / "P"), features=(store.root,),
        run=RunConfig(tracking=False),
    )  # fmt: skip
    assert run(config) == ExitCode.COMPLETE
    told = read_predictions(str(tmp_path / "R" / STUDY.key / "predictions-test.parquet"))
    rows = {row["slides"]: row for row in table_of(tmp_path / "P").values()}
    for slides, score in zip(told.slides, told.scores, strict=True):
        row = rows[slides[0]]
        assert float(row["risk"]) == float(score[0])
        assert row["risk_group"] in ("high", "low")
        curve = [pair.split(":") for pair in row["survival_curve"].split(";")]
        heights = [float(height) for _, height in curve]
        assert heights == sorted(heights, reverse=True)
        assert 0 <= heights[-1] <= heights[0] <= 1
        assert -sum(heights) == pytest.approx(float(row["risk"]), abs=1e-3)


def test_the_temperature_is_that_of_scipy_on_logits() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    logits = 4 * (np.eye(3)[labels] + rng.normal(0, 1, (400, 3)))  # far too sure of itself
    scores = np.exp(log_softmax(logits, axis=1))
    found = fit_temperature(scores, labels)
    best = minimize_scalar(
        lambda t: -log_softmax(logits / t, axis=1)[np.arange(400), labels].mean(),
        bounds=(0.5, 20),
        method="bounded",
    )
    assert found == pytest.approx(best.x, rel=1e-3)
    assert found > 1.5
    after = calibrated(scores, found)
    assert (after.argmax(axis=1) == scores.argmax(axis=1)).all()
    assert fit_temperature(scores[:3], np.zeros(3, int)) == 1.0
