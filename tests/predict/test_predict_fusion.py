"""Fusion models on new cases: slides and genes together, genes found by their names."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mstar
from mstar.data.rna.store import ExpressionStore
from mstar.downstream.bags import load_bags
from mstar.downstream.config import Study, TrialConfig
from mstar.downstream.gene_record import FILE
from mstar.downstream.predictions import Predictions, read_predictions
from mstar.downstream.studies import plan_sweep
from mstar.downstream.study import run_study
from mstar.downstream.sweep_config import SweepConfig
from mstar.embed.config import RunConfig
from mstar.errors import CohortError, ConfigError, FeatureError, WeightsError
from mstar.features.store import FeatureStore
from mstar.predict.config import PredictConfig
from mstar.predict.job import run
from mstar.training.exit_codes import ExitCode
from support.planted_fusion import FusionPlan, plant_fusion

SMALL: dict[str, dict[str, Any]] = {
    "mcat": {"dim": 16, "feed_forward": 32},
    "porpoise": {"hidden": 16, "dim": 16},
    "motcat": {"dim": 16, "feed_forward": 32, "chunk_patches": 12},
    "cmta": {"dim": 16, "gene_hidden": 16, "landmarks": 8},
    "snn": {"dim": 16},
}
TASK = "fusion_both"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort, and a finished study of every head that reads genes."""
    root = tmp_path_factory.mktemp("fusion")
    planted = plant_fusion(root, FusionPlan(cases=30, patches=(6, 60)))
    data = plan_sweep(SweepConfig(**planted)).tasks[f"{TASK}/enc"]
    bags = load_bags(data.samples, FeatureStore.open(f"{root}/F"), cache_root=f"{root}/cache")
    for head, options in SMALL.items():
        trial = TrialConfig(head=head, head_options=options, lr=1e-3, batch_bags=8, epochs=1)
        run_study(
            Study(task_id=TASK, encoder="enc", head=head), data, bags, [trial], out=f"{root}/R"
        )
    (root / "cases.csv").write_text(
        "case_id,cancer_type,slides,report,rna,split\n"
        + "".join(f"{one.case_id},X,{';'.join(one.slides)},,,\n" for one in data.samples)
    )
    return root


def settings(root: Path, out: Path, head: str = "mcat", **fields: Any) -> PredictConfig:
    given: dict[str, Any] = {
        "model": f"{root}/R/{TASK}/enc/{head}", "features": (f"{root}/F",), "out": str(out),
        "cases": f"{root}/cases.csv", "rna": f"{root}/expression",
        "run": RunConfig(tracking=False),
    }  # fmt: skip
    return PredictConfig(**given | fields)


def rows_of(out: Path, name: str = "predictions.csv") -> list[dict[str, str]]:
    with (out / name).open(newline="") as file:
        return list(csv.DictReader(file))


def told(root: Path, head: str = "mcat") -> Predictions:
    return read_predictions(f"{root}/R/{TASK}/enc/{head}/predictions-test.parquet")


@pytest.mark.parametrize("head", SMALL)
def test_the_risk_of_a_case_is_the_studys_to_the_bit(head: str, root: Path, tmp_path: Path) -> None:
    assert run(settings(root, tmp_path, head)) == ExitCode.COMPLETE
    rows = {row["case_id"]: row for row in rows_of(tmp_path)}
    assert len(rows) == 30
    found = told(root, head)
    for case, score in zip(found.case_id, found.scores, strict=True):
        assert float(rows[case]["risk"]) == float(score[0])
        assert rows[case]["genes_missing"] == "0"
        assert rows[case]["head"] == head


def test_genes_are_found_by_name_whatever_their_order(root: Path, tmp_path: Path) -> None:
    """Files with more genes, shuffled; one lacks a gene, one is not there."""
    store, folder = ExpressionStore.open(f"{root}/expression"), tmp_path / "rna"
    folder.mkdir()
    rng, found = np.random.default_rng(0), told(root)
    cases = found.case_id[:3]
    for case in cases[:2]:
        values = dict(zip(store.genes, store.row(case).tolist(), strict=True)) | {"OTHER": 3.0}
        names = [str(name) for name in rng.permutation(list(values))]
        lines = [f"{name},{values[name]!r}" for name in names]
        if case == cases[1]:
            lines = [line for line in lines if not line.startswith("G0N00,")]
        (folder / f"{case}.csv").write_text("Gene,Value\n" + "\n".join(lines) + "\n")
    table = tmp_path / "cases.csv"
    lines = (root / "cases.csv").read_text().splitlines()
    table.write_text("\n".join([lines[0], *(x for x in lines if x.split(",")[0] in cases)]) + "\n")
    config = settings(root, tmp_path / "P", rna=str(folder), cases=str(table))
    assert run(config) == ExitCode.EXCLUSIONS
    rows = {row["case_id"]: row for row in rows_of(tmp_path / "P")}
    assert {name: row["genes_missing"] for name, row in rows.items()} == {
        cases[0]: "0",
        cases[1]: "1",
    }
    assert float(rows[cases[0]]["risk"]) == pytest.approx(float(found.scores[0][0]), rel=1e-5)
    (failure,) = rows_of(tmp_path / "P", "failures.csv")
    assert failure["name"] == cases[2]
    assert "without genes there is no prediction" in failure["reason"]


def test_what_is_not_given_or_does_not_fit_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reads slides and gene expression .* Give --rna"):
        run(settings(root, tmp_path, rna=""))
    with pytest.raises(ConfigError, match=r"--prompts: .* is trained heads, which read none"):
        run(settings(root, tmp_path, prompts="x.json"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "c0000.csv").write_text("Gene,Value\nENSG0001,1\n")
    with pytest.raises(CohortError, match="got none of the 72 that the models read"):
        run(settings(root, tmp_path, rna=str(other)))
    copy = tmp_path / "copy"
    shutil.copytree(f"{root}/R/{TASK}/enc/mcat", copy)
    (copy / FILE).unlink()
    with pytest.raises(WeightsError, match="train it again"):
        run(settings(root, tmp_path, model=str(copy)))
    head = mstar.load_head(f"{root}/R/{TASK}/enc/mcat")
    bag = mstar.Bag.of(FeatureStore.open(f"{root}/F"), "c0000-1")
    with pytest.raises(FeatureError, match="the models read 72 genes, got 0"):
        head.predict(bag)


def test_slides_of_the_table_without_features_are_named(root: Path, tmp_path: Path) -> None:
    table = tmp_path / "cases.csv"
    table.write_text(
        "case_id,cancer_type,slides,report,rna,split\nnew,X,c0000-1;lost-1,,c0001,\ngone,X,lost-2,,,\n"
    )
    config = settings(root, tmp_path / "P", cases=str(table))
    assert run(replace(config, run=RunConfig(tracking=False, max_failures="2"))) == 0
    (row,) = rows_of(tmp_path / "P")
    assert (row["case_id"], row["slides"]) == ("new", "c0000-1")
    assert row["slides_without_features"] == "lost-1"
    assert {one["name"] for one in rows_of(tmp_path / "P", "failures.csv")} == {"lost-1", "lost-2"}
