"""A study: chosen on validation, tested once, resumable, and its models tested elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstar.downstream import study as study_module
from mstar.downstream.config import PAPER_COMPAT, Study, TrialConfig
from mstar.downstream.evaluate import SealedTest, evaluate_external, predict
from mstar.downstream.model_files import load_fit, make_head, model_digest, save_fit
from mstar.downstream.population import train_population
from mstar.downstream.predictions import read_predictions
from mstar.downstream.stream import BagSource
from mstar.downstream.study import run_study
from mstar.errors import ConfigError, FeatureError, TrainingError, WeightsError
from support.planted_tasks import planted_task

STUDY = Study(task_id="planted", encoder="toy", head="abmil")
SMALL = {"hidden": 8, "attention_dim": 4}
CONFIGS = [TrialConfig(head_options=SMALL, epochs=2, lr=lr) for lr in (1e-6, 2e-2)]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return planted_task(tmp_path_factory.mktemp("study"), cases=30, folds=2)


@pytest.fixture(scope="module")
def survival(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return planted_task(tmp_path_factory.mktemp("survival"), "survival", cases=40)


@pytest.fixture(scope="module")
def finished(task: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    out = tmp_path_factory.mktemp("R")
    return run_study(STUDY, *task[:2], CONFIGS, out=str(out), seeds=(1, 2)), out


def test_the_winner_has_the_best_mean_over_folds_and_seeds(task, finished) -> None:
    result, _ = finished
    means = []
    for config in CONFIGS:
        fits = [
            train_population(*task[:2], [config], fold=fold, seed=seed)[0]
            for fold in (0, 1)
            for seed in (1, 2)
        ]
        means.append(np.mean([fit.best_score for fit in fits]))
    np.testing.assert_allclose(result.mean_scores, means)
    assert result.chosen == int(np.argmax(means))
    assert result.config == CONFIGS[result.chosen]


def test_predictions_cover_every_fold_and_seed_once(task, finished) -> None:
    data, result = task[0], finished[0]
    for part in ("val", "test"):
        found = read_predictions(result.predictions[part])
        assert (found.part, found.key) == (part, STUDY.key)
        assert [run[:2] for run in found.runs()] == [("0", 1), ("0", 2), ("1", 1), ("1", 2)]
        for fold, _, rows in found.runs():
            places = getattr(data.folds[int(fold)], part)
            assert [found.case_id[row] for row in rows] == [
                data.samples[at].case_id for at in places
            ]
            assert found.label[rows].tolist() == [data.samples[at].label for at in places]
        np.testing.assert_allclose(found.scores.sum(axis=1), 1, rtol=1e-5)
    facts = found.facts
    assert facts.trials == 2
    assert facts.data_source == "generated"
    assert facts.digests["splits"] == data.split_digest
    assert facts.val_scores == result.val_scores


def test_models_on_disk_say_what_the_predictions_say(task, finished) -> None:
    data, bags = task[:2]
    found = read_predictions(finished[0].predictions["test"])
    source = BagSource(bags)
    for uri, (fold, seed, rows) in zip(finished[0].models, found.runs(), strict=True):
        saved = load_fit(uri)
        assert (saved.fit.fold, saved.fit.seed) == (fold, seed)
        scores = predict(saved.fit, source, data.folds[int(fold)].test)
        np.testing.assert_array_equal(scores, found.scores[rows])
        assert Path(uri.removesuffix(".safetensors") + ".json").exists()


def test_a_finished_study_is_read(task, finished, monkeypatch) -> None:
    result, out = finished
    monkeypatch.setattr(study_module, "train_population", lambda *a, **k: pytest.fail("trained"))
    again = run_study(STUDY, *task[:2], CONFIGS, out=str(out), seeds=(1, 2))
    assert again == dataclasses.replace(result, reused=True)


def test_other_settings_need_another_folder(task, finished) -> None:
    with pytest.raises(ConfigError, match=r"seeds: expected \[1\], found \[1, 2\]"):
        run_study(STUDY, *task[:2], CONFIGS, out=str(finished[1]), seeds=(1,))


def test_a_killed_study_repeats_no_finished_fit(task, finished, tmp_path, monkeypatch) -> None:
    class KilledError(Exception):
        pass

    told = []

    def die(fit: Any) -> None:
        told.append(fit)
        if len(told) == 5:
            raise KilledError

    with pytest.raises(KilledError):
        run_study(STUDY, *task[:2], CONFIGS, out=str(tmp_path), seeds=(1, 2), on_fit=die)
    trained = []
    real = train_population

    def counting(data, bags, configs, **more):
        trained.append((more["fold"], more["seed"], len(configs)))
        return real(data, bags, configs, **more)

    monkeypatch.setattr(study_module, "train_population", counting)
    result = run_study(STUDY, *task[:2], CONFIGS, out=str(tmp_path), seeds=(1, 2))
    assert [todo for todo in trained if todo[2]] == [(1, 2, 2)]  # the fourth run of four
    for part, uri in result.predictions.items():
        assert Path(uri).read_bytes() == Path(finished[0].predictions[part]).read_bytes()
    assert not (tmp_path / STUDY.key / "fits").exists()


def test_the_test_part_answers_to_one_model(task, tmp_path) -> None:
    data, bags = task[:2]
    first, second = train_population(data, bags, CONFIGS)
    source = BagSource(bags)
    for out in (None, str(tmp_path)):
        sealed = SealedTest(data, source, study=STUDY, fold=0, seed=1, out=out)
        scores = sealed.open(second).scores
        np.testing.assert_array_equal(sealed.open(second).scores, scores)
        with pytest.raises(TrainingError, match="scored once, with the model chosen"):
            sealed.open(first)
    later = SealedTest(data, source, study=STUDY, fold=0, seed=1, out=str(tmp_path))
    with pytest.raises(TrainingError, match=r"planted/toy/abmil, fold 0, seed 1"):
        later.open(first)
    other = SealedTest(data, source, study=STUDY, fold=0, seed=2, out=str(tmp_path))
    other.open(first)


def test_another_choice_over_the_same_folder_is_refused(task, tmp_path) -> None:
    run_study(STUDY, *task[:2], CONFIGS[:1], out=str(tmp_path))
    (tmp_path / STUDY.key / "study.json").unlink()
    with pytest.raises(TrainingError, match="scored with another model"):
        run_study(STUDY, *task[:2], CONFIGS[1:], out=str(tmp_path))


def test_survival_studies_keep_what_curves_need(survival, tmp_path) -> None:
    data, bags, _ = survival
    config = TrialConfig(head_options=SMALL, epochs=2, lr=1e-2)
    result = run_study(STUDY, data, bags, [config], out=str(tmp_path))
    facts = read_predictions(result.predictions["test"]).facts
    train = data.folds[0].train
    assert facts.follow_up == {"0": max(data.samples[at].time_months for at in train)}
    risks = predict(load_fit(result.models[0]).fit, BagSource(bags), train)
    assert facts.median_risk == {"0/1": pytest.approx(float(np.median(risks)))}


def test_compat_numbers_are_marked(task, tmp_path) -> None:
    config = dataclasses.replace(CONFIGS[1], lr=1e-12)
    result = run_study(STUDY, *task[:2], [config], out=str(tmp_path), protocol=PAPER_COMPAT)
    facts = read_predictions(result.predictions["test"]).facts
    assert facts.protocol == "paper-compat"
    assert "reads high" in facts.warning
    assert result.config.epochs == 50
    assert len(load_fit(result.models[0]).fit.history) == 11  # nothing moves: patience 10


def test_failed_configurations_lose_and_alone_are_an_error(task, tmp_path) -> None:
    wild = dataclasses.replace(CONFIGS[0], lr=1e30, optimizer="sgd")
    result = run_study(STUDY, *task[:2], [wild, CONFIGS[1]], out=str(tmp_path / "a"))
    assert result.chosen == 1
    assert "not finite" in result.failed[0]
    with pytest.raises(TrainingError, match="every configuration failed"):
        run_study(STUDY, *task[:2], [wild], out=str(tmp_path / "b"))


def test_external_tasks_take_the_models_as_they_are(task, finished, tmp_path) -> None:
    external, bags, _ = planted_task(
        tmp_path, cases=20, seed=7, task_id="elsewhere", trained_on="planted"
    )
    fold = dataclasses.replace(external.folds[0], test=np.arange(20))
    external = dataclasses.replace(external, folds=(fold,))
    found = evaluate_external(finished[0].folder, external, bags)
    assert (found.part, found.key) == ("external", "elsewhere/toy/abmil")
    assert len(found) == 4 * 20
    assert found.facts.trained_on == "planted"
    assert found.facts.digests["trained_on_splits"] == task[0].split_digest
    first = load_fit(sorted(finished[0].models)[0]).fit
    np.testing.assert_array_equal(found.scores[:20], predict(first, BagSource(bags), np.arange(20)))


def test_external_tasks_of_other_classes_or_models_are_refused(finished, tmp_path) -> None:
    folder = finished[0].folder
    three, bags, _ = planted_task(tmp_path / "three", cases=30, classes=3, task_id="three")
    with pytest.raises(ConfigError, match="in the order of the internal task"):
        evaluate_external(folder, three, bags)
    other, bags, _ = planted_task(tmp_path / "other", cases=20, task_id="o", trained_on="else")
    with pytest.raises(ConfigError, match="expected models of else"):
        evaluate_external(folder, other, bags)
    with pytest.raises(WeightsError, match="expected models of a finished study"):
        evaluate_external(str(tmp_path / "none"), other, bags)


def test_features_of_another_length_are_refused(task, finished) -> None:
    fit = dataclasses.replace(load_fit(finished[0].models[0]).fit, input_dim=99)
    with pytest.raises(FeatureError, match="99 numbers, got 16"):
        predict(fit, BagSource(task[1]), np.arange(2))


@pytest.mark.parametrize("head", ["knn", "prototype", "linear", "transmil"])
def test_models_of_every_sort_come_back(task, tmp_path, head: str) -> None:
    config = TrialConfig(head=head, epochs=1, max_patches=8 if head == "transmil" else 0)
    if head == "transmil":
        config = dataclasses.replace(config, head_options={"dim": 16, "heads": 2, "landmarks": 4})
    (fit,) = train_population(*task[:2], [config])
    uri = str(tmp_path / "m.safetensors")
    save_fit(uri, fit, {"a": 1})
    saved = load_fit(uri)
    assert model_digest(saved.fit) == model_digest(fit)
    assert (saved.fit.history, saved.fit.config) == (fit.history, fit.config)
    assert saved.facts == {"a": 1}
    make_head(saved.fit)
    places = task[0].folds[0].val
    scores = predict(saved.fit, BagSource(task[1]), places)
    np.testing.assert_array_equal(scores, predict(fit, BagSource(task[1]), places))
    # validation packs bags, so the last bits differ
    np.testing.assert_allclose(scores, fit.select_scores, rtol=1e-5)


def test_broken_model_files_are_named(tmp_path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    for name, words in (("x", "expected a trained head"), ("y", "no such model")):
        with pytest.raises(WeightsError, match=words):
            load_fit(str(tmp_path / f"{name}.safetensors"))


def test_studies_are_checked_before_anything_is_trained(task, tmp_path) -> None:
    with pytest.raises(ConfigError, match="one head"):
        run_study(STUDY, *task[:2], [TrialConfig(head="linear")], out=str(tmp_path))
    with pytest.raises(ConfigError, match="different seeds"):
        run_study(STUDY, *task[:2], CONFIGS, out=str(tmp_path), seeds=(1, 1))
    with pytest.raises(ConfigError, match="slash"):
        Study(task_id="a/b", encoder="e", head="abmil")
