"""Fusion tasks through the one loop: genes beside bags, statistics of training alone, arms."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mstar.data.task_data import TaskData
from mstar.data.task_genes import NO_RNA
from mstar.downstream import sweep
from mstar.downstream.bags import PackedBags, load_bags
from mstar.downstream.config import HONEST, Study, TrialConfig
from mstar.downstream.evaluate import predict
from mstar.downstream.fold_views import view_fold
from mstar.downstream.model_files import load_fit, make_head
from mstar.downstream.population import train_population
from mstar.downstream.predictions import read_predictions
from mstar.downstream.stream import BagSource
from mstar.downstream.studies import plan_sweep
from mstar.downstream.study import run_study
from mstar.downstream.study_files import StudyResult, digests
from mstar.downstream.sweep_config import SweepConfig
from mstar.downstream.tasks_job import TasksCheckConfig, run_check
from mstar.downstream.train_config import TrainHeadConfig, TrialChanges
from mstar.downstream.train_job import run as train_head
from mstar.downstream.trainer import Fit
from mstar.errors import ConfigError, FeatureError
from mstar.features.store import FeatureStore
from mstar.models.heads import FUSION_HEADS, HeadOutput
from mstar.training.exit_codes import ExitCode
from support.planted_fusion import GROUPS, SIGNAL_GROUP, FusionPlan, plant_fusion

TASK, PLAN = "fusion_both", FusionPlan(cases=60, without_rna=4, shares=(0.5, 0.2))
SMALL: dict[str, dict[str, Any]] = {
    "mcat": {"dim": 16, "feed_forward": 32},
    "porpoise": {"hidden": 16, "dim": 16},
    "motcat": {"dim": 16, "feed_forward": 32, "chunk_patches": 12},
    "cmta": {"dim": 16, "gene_hidden": 16, "landmarks": 8},
    "snn": {"dim": 16},
    "abmil": {"hidden": 16, "attention_dim": 8},
}
SHORT = {"lr": 1e-3, "batch_bags": 8, "epochs": 1}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A cohort on disk, four of its cases without expression."""
    return plant_fusion(tmp_path_factory.mktemp("fusion"), PLAN)


@pytest.fixture(scope="module")
def task(planted: dict[str, Any]) -> tuple[TaskData, PackedBags]:
    """The task whose hazard follows both sides."""
    data = plan_sweep(SweepConfig(**planted)).tasks[f"{TASK}/enc"]
    store = FeatureStore.open(str(Path(planted["cohort"]) / "F"))
    return data, load_bags(data.samples, store, cache_root=planted["cache_dir"])


def small_trial(head: str, **changes: Any) -> TrialConfig:
    return TrialConfig(head=head, head_options=SMALL[head], **(SHORT | changes))


@pytest.fixture(scope="module")
def studies(
    task: tuple[TaskData, PackedBags], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, StudyResult]:
    """Every fusion head and both arms, trained for an epoch and tested."""
    out = str(tmp_path_factory.mktemp("studies"))
    return {
        head: run_study(
            Study(task_id=TASK, encoder="enc", head=head), *task, [small_trial(head)], out=out
        )
        for head in SMALL
    }


def test_cases_without_expression_are_left_out_of_every_arm(
    task: tuple[TaskData, PackedBags], studies: dict[str, StudyResult]
) -> None:
    data, _ = task
    assert data.dropped == {NO_RNA: 4}
    assert len(data.samples) == PLAN.cases - 4
    cases = {
        head: read_predictions(result.predictions["test"]).case_id
        for head, result in studies.items()
    }
    assert len(set(cases.values())) == 1
    assert len(cases["mcat"]) == len(data.folds[0].test)


def test_scores_are_risks_and_records_name_the_genes(studies: dict[str, StudyResult]) -> None:
    for head, result in studies.items():
        found = read_predictions(result.predictions["test"])
        assert found.facts.kind == "survival"
        assert found.scores.shape[1] == 1
        assert np.isfinite(found.scores).all()
        assert found.facts.digests["genes"]
        assert found.facts.extra["genes"]["groups"]["group 2"] == [10, 10]
        assert head in SMALL


@pytest.mark.parametrize("head", [*FUSION_HEADS, "snn"])
def test_a_saved_model_says_the_same_again(
    head: str, task: tuple[TaskData, PackedBags], studies: dict[str, StudyResult]
) -> None:
    data, bags = task
    saved = load_fit(studies[head].models[0]).fit
    assert saved.genes is not None
    assert saved.genes.groups == (10,) * GROUPS
    source = BagSource(bags, "cpu", data.genes)
    again = predict(saved, source, data.folds[0].test)
    told = read_predictions(studies[head].predictions["test"]).scores
    np.testing.assert_allclose(again, told, rtol=1e-5, atol=1e-6)


def test_a_model_is_not_given_other_genes(
    task: tuple[TaskData, PackedBags], studies: dict[str, StudyResult]
) -> None:
    data, bags = task
    assert data.genes is not None
    saved = load_fit(studies["mcat"].models[0]).fit
    other = dataclasses.replace(data.genes, layout="another table")
    for genes in (other, None):
        with pytest.raises(FeatureError, match="expected the genes and groups that it was trained"):
            predict(saved, BagSource(bags, "cpu", genes), data.folds[0].test)
    assert make_head(saved) is not None


def test_genes_are_scaled_by_the_training_part_alone(
    task: tuple[TaskData, PackedBags], studies: dict[str, StudyResult]
) -> None:
    data, _ = task
    assert data.genes is not None
    values = data.genes.values()
    state = load_fit(studies["porpoise"].models[0]).fit.best_state
    train = values[data.folds[0].train]
    np.testing.assert_allclose(state["scale.mean"].numpy(), train.mean(0), rtol=1e-4)
    np.testing.assert_allclose(state["scale.spread"].numpy(), train.std(0), rtol=1e-4)
    assert not np.allclose(values.mean(0), train.mean(0), rtol=1e-3)


def test_time_bins_are_those_of_the_training_part(task: tuple[TaskData, PackedBags]) -> None:
    """As for the unimodal tasks: the authors cut them at the times of the whole file."""
    data, _ = task
    view = view_fold(data, 0, HONEST)
    assert view.training == "survival"
    assert view.bin_times.tolist() == view.train.times.tolist()


def test_expression_is_part_of_what_a_study_is(task: tuple[TaskData, PackedBags]) -> None:
    data, bags = task
    assert data.genes is not None
    other = dataclasses.replace(data, genes=dataclasses.replace(data.genes, digest="other"))
    assert digests(other, bags) != digests(data, bags)
    assert digests(dataclasses.replace(data, genes=None), bags).keys() == {
        "labels", "splits", "features",
    }  # fmt: skip


def test_alone_and_in_a_population_heads_train_alike(task: tuple[TaskData, PackedBags]) -> None:
    configs = [small_trial(head, epochs=1) for head in ("mcat", "snn", "abmil")]
    together = train_population(*task, configs)
    for config, fit in zip(configs, together, strict=True):
        (alone,) = train_population(*task, [config])
        assert alone.history == fit.history


def test_a_bag_in_chunks_has_the_mean_of_their_losses(task: tuple[TaskData, PackedBags]) -> None:
    data, bags = task
    source = BagSource(bags, "cpu", data.genes)
    fit = Fit(view_fold(data, 0, HONEST), source, small_trial("motcat"), 1)
    rows = torch.tensor([3, 5])
    chunks = (torch.randn(3, 4), torch.randn(1, 4))
    output = HeadOutput(logits=torch.zeros(2, 4), chunks=chunks)
    expected = [
        float(np.mean([float(fit.loss_of(one[None], rows[[at]])) for one in own]))
        for at, own in enumerate(chunks)
    ]
    assert float(fit.bag_loss(output, rows)) == pytest.approx(np.mean(expected), rel=1e-5)
    plain = fit.bag_loss(HeadOutput(logits=output.logits), rows)
    assert torch.equal(plain, fit.loss_of(output.logits, rows))


def test_a_sweep_plans_arms_and_leaves_out_what_cannot_be(planted: dict[str, Any]) -> None:
    fusion = plan_sweep(SweepConfig(**planted | {"heads": ("fusion",)}))
    assert {plan.study.head for plan in fusion.studies} == {*FUSION_HEADS, "abmil", "snn"}
    assert len(fusion.studies) == 3 * 6
    assert fusion.left_out == ()


def test_heads_of_genes_are_left_out_of_unimodal_tasks(
    planted: dict[str, Any], tmp_path: Path
) -> None:
    own = tmp_path / "own.csv"
    own.write_text("task_id,kind,metric\nplain_os,survival,c_index\n")
    labels = Path(planted["labels"])
    (labels / "plain_os.csv").write_bytes((labels / "fusion_slides.csv").read_bytes())
    config = SweepConfig(
        **planted | {"own": (str(own),), "tasks": ("plain_os",), "heads": ("abmil", "mcat")}
    )
    plan = plan_sweep(config)
    assert [study.study.head for study in plan.studies] == ["abmil"]
    (left,) = plan.left_out
    assert left.reason == "head mcat reads gene expression, which survival tasks do not have"
    (data,) = plan.tasks.values()
    assert data.genes is None
    assert len(data.samples) == PLAN.cases


def test_without_a_signature_table_the_heads_without_groups_go_on(
    planted: dict[str, Any], tmp_path: Path
) -> None:
    changes = {
        "cohort": "",
        "own": (str(Path(planted["cohort"]) / "tasks.csv"),),
        "genes": str(Path(planted["cohort"]) / "expression"),
        "heads": ("mcat", "porpoise", "snn"),
        "tasks": (TASK,),
    }
    plan = plan_sweep(SweepConfig(**planted | changes))
    assert [study.study.head for study in plan.studies] == ["porpoise", "snn"]
    assert [left.reason for left in plan.left_out] == [
        "head mcat reads genes in groups: give --signatures"
    ]


def test_tasks_check_says_what_is_there_and_what_is_needed(
    planted: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {key: planted[key] for key in ("labels", "features", "tasks")}
    own = (str(Path(planted["cohort"]) / "tasks.csv"),)
    with_genes = TasksCheckConfig(**given | {"cohort": planted["cohort"]})
    assert run_check(with_genes) == ExitCode.COMPLETE
    told = capsys.readouterr().out
    assert "72 genes in 6 groups (10/10, 10/10" in told
    assert f"left out: 4 {NO_RNA}" in told
    run_check(TasksCheckConfig(**given | {"own": own}))
    told = capsys.readouterr().out
    assert "3 no genes" in told
    assert "give --cohort C (its expression/ and signatures.csv), or --genes" in told
    bad = tmp_path / "bad.csv"
    bad.write_text("one,two\nG0N00,NOSUCH\n")
    signed = TasksCheckConfig(**given | {"cohort": planted["cohort"], "signatures": str(bad)})
    assert run_check(signed) == ExitCode.EXCLUSIONS
    assert "group two: none of its genes is among the 72 measured" in capsys.readouterr().out


def test_one_study_from_the_command_line(
    planted: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainHeadConfig(
        task=TASK,
        labels=planted["labels"],
        features=planted["features"][0],
        cohort=planted["cohort"],
        out=str(tmp_path),
        head="porpoise",
        option=("hidden=16", "dim=16"),
        trial=TrialChanges(epochs=1, batch_bags=16),
        cache_dir=planted["cache_dir"],
        resamples=50,
        device="cpu",
    )
    assert train_head(config) == ExitCode.COMPLETE
    told = capsys.readouterr().out
    assert "72 genes in 6 groups" in told
    assert f"left out: 4 ({NO_RNA})" in told
    own = (str(Path(planted["cohort"]) / "tasks.csv"),)
    with pytest.raises(ConfigError, match="it needs gene expression: give --cohort C"):
        train_head(dataclasses.replace(config, cohort="", own=own))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_fusion_in_a_sweep_through_ray(planted: dict[str, Any], tmp_path: Path) -> None:
    """All four heads and both arms: predictions of each, models that name their genes."""
    space = tmp_path / "short.py"
    space.write_text(
        "from mstar.downstream.spaces import Space\n"
        "SPACE = Space(base={'batch_bags': 8}, epochs=(1,))\n"
    )
    out = tmp_path / "R"
    changes = {"heads": ("fusion",), "space": str(space), "out": str(out), "tasks": (TASK,)}
    assert sweep.run(SweepConfig(**planted | changes)) == ExitCode.COMPLETE
    found = {path.parent.name for path in out.glob(f"{TASK}/enc/*/predictions-test.parquet")}
    assert found == {*FUSION_HEADS, "abmil", "snn"}
    assert sweep.run(SweepConfig(**planted | changes)) == ExitCode.COMPLETE  # nothing is left


def test_the_signal_group_is_where_the_genes_follow(task: tuple[TaskData, PackedBags]) -> None:
    """The cohort of these tests is what it says: one group of genes moves together."""
    data, _ = task
    assert data.genes is not None
    values = data.genes.values()
    spread = [float(np.abs(np.corrcoef(values[:, own].T)).mean()) for own in data.genes.columns]
    assert int(np.argmax(spread)) == SIGNAL_GROUP
