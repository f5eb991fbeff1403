"""The parts of the ablation: arms, shards of other arms, probes, table; then a small run of it."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mstar.cli.ablate import run
from mstar.cli.resolve import JobParts, resolve
from mstar.data.cases import Case
from mstar.data.shards.format import decode_targets, read_index
from mstar.data.splits.registry import read_registry
from mstar.errors import ConfigError
from mstar.models.aggregator import AggregatorConfig
from mstar.models.patch_encoders import find_encoder, load_model, prepare_weights
from mstar.models.stage1_files import load_aggregator
from mstar.pretrain import ablate_probe
from mstar.pretrain.ablate_arms import ARMS, save_untrained, shuffled_pairing, teachers_of
from mstar.pretrain.ablate_config import AblateConfig
from mstar.pretrain.ablate_probe import abmil, auc, cross_validated, folds_of, linear
from mstar.pretrain.ablate_report import (
    Score,
    draw,
    initial_auc_fits,
    interval,
    is_judged,
    paired,
    summary,
    table,
    verdict,
)
from mstar.pretrain.ablate_shards import batches, retarget, with_shuffled_targets
from mstar.pretrain.competent_encoder import (
    NuisanceTraining,
    components_of,
    texture_of,
    train_encoder,
    turned,
)
from mstar.recipes import ablate as recipes
from mstar.training.exit_codes import ExitCode
from support.shard_sets import write_shard_set


def cases_of(count: int) -> list[Case]:
    """Cases of two types, some without a report or RNA."""
    return [
        Case(
            case_id=f"c{n}",
            cancer_type=("BRCA", "LUAD")[n % 2],
            slides=(f"s{n}",),
            report=f"c{n}" if n % 5 else None,
            rna=f"c{n}" if n % 7 else None,
        )
        for n in range(count)
    ]


def test_shuffled_pairing_gives_every_case_another_patients_report_and_rna() -> None:
    cases = cases_of(40)
    shuffled = shuffled_pairing(cases, seed=3)
    types = {case.case_id: case.cancer_type for case in cases}
    for before, after in zip(cases, shuffled, strict=True):
        assert (after.case_id, after.slides) == (before.case_id, before.slides)
        for key in (after.report, after.rna):
            assert key is None or (key != after.case_id and types[key] == after.cancer_type)
        if after.report and after.rna:
            assert after.report == after.rna, "a donor gives both"
    for name in ("report", "rna"):
        given_away = Counter(getattr(case, name) for case in shuffled)
        assert given_away == Counter(getattr(case, name) for case in cases)


def test_shuffled_pairing_follows_its_seed() -> None:
    cases = cases_of(40)
    assert shuffled_pairing(cases, seed=3) == shuffled_pairing(cases, seed=3)
    assert shuffled_pairing(cases, seed=3) != shuffled_pairing(cases, seed=4)


def test_each_teacher_is_made_once() -> None:
    assert teachers_of("abcdefgh") == "abcgh"
    assert teachers_of("de") == "a"
    assert teachers_of("e") == ""


def facts_of(letter: str) -> dict[str, object]:
    """What an arm is, its teacher's stage 1 included."""
    arm = ARMS[letter]
    teacher = ARMS[arm.teacher] if arm.teacher else arm
    return {
        "modalities": teacher.modalities,
        "pairing": teacher.shuffled_pairing,
        "targets": arm.shuffled_targets,
        "trained": arm.trained,
        "loss a": arm.loss_a,
    }


def test_the_method_differs_from_each_control_in_one_thing() -> None:
    method = facts_of("a")
    changed = {
        letter: {name for name, value in facts_of(letter).items() if value != method[name]}
        for letter in ARMS
    }
    assert changed == {
        "a": set(),
        "b": {"pairing"},
        "c": {"modalities"},
        "d": {"loss a"},
        "e": {"modalities", "trained"},
        "f": {"targets"},
        "g": {"modalities"},
        "h": {"modalities"},
    }


def test_the_untrained_aggregator_loads_and_follows_its_seed(tmp_path: Path) -> None:
    config = AggregatorConfig(input_dim=8, dim=16, heads=2, landmarks=4, mode="masked")
    for folder, seed in (("x", 1), ("y", 1), ("z", 2)):
        save_untrained(
            str(tmp_path / folder), config, seed=seed, bag_patches=8, features="f", splits="s"
        )
    x, y, z = (load_aggregator(str(tmp_path / name)).state_dict() for name in "xyz")
    assert all((x[name] == y[name]).all() for name in x)
    assert any((x[name] != z[name]).any() for name in x)


def rows_of(folder: Path) -> list[tuple[str, str, int, int, bytes]]:
    names = ("slide_id", "case_id", "x_l0", "y_l0", "jpeg")
    return [
        row
        for rows in batches(str(folder))
        for row in zip(*(rows.column(name).to_pylist() for name in names), strict=True)
    ]


def targets_of(folder: Path) -> np.ndarray:
    dim = read_index(str(folder)).target_dim
    return np.concatenate([decode_targets(b.column("target"), dim) for b in batches(str(folder))])


def test_shuffled_targets_keep_pixels_order_and_the_multiset_of_targets(tmp_path: Path) -> None:
    source, out = tmp_path / "a", tmp_path / "f"
    write_shard_set(source, num_rows=120, rows_per_group=16, rows_per_shard=48, num_slides=3)
    with_shuffled_targets(str(source), str(out), seed=1)
    assert rows_of(out) == rows_of(source)
    before, after = targets_of(source), targets_of(out)
    assert (before != after).any(axis=1).mean() > 0.9
    assert sorted(map(bytes, before)) == sorted(map(bytes, after))
    assert read_index(str(out)).fingerprint != read_index(str(source)).fingerprint
    assert read_index(str(out)).target_mean == pytest.approx(read_index(str(source)).target_mean)


def test_a_retargeted_copy_says_what_its_targets_are(tmp_path: Path) -> None:
    source, out = tmp_path / "a", tmp_path / "b"
    write_shard_set(source, num_rows=60, rows_per_group=16, rows_per_shard=48, num_slides=2)
    dim = read_index(str(source)).target_dim
    retarget(str(source), str(out), lambda rows: np.ones((len(rows), dim), np.float16), why="ones")
    index = read_index(str(out))
    assert (targets_of(out) == 1).all()
    assert index.target_mean == (1.0,) * dim
    assert index.target_std == (0.0,) * dim
    assert index.config["retargeted"] == "ones"


@given(
    scores=arrays(np.float64, st.integers(4, 30), elements=st.integers(-3, 3).map(float)),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_auc_is_scikit_learns(scores: np.ndarray, data: st.DataObject) -> None:
    labels = np.array(data.draw(st.lists(st.booleans(), min_size=len(scores),
                                         max_size=len(scores))))  # fmt: skip
    labels[0], labels[1] = True, False
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


def test_folds_hold_both_classes_evenly() -> None:
    labels = np.arange(53) % 3 == 0
    folds = folds_of(labels, 5, seed=1)
    for value in (False, True):
        counts = np.bincount(folds[labels == value], minlength=5)
        assert counts.max() - counts.min() <= 1


def planted_bags(shift: float, count: int = 60) -> tuple[list[np.ndarray], np.ndarray]:
    """Bags in which a positive's patches, a third of them, are shifted in one direction."""
    rng = np.random.default_rng(5)
    labels = np.arange(count) % 2 == 0
    bags = []
    for label in labels:
        bag = rng.standard_normal((int(rng.integers(6, 16)), 6)).astype(np.float32)
        bag[: len(bag) // 3, 2] += shift * label
        bags.append(bag)
    return bags, labels


def test_the_linear_probe_is_logistic_regression_on_means() -> None:
    bags, labels = planted_bags(1.0)
    train, test = np.stack([bag.mean(0) for bag in bags[:40]]), [bag.mean(0) for bag in bags[40:]]
    centre, scale = train.mean(0), train.std(0)
    reference = LogisticRegression(C=1 / (2 * ablate_probe.RIDGE * 40), tol=1e-8, max_iter=1000)
    reference.fit((train - centre) / scale, labels[:40])
    expected = reference.decision_function((np.stack(test) - centre) / scale)
    found = linear(bags[:40], labels[:40], bags[40:], 0)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_abmil_finds_what_a_third_of_the_patches_shows() -> None:
    bags, labels = planted_bags(4.0)
    folds = folds_of(labels, 3, seed=0)
    assert cross_validated(abmil, bags, labels, folds) > 0.9


def test_abmil_does_not_see_padding() -> None:
    bags, labels = planted_bags(4.0)
    alone = abmil(bags[:40], labels[:40], bags[40:50], 1)
    beside = abmil(bags[:40], labels[:40], [*bags[40:50], np.zeros((50, 6), np.float32)], 1)
    np.testing.assert_allclose(alone, beside[:10], atol=1e-5)


def test_probes_find_nothing_in_noise() -> None:
    bags, labels = planted_bags(0.0, count=120)
    folds = folds_of(labels, 5, seed=0)
    for fit in (linear, abmil):
        assert abs(cross_validated(fit, bags, labels, folds) - 0.5) < 0.2


def scores_with(gain: float, seeds: int) -> list[Score]:
    """The method is `gain` above every control, give or take."""
    rng = np.random.default_rng(2)
    return [
        Score(
            seed=seed,
            arm=arm,
            probe=probe,
            auc=0.7 + gain * (arm == "a") + float(rng.normal(0, 0.01)),
        )
        for seed in range(seeds)
        for arm in ARMS
        for probe in ("linear", "abmil")
    ]


def test_the_interval_is_students() -> None:
    values = np.random.default_rng(0).normal(0.1, 0.05, 7)
    found = interval(values)
    low, high = stats.t.interval(0.95, 6, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert math.isinf(interval(values[:1]).low)


def test_the_verdict_needs_a_gain_and_five_cohorts() -> None:
    assert all(verdict(scores_with(0.1, 5)).values())
    assert not any(verdict(scores_with(0.1, 4)).values())
    assert not any(verdict(scores_with(-0.05, 5)).values())
    assert len(verdict(scores_with(0.1, 5))) == 6


@pytest.mark.parametrize(
    ("gain", "seeds", "said"),
    [(0.1, 5, "beats"), (-0.05, 5, "does NOT beat"), (0.1, 4, "not judged")],
)
def test_the_summary_says_what_holds(gain: float, seeds: int, said: str) -> None:
    scores = scores_with(gain, seeds)
    assert is_judged(scores) == (seeds >= 5)
    assert any(said in line for line in summary(scores, bounds=(0.6, 0.8)))


def test_differences_are_paired_by_cohort() -> None:
    scores = [
        Score(seed=seed, arm=arm, probe="linear", auc=value)
        for seed, arm, value in ((1, "a", 0.8), (2, "a", 0.9), (3, "a", 0.7), (2, "c", 0.6))
    ]
    assert paired(scores, "c", "linear").tolist() == pytest.approx([0.3])


def test_table_summary_and_figure_name_every_arm(tmp_path: Path) -> None:
    scores = scores_with(0.1, 5)
    text = table(scores)
    assert len(text.splitlines()) == 2 + len(ARMS)
    assert all(f"({letter})" in text for letter in ARMS)
    lines = summary(scores, bounds=(0.6, 0.8))
    assert sum("(a) beats" in line for line in lines) == 6
    assert "within" in lines[0]
    assert not initial_auc_fits(scores, (0.75, 0.8))
    draw(scores, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_one_cohort_alone_can_be_shown(tmp_path: Path) -> None:
    scores = [score for score in scores_with(0.1, 1) if score.arm in "ace"]
    assert "inf" in table(scores)
    draw(scores, tmp_path / "figure.png")


def test_the_initial_encoder_learns_nuisances_and_loads_strictly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = {"site": rng.integers(0, 2, 80), "grade": rng.integers(0, 3, 80)}
    patches = rng.integers(90, 140, (80, 64, 64, 3)).astype(np.uint8)
    patches[labels["site"] == 1, :, :, 0] += 60
    path = tmp_path / "encoder.safetensors"
    config = NuisanceTraining(steps=30, batch=16, lr=1e-3, class_weight=1.0)
    found = train_encoder(path, patches, labels, config, say=lambda text: None)
    assert found["site"] > 0.8
    load_model(find_encoder("vit_micro"), prepare_weights("vit_micro", str(path)))


def test_the_initial_encoder_is_never_told_what_is_planted(tmp_path: Path) -> None:
    labels = {"mutation": np.zeros(4, np.int64)}
    with pytest.raises(AssertionError, match="planted"):
        train_encoder(
            tmp_path / "x.safetensors",
            np.zeros((4, 64, 64, 3), np.uint8),
            labels,
            NuisanceTraining(steps=1),
        )


def test_components_are_uncorrelated_and_of_unit_variance() -> None:
    mixed = np.random.default_rng(0).normal(size=(3000, 8)) @ np.diag([9, 5, 3, 2, 1, 1, 0.5, 0.1])
    found = components_of((mixed @ np.ones((8, 8)) + mixed).astype(np.float32), 4)
    assert found.shape == (3000, 4)
    np.testing.assert_allclose(np.cov(found.T), np.eye(4), atol=0.06)


def test_measures_that_do_not_vary_give_no_component() -> None:
    one = np.random.default_rng(1).normal(size=(50, 1))
    measures = np.concatenate([one, 2 * one, np.ones((50, 3))], 1).astype(np.float32)
    assert components_of(measures, 4).shape == (50, 1)


def test_texture_is_the_same_however_a_patch_is_turned() -> None:
    patches = np.random.default_rng(2).integers(0, 255, (3, 64, 64, 3)).astype(np.uint8)
    turns = np.ascontiguousarray(np.rot90(patches, axes=(1, 2)))
    np.testing.assert_allclose(texture_of(turns), texture_of(patches), rtol=1e-3, atol=1e-3)


def test_turning_keeps_the_pixels() -> None:
    rng = np.random.default_rng(1)
    patches = rng.integers(0, 255, (12, 8, 8, 3)).astype(np.uint8)
    after = turned(rng, patches)
    assert (after != patches).any()
    for one, other in zip(patches, after, strict=True):
        assert sorted(map(bytes, one.reshape(-1, 3))) == sorted(map(bytes, other.reshape(-1, 3)))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"arms": "axz"}, "letters of abcdefgh"),
        ({"seeds": (1, 1)}, "different numbers"),
        ({"seeds": (1000,)}, "other patients"),
        ({"cases": 8}, "at least 40"),
        ({"pretrained": 1.0}, "less than 1"),
    ],
)
def test_settings_without_meaning_are_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(AblateConfig(), **setting)


def test_the_initial_encoder_always_runs() -> None:
    assert AblateConfig(arms="ca").chosen == "ace"


def test_recipes_resolve() -> None:
    parts = JobParts(recipes=recipes.RECIPES, default=recipes.DEFAULT)
    assert resolve("ablate", ["quick", "--cases", "64"], parts, summary="").cases == 64
    assert len(resolve("ablate", [], parts, summary="").seeds) >= 5


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> AblateConfig:
    """Every arm on one cohort, in so few steps that nothing is learnt: this is about plumbing."""
    config = AblateConfig(
        out=str(tmp_path_factory.mktemp("ablation")),
        seeds=(3,),
        cases=40,
        slide_px=256,
        encoder_cases=16,
        encoder_steps=4,
        stage1_epochs=2,
        stage1_batch_cases=16,
        bag_patches=16,
        dim=32,
        stage2_steps=4,
        folds=2,
        workers=1,
        keep=True,
    )
    assert run(config) == ExitCode.COMPLETE, "one cohort is not judged"
    return config


def test_all_arms_train_as_many_steps_on_the_same_pixels(small: AblateConfig) -> None:
    folder = Path(small.out) / "seed-3"
    facts = {
        letter: json.loads((folder / f"arm-{letter}" / "stage2.json").read_text())
        for letter in "abcdfgh"
    }
    assert {found["steps_done"] for found in facts.values()} == {4}
    assert len({found["facts"]["initial_sha256"] for found in facts.values()}) == 1
    pixels = rows_of(folder / "targets-a")
    for letter in "bcfgh":
        assert rows_of(folder / f"arm-{letter}" / "shards") == pixels


def test_arms_differ_in_their_targets(small: AblateConfig) -> None:
    folder = Path(small.out) / "seed-3"
    found = [targets_of(folder / f"arm-{letter}" / "shards") for letter in "bcfgh"]
    found.append(targets_of(folder / "targets-a"))
    for number, one in enumerate(found):
        assert all((one != other).any() for other in found[:number])


def test_nobody_who_is_evaluated_was_trained_on(small: AblateConfig) -> None:
    folder = Path(small.out) / "seed-3"
    seen = read_registry(str(folder / "cohort")).pretraining
    assert len(seen) == 30
    assert {row[1] for row in rows_of(folder / "targets-a")} <= seen


def test_a_rerun_takes_up_what_is_there(small: AblateConfig) -> None:
    results = Path(small.out) / "results.csv"
    before = results.read_bytes()
    touched = (Path(small.out) / "seed-3" / "arm-a" / "encoder.safetensors").stat().st_mtime_ns
    run(small)
    assert results.read_bytes() == before
    after = (Path(small.out) / "seed-3" / "arm-a" / "encoder.safetensors").stat().st_mtime_ns
    assert after == touched
    assert all(f"({letter})" in (Path(small.out) / "ablation.md").read_text() for letter in ARMS)


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(AblateConfig(), out=str(tmp_path / "x"), dry_run=True)
    assert run(config) == ExitCode.COMPLETE
    assert "untrained aggregator" in capsys.readouterr().out
    assert not (tmp_path / "x").exists()
