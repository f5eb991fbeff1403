"""A whole sweep without Ray: the worker's own work, and that cutting and killing change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mstar.downstream.predictions import read_predictions
from mstar.downstream.schedule import Schedule
from support.planted_sweep import EASY, RISK, Planted, plant, sweep_config
from support.serve_sweep import files, serve

OUTER = Planted(task_id="outer", trained_on="easy", cases=12)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A classification and a survival task, and an external one."""
    return plant(tmp_path_factory.mktemp("planted"), (EASY, RISK, OUTER))


@pytest.fixture(scope="module")
def whole(planted: dict[str, Any]) -> Schedule:
    """An undisturbed sweep of the quick space."""
    return serve(sweep_config(planted))


def test_every_study_has_predictions_models_and_its_trial_count(
    planted: dict[str, Any], whole: Schedule
) -> None:
    """Four configurations competed; external tasks take the internal task's models."""
    assert not any(run.failed for run in whole.studies.values())
    assert len(whole.studies) == 6
    for study, run in whole.studies.items():
        part = "external" if study.task_id == "outer" else "test"
        assert run.concluded is not None
        found = read_predictions(run.concluded.predictions[part])
        assert found.key == study.key
        assert found.facts.trials == 4
        assert found.facts.trained_on == ("easy" if part == "external" else "")
        assert set(run.concluded.scores) >= {
            f"{part}_{'c_index' if study.task_id == 'risk' else 'macro_auc'}"
        }
        assert len(run.concluded.models) == (part == "test")
    assert not list(Path(planted["out"]).rglob("fits/*"))


def test_the_winner_is_the_searchs_best(whole: Schedule) -> None:
    """What is tested is what won on validation."""
    for study, run in whole.studies.items():
        if study.task_id == "outer":
            continue
        best, done = run.search.best, run.concluded
        assert best is not None
        assert done is not None
        assert done.trial == best.trial
        assert done.config["lr"] == best.config.lr
        assert done.mean_score == pytest.approx(best.score, abs=0)


@pytest.mark.parametrize("most", [9])
def test_killed_and_gone_on_gives_the_same(
    planted: dict[str, Any], whole: Schedule, tmp_path: Path, most: int
) -> None:
    """Wherever it was killed: predictions byte for byte, models to the last weight."""
    config = sweep_config(planted, out=str(tmp_path))
    assert not serve(config, most=most).finished
    assert serve(config).finished
    assert dict(files(config.out)) == dict(files(planted["out"]))


def test_a_tuned_study_killed_and_gone_on_gives_the_same(
    planted: dict[str, Any], tmp_path: Path
) -> None:
    """Optuna is asked and told the same again, halving included; the second half is trained."""
    tuned = planted | {"space": "tune", "trials": 16, "tasks": ("easy",), "heads": ("linear",)}
    undisturbed = serve(sweep_config(tuned, out=str(tmp_path / "whole")))
    config = sweep_config(tuned, out=str(tmp_path / "killed"))
    half = serve(config, most=2)
    (run,) = half.studies.values()
    assert 0 < len(run.search.ended) < 16
    (again,) = serve(config).studies.values()
    (whole,) = undisturbed.studies.values()
    assert again.search.ended == whole.search.ended
    assert sum(end.full for end in again.search.ended.values()) == 6
    assert len({end.config.lr for end in again.search.ended.values()}) == 16
    assert dict(files(config.out)) == dict(files(str(tmp_path / "whole")))


def test_how_a_sweep_is_cut_changes_nothing(
    planted: dict[str, Any], whole: Schedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration by itself gives the same as in a population."""
    monkeypatch.setattr("mstar.downstream.schedule.LEAST_PIECE", 1.0)
    config = sweep_config(planted, out=str(tmp_path), tasks=("easy",))
    serve(config, slots=64)
    ours = dict(files(config.out))
    assert ours
    assert ours.items() <= dict(files(planted["out"])).items()


def test_lost_heads_are_trained_again(
    planted: dict[str, Any], whole: Schedule, tmp_path: Path
) -> None:
    """Somebody tidied up between two runs."""
    config = sweep_config(planted, out=str(tmp_path), tasks=("easy",), heads=("linear",))
    serve(config, most=2)
    lost = list(tmp_path.rglob("fits/*"))
    assert lost
    for path in lost:
        path.unlink()
    serve(config)
    assert dict(files(config.out)).items() <= dict(files(planted["out"])).items()


def test_the_papers_configuration_over_seeds(planted: dict[str, Any], tmp_path: Path) -> None:
    """One trial, a model for each seed."""
    space = tmp_path / "short.py"
    space.write_text("from mstar.downstream.spaces import Space\nSPACE = Space(epochs=(2,))\n")
    config = sweep_config(
        planted,
        out=str(tmp_path / "out"),
        tasks=("easy",),
        heads=("abmil",),
        space=str(space),
        seeds=2,
        figures=True,
    )
    (run,) = serve(config).studies.values()
    assert run.concluded is not None
    assert [Path(uri).name for uri in run.concluded.models] == [
        "0-s1.safetensors",
        "0-s2.safetensors",
    ]
    assert sorted(Path(uri).stem for uri in run.concluded.figures) == [
        "calibration", "confusion", "pr", "roc",
    ]  # fmt: skip
    assert read_predictions(run.concluded.predictions["test"]).facts.trials == 1


def test_a_configuration_that_raises_stops_nothing(
    planted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others of its population are trained; a rerun tries it again."""
    from mstar.downstream import piece_worker

    whole_population = piece_worker.train_population
    bad: list[float] = []

    def sometimes(data: Any, bags: Any, configs: Any, **rest: Any) -> Any:
        bad[:] = bad or [configs[0].lr]
        if any(config.lr == bad[0] for config in configs):
            raise RuntimeError("out of luck")
        return whole_population(data, bags, configs, **rest)

    monkeypatch.setattr(piece_worker, "train_population", sometimes)
    config = sweep_config(planted, out=str(tmp_path), tasks=("easy",), heads=("linear",))
    (run,) = serve(config).studies.values()
    assert run.raised
    assert not run.failed
    assert (run.num_failed_trials, len(run.search.ended)) == (1, 4)
    assert "out of luck" in run.by_trial[0][0].failed


def test_a_broken_store_fails_its_studies_only(planted: dict[str, Any], tmp_path: Path) -> None:
    """With the reason of the features' own error."""
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(planted["features"][0].partition("=")[2], broken)
    (broken / "easy-003.h5").write_bytes(b"not an HDF5 file")
    config = sweep_config(
        planted,
        out=str(tmp_path / "out"),
        features=(f"enc={broken}",),
        tasks=("easy", "risk"),
        heads=("linear",),
    )
    runs = {study.task_id: run for study, run in serve(config).studies.items()}
    assert "easy-003" in runs["easy"].failed
    assert "Traceback" in runs["easy"].traceback
    assert runs["risk"].concluded is not None
