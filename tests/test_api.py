"""The Python API: its names, and that a head says there what it says in a study."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import mstar
from mstar.downstream.config import Study, TrialConfig, paper_trial
from mstar.downstream.predictions import read_predictions
from mstar.downstream.study import run_study
from mstar.errors import ConfigError, FeatureError, WeightsError
from mstar.features.store import FeatureStore
from support.planted_tasks import planted_task
from support.slides import write_non_image

STUDY = Study(task_id="planted", encoder="toy", head="abmil")
CONFIG = TrialConfig(head_options={"hidden": 8, "attention_dim": 4}, epochs=1, lr=1e-2)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, FeatureStore, Path]:
    """A finished study of two folds, its task and the store of its features."""
    root = tmp_path_factory.mktemp("api")
    data, bags, store = planted_task(root, cases=24, folds=2)
    run_study(STUDY, data, bags, [CONFIG], out=str(root / "R"))
    return data, store, root / "R" / STUDY.key


def test_importing_the_package_imports_neither_torch_nor_ray() -> None:
    code = "import mstar, sys; print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_every_name_is_there_and_none_starts_ray() -> None:
    code = (
        "import mstar, sys; [getattr(mstar, name) for name in mstar.__all__]; "
        "print('ray' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
    with pytest.raises(AttributeError, match="no attribute 'open_slides'"):
        mstar.open_slides  # noqa: B018


def test_a_head_says_what_its_study_says(study: tuple[Any, FeatureStore, Path]) -> None:
    """To the bit: each model against the study's predictions."""
    data, store, folder = study
    told = read_predictions(str(folder / "predictions-test.parquet"))
    for fold, seed, rows in told.runs():
        head = mstar.load_head(str(folder / "models" / f"{fold}-s{seed}.safetensors"))
        assert (head.training, head.classes) == ("classification", tuple(data.class_names))
        for row in rows:
            said = head.predict(mstar.Bag.of(store, *told.slides[row]))
            np.testing.assert_array_equal(said.scores, told.scores[row])


WIDE: dict[str, dict[str, Any]] = {
    "abmil": {"hidden": 96, "attention_dim": 24},
    "abmil_gated": {"hidden": 96, "attention_dim": 24},
    "clam_sb": {"hidden": 96, "attention_dim": 24},
    "clam_mb": {"hidden": 96, "attention_dim": 24},
    "dsmil": {},
    "transmil": {"dim": 32, "heads": 4, "landmarks": 8},
    "linear": {},
    "knn": {},
    "prototype": {},
    "cox_linear": {},
}
"""Head → options: wide enough that a packed batch rounds otherwise than a bag alone."""


@pytest.mark.parametrize("head", WIDE)
def test_every_head_gives_a_bag_the_bits_of_its_study(
    head: str, wide: dict[str, tuple[Any, Any, FeatureStore]], tmp_path: Path
) -> None:
    data, bags, store = wide["survival" if head == "cox_linear" else "classification"]
    base = paper_trial(head)
    config = replace(base, head_options=WIDE[head], epochs=1)
    study = Study(task_id="planted", encoder="toy", head=head)
    run_study(study, data, bags, [config], out=str(tmp_path))
    told = read_predictions(str(tmp_path / study.key / "predictions-test.parquet"))
    asked = mstar.load_head(str(tmp_path / study.key))
    said = [asked.predict(mstar.Bag.of(store, *slides)).scores for slides in told.slides]
    np.testing.assert_array_equal(np.stack(said), told.scores)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any, FeatureStore]]:
    """A task of each kind."""
    return {
        kind: planted_task(tmp_path_factory.mktemp(kind), kind, cases=12, patches=(20, 400))
        for kind in ("classification", "survival")
    }


def test_slides_are_embedded_and_heads_predict_where_there_is_no_ray(
    study: tuple[Any, FeatureStore, Path], slide_factory: Callable[..., Path], tmp_path: Path
) -> None:
    data, store, folder = study
    slide = slide_factory(width=700, height=600)
    code = (
        "import sys; sys.modules['ray'] = sys.modules['mlflow'] = None; import mstar; "
        f"bag = mstar.Bag.of(mstar.open_features({store.root!r}), {data.samples[0].slides[0]!r}); "
        f"print(mstar.load_head({str(folder)!r}).predict(bag).scores.sum()); "
        f"laid = mstar.lay_grid(mstar.open_slide({str(slide)!r})); "
        f"made = mstar.embed_slides({str(slide)!r}, {str(tmp_path)!r}, encoder='vit_micro', "
        f"weights='random:0'); print(len(laid.grid), len(made.read({slide.stem!r}).features))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    total, laid, embedded = said.stdout.split()
    assert float(total) == pytest.approx(1)
    assert int(laid) == int(embedded) > 0


def test_slides_that_fail_are_named(slide_factory: Callable[..., Path], tmp_path: Path) -> None:
    write_non_image(tmp_path / "broken.svs")
    with pytest.raises(FeatureError, match="1 of 1 slides failed: broken"):
        mstar.embed_slides(
            str(tmp_path), str(tmp_path / "F"), encoder="vit_micro", weights="random:0"
        )


def test_a_head_is_trained_on_named_slides_and_explained(
    study: tuple[Any, FeatureStore, Path], tmp_path: Path
) -> None:
    data, store, _ = study
    labels = {one.slides[0]: data.class_names[one.label] for one in data.samples}
    order = sorted(labels, key=lambda slide: (labels[slide], slide))
    parts = {slide: ("train", "val", "test")[at % 3] for at, slide in enumerate(order)}
    given: dict[str, Any] = {"out": str(tmp_path), "task": "mine", "epochs": 2}
    head = mstar.train_head(store, labels, parts, **given)
    assert head.classes == tuple(data.class_names)
    told = read_predictions(str(tmp_path / "mine/features/abmil/predictions-test.parquet"))
    assert {slides[0] for slides in told.slides} == {s for s in order if parts[s] == "test"}
    slide = order[0]
    found = mstar.patch_scores(head, store, slide)
    said = head.predict(mstar.Bag.of(store, slide))
    np.testing.assert_allclose(found.layers[0].values, said.attention, rtol=1e-5)
    assert mstar.draw_heatmap(found).size[0] > 100
    with pytest.raises(ConfigError, match="expected a part of train, val, test, got 'tset'"):
        mstar.train_head(store, labels, parts | {slide: "tset"}, **given)


def test_the_models_of_a_study_answer_together(study: tuple[Any, FeatureStore, Path]) -> None:
    data, store, folder = study
    bag = mstar.Bag.of(store, *data.samples[1].slides)
    alone = [
        mstar.load_head(str(path)).predict(bag)
        for path in sorted((folder / "models").glob("*.safetensors"))
    ]
    together = mstar.load_head(str(folder)).predict(bag)
    assert len(alone) == 2
    np.testing.assert_allclose(together.scores, np.mean([one.scores for one in alone], axis=0))
    assert together.attention is not None
    assert together.attention.shape == (len(bag),)
    np.testing.assert_allclose(together.attention.sum(), 1, rtol=1e-5)


def test_a_bag_is_its_slides_one_after_another(study: tuple[Any, FeatureStore, Path]) -> None:
    data, store, _ = study
    slides = data.samples[1].slides
    assert len(slides) == 2
    bag = mstar.Bag.of(mstar.open_features(store.root), *slides)
    for at, slide in enumerate(slides):
        read = store.read(slide)
        np.testing.assert_array_equal(bag.features[bag.slide_of == at], read.features)
        np.testing.assert_array_equal(bag.coords_l0[bag.slide_of == at], read.grid.coords)


def test_what_cannot_be_used_is_named(
    study: tuple[Any, FeatureStore, Path], tmp_path: Path
) -> None:
    data, store, folder = study
    with pytest.raises(FeatureError, match="expected the ids of one or more slides"):
        mstar.Bag.of(store)
    with pytest.raises(WeightsError, match="expected the folder of a finished study"):
        mstar.load_head(str(tmp_path))
    bag = mstar.Bag.of(store, *data.samples[0].slides)
    wide = mstar.Bag(
        features=np.repeat(bag.features, 2, axis=1),
        coords_l0=bag.coords_l0,
        slides=bag.slides,
        slide_of=bag.slide_of,
    )
    with pytest.raises(FeatureError, match="Use the features of the encoder"):
        mstar.load_head(str(folder)).predict(wide)
    with pytest.raises(ConfigError, match="expected labels, or times and events"):
        mstar.evaluate("macro_auc", np.ones((2, 2)), patients=["a", "b"])


def test_evaluate_gives_scikit_learns_value_and_resamples_patients() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    risk = labels + rng.normal(0, 1.5, 80)
    scores = np.stack([-risk, risk], axis=1)
    lone = mstar.evaluate("macro_auc", scores, patients=[str(n) for n in range(80)], labels=labels)
    assert lone.value == pytest.approx(roc_auc_score(labels, risk))
    assert lone.low < lone.value < lone.high
    patients = [str(n // 8) for n in range(80)]
    few = mstar.evaluate("macro_auc", scores, patients=patients, labels=labels)
    assert (few.patients, lone.patients) == (10, 80)
    assert (few.low, few.high) != (lone.low, lone.high)
