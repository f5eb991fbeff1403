"""The ablation: arms, shards of other arms, the order of its work; then a small run of it."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mstar.cli.ablate import run
from mstar.cli.ablate_schedule import SCORE, TEACH, Unit, units_of
from mstar.cli.ablate_seed import evaluate
from mstar.cli.ablate_settings import SeedRun
from mstar.cli.resolve import JobParts, resolve
from mstar.data.cases import Case, read_cases
from mstar.data.shards.format import decode_targets, read_index
from mstar.data.splits.registry import read_registry
from mstar.errors import ConfigError
from mstar.models.aggregator import AggregatorConfig
from mstar.models.stage1_files import load_aggregator
from mstar.pretrain.ablate_arms import ARMS, save_untrained, shuffled_pairing, teachers_of
from mstar.pretrain.ablate_config import AblateConfig
from mstar.pretrain.ablate_shards import batches, retarget, with_shuffled_targets
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


@pytest.mark.parametrize("arms", ["abcdefgh", "de", "e", "gh", "bf"])
def test_a_unit_comes_after_all_that_it_needs(arms: str) -> None:
    units = units_of(SeedRun(config=AblateConfig(arms=arms), seed=1, weights=""))
    done: set[tuple[int, str, str]] = set()
    for unit in units:
        assert unit.is_ready(done)
        done.add(unit.key())
    assert {unit.letter for unit in units if unit.what == SCORE} == {*arms, "e"}
    assert {unit.letter for unit in units if unit.what == TEACH} == set(teachers_of(arms))


def test_an_arm_waits_for_its_own_seeds_teacher_and_for_the_pixels() -> None:
    runs = [SeedRun(config=AblateConfig(arms="ach"), seed=seed, weights="") for seed in (1, 2)]
    arm = next(unit for unit in units_of(runs[0]) if (unit.what, unit.letter) == (SCORE, "h"))
    others = {unit.key() for unit in units_of(runs[1])}
    ours = {unit.key() for unit in units_of(runs[0])} - {arm.key()}
    assert not arm.is_ready(others)
    assert arm.is_ready(ours)
    for teacher in "ah":  # the first teacher's shards hold the pixels of all
        assert not arm.is_ready(ours - {Unit(run=runs[0], what=TEACH, letter=teacher).key()})


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


def test_too_few_held_out_cases_are_an_error_that_says_so(small: AblateConfig) -> None:
    strict = replace(small, folds=9)
    features = {f"{case.slides[0]}": np.zeros((5, 4), np.float32) for case in cases_in(small)}
    with pytest.raises(ConfigError, match=r"--cases 40: expected at least 9 held-out .*--folds"):
        evaluate(SeedRun(config=strict, seed=3, weights=""), cohort_of(small), features)


def cohort_of(small: AblateConfig) -> str:
    return str(Path(small.out) / "seed-3" / "cohort")


def cases_in(small: AblateConfig) -> list[Case]:
    return read_cases(f"{cohort_of(small)}/cases.csv")
