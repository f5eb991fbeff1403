"""From settings to studies: which are made, what is left out and why, what is refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mstar.downstream.config import PAPER_COMPAT
from mstar.downstream.studies import plan_sweep
from mstar.downstream.sweep_config import SweepConfig
from mstar.errors import ConfigError
from mstar.features.store import FeatureStore
from support.planted_sweep import EASY, HARD, RISK, Planted, plant, sweep_config


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three tasks with two encoders, and an external one."""
    outer = Planted(task_id="outer", trained_on="easy", cases=12)
    root = tmp_path_factory.mktemp("planted")
    return plant(root, (EASY, HARD, RISK, outer), encoders=("one", "two"))


def keys(config: SweepConfig) -> set[str]:
    """Of the studies that would be run."""
    return {plan.study.key for plan in plan_sweep(config).studies}


def test_a_study_for_each_task_encoder_and_head(planted: dict[str, Any]) -> None:
    """Of those that are asked for."""
    config = sweep_config(planted, tasks=("easy,risk",), heads=("linear,abmil",))
    assert keys(config) == {
        f"{task}/{encoder}/{head}"
        for task in ("easy", "risk")
        for encoder in ("one", "two")
        for head in ("linear", "abmil")
    }
    assert keys(
        sweep_config(planted, tasks=("survival",), heads=("abmil",), encoders=("two",))
    ) == {"risk/two/abmil"}


def test_heads_that_do_not_fit_a_task_are_left_out_with_the_reason(planted: dict[str, Any]) -> None:
    """Knn says no risk, Cox's model no class; that is nobody's mistake."""
    config = sweep_config(planted, tasks=("easy", "risk"), heads=("knn", "cox_linear"))
    plan = plan_sweep(config)
    assert {p.study.key for p in plan.studies} == {
        "easy/one/knn", "easy/two/knn", "risk/one/cox_linear", "risk/two/cox_linear",
    }  # fmt: skip
    assert {(o.task, o.head, o.refused) for o in plan.left_out} == {
        ("risk", "knn", False),
        ("easy", "cox_linear", False),
    }


def test_an_external_task_brings_the_task_whose_models_it_takes(planted: dict[str, Any]) -> None:
    """Which is trained first."""
    plan = plan_sweep(sweep_config(planted, tasks=("outer",), heads=("abmil",), encoders=("one",)))
    inner, outer = sorted(plan.studies, key=lambda p: p.study.task_id)
    assert (inner.study.task_id, inner.models_of) == ("easy", None)
    assert (outer.study.task_id, outer.models_of) == ("outer", inner.study)


def test_bad_tables_are_left_out_and_the_rest_stays(
    planted: dict[str, Any], tmp_path: Path
) -> None:
    """With file, row and way out; tasks without a table too, which is no mistake."""
    labels = tmp_path / "labels"
    labels.mkdir()
    for name in ("easy", "risk"):
        text = (Path(planted["labels"]) / f"{name}.csv").read_text()
        (labels / f"{name}.csv").write_text(text.replace(",yes,", ",maybe,"))
    plan = plan_sweep(
        sweep_config(planted, labels=str(labels), tasks=("easy", "risk", "hard"), heads=("abmil",))
    )
    assert {p.study.task_id for p in plan.studies} == {"risk"}
    reasons = {one.task: one for one in plan.left_out}
    assert reasons["easy"].refused
    assert "easy.csv" in reasons["easy"].reason
    assert "maybe" in reasons["easy"].reason
    assert not reasons["hard"].refused
    assert "no label table" in reasons["hard"].reason


def test_a_task_without_features_is_left_out_of_that_encoder_only(
    planted: dict[str, Any], tmp_path: Path
) -> None:
    """It still runs with the other."""
    other = plant(tmp_path, (EASY,), encoders=("small",))
    features = (*planted["features"][:1], *other["features"])
    config = sweep_config(planted, features=features, tasks=("easy", "hard"), heads=("abmil",))
    plan = plan_sweep(config)
    assert {p.study.key for p in plan.studies} == {
        "easy/one/abmil", "easy/small/abmil", "hard/one/abmil",
    }  # fmt: skip
    (left,) = plan.left_out
    assert (left.task, left.encoder, left.refused) == ("hard", "small", True)


def test_two_encoders_under_one_label_are_refused(planted: dict[str, Any], tmp_path: Path) -> None:
    """Their vectors have nothing to do with one another; nor may a slide be in both stores."""
    roots = [word.partition("=")[2] for word in planted["features"]]
    with pytest.raises(ConfigError, match="is in two of its stores"):
        plan_sweep(sweep_config(planted, features=(f"both={','.join(roots)}",)))
    FeatureStore.open_or_create(str(tmp_path), {"encoder": "another"})
    with pytest.raises(ConfigError, match="expected stores of one encoder"):
        plan_sweep(sweep_config(planted, features=(f"both={roots[0]},{tmp_path}",)))


def test_what_decides_a_fit_decides_its_name(planted: dict[str, Any]) -> None:
    """Another label, another encoder: another fit; another head list: the same."""
    base = {"tasks": ("easy",), "heads": ("abmil",)}
    one, two = plan_sweep(sweep_config(planted, **base)).studies
    assert one.settings != two.settings
    again, *_ = plan_sweep(
        sweep_config(planted, tasks=("easy", "risk"), heads=("abmil", "linear"))
    ).studies
    assert again.settings == one.settings
    compat, _ = plan_sweep(sweep_config(planted, **base, protocol="paper-compat")).studies
    assert compat.settings != one.settings


def test_one_round_where_the_protocol_fixes_the_epochs(planted: dict[str, Any]) -> None:
    """The authors' 50 for classification; halving would train the same twice."""
    config = sweep_config(
        planted, tasks=("easy", "risk"), heads=("abmil",), protocol="paper-compat"
    )
    found = {p.study.task_id: p.budgets for p in plan_sweep(config).studies}
    assert found == {"easy": (PAPER_COMPAT.classification_epochs,), "risk": (2, 5)}


def test_options_of_heads_reach_every_configuration(planted: dict[str, Any]) -> None:
    """And are not searched any more."""
    config = sweep_config(
        planted, tasks=("easy",), heads=("abmil",), space="tune", option=("abmil.dropout=0.1",)
    )
    plan = plan_sweep(config).studies[0]
    assert plan.space.base == {"head_options.dropout": 0.1}
    assert "head_options.dropout" not in plan.space.search


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": ("abml",)}, "Did you mean abmil"),
        ({"heads": ()}, "expected a head or more"),
        ({"heads": ("transmil_plus",)}, "no aggregator to start from"),
        ({"option": ("abmil.width=3",)}, "no option 'width'"),
        ({"option": ("dsmil.dropout=0.1",)}, "a head of this sweep"),
        ({"option": ("abmil.dropout=much",)}, "expected a value of type float"),
        ({"seeds": 0}, "--seeds 0"),
        ({"trials": -1}, "--trials -1"),
        ({"max_trials_per_gpu": 0}, "--max-trials-per-gpu 0"),
        ({"max_missing": 1.0}, "--max-missing"),
        ({"split": "kfold"}, "--cohort too"),
    ],
)
def test_nonsense_is_refused_before_a_file_is_read(
    planted: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    """With the way out."""
    with pytest.raises(ConfigError, match=message):
        sweep_config(planted, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoders": ("three",)}, "expected labels of --features: one, two"),
        ({"tasks": ("esay",)}, "Did you mean easy"),
        ({"space": "papr"}, "There is no papr.py"),
    ],
)
def test_unknown_names_are_refused(
    planted: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    """As soon as it is known what there is."""
    with pytest.raises(ConfigError, match=message):
        plan_sweep(sweep_config(planted, **changes))


def test_all_heads_but_the_one_that_needs_an_aggregator() -> None:
    """Unless it is given one."""
    settings: dict[str, Any] = {"labels": "L", "features": ("F",), "out": "R", "heads": ("all",)}
    assert "transmil_plus" not in SweepConfig(**settings).head_names
    config = SweepConfig(**settings, option=("transmil_plus.aggregator=A",))
    assert config.head_options["transmil_plus"] == {"aggregator": "A"}
