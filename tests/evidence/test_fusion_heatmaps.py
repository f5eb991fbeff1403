"""Heatmaps of models that read genes beside patches: groups of genes say where they look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstar.downstream.bags import load_bags
from mstar.downstream.config import Study, TrialConfig
from mstar.downstream.studies import plan_sweep
from mstar.downstream.study import run_study
from mstar.downstream.sweep_config import SweepConfig
from mstar.embed.config import RunConfig
from mstar.errors import ConfigError
from mstar.evidence.config import HeatmapConfig
from mstar.evidence.heatmap_job import run
from mstar.evidence.scores import read_scores
from mstar.features.store import FeatureStore
from mstar.training.exit_codes import ExitCode
from support.planted_fusion import GROUPS, FusionPlan, plant_fusion

TASK, SMALL = "fusion_both", {"dim": 16, "feed_forward": 32}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fusion-heatmaps")
    planted = plant_fusion(root, FusionPlan(cases=12, patches=(6, 9), without_rna=0))
    data = plan_sweep(SweepConfig(**planted)).tasks[f"{TASK}/enc"]
    bags = load_bags(data.samples, FeatureStore.open(f"{root}/F"), cache_root=f"{root}/cache")
    trial = TrialConfig(head="mcat", head_options=SMALL, lr=1e-3, batch_bags=8, epochs=1)
    run_study(Study(task_id=TASK, encoder="enc", head="mcat"), data, bags, [trial], out=f"{root}/R")
    (root / "cases.csv").write_text(
        "case_id,cancer_type,slides,report,rna,split\n"
        + "".join(f"{one.case_id},X,{';'.join(one.slides)},,,\n" for one in data.samples)
    )
    return root


def settings(root: Path, out: Path, **fields: Any) -> HeatmapConfig:
    given: dict[str, Any] = {
        "model": f"{root}/R/{TASK}/enc/mcat", "features": (f"{root}/F",), "out": str(out),
        "slides": ("c0000-1",), "cases": f"{root}/cases.csv", "rna": f"{root}/expression",
        "overlay": "none", "run": RunConfig(tracking=False),
    }  # fmt: skip
    return HeatmapConfig(**given | fields)


def test_a_layer_for_each_group_of_genes_and_their_mean_first(root: Path, tmp_path: Path) -> None:
    assert run(settings(root, tmp_path)) == ExitCode.COMPLETE
    found = read_scores(str(tmp_path / "c0000-1" / "scores.parquet"))
    names = ["co_attention", *(f"co_attention:group {at}" for at in range(GROUPS))]
    assert [layer.name for layer in found.layers] == names
    groups = np.stack([layer.values for layer in found.layers[1:]])
    np.testing.assert_allclose(groups.sum(axis=1), 1, rtol=1e-4)
    np.testing.assert_allclose(found.layers[0].values, groups.mean(axis=0), rtol=1e-4)
    assert np.isfinite(found.made_by["prediction"]["risk"])
    assert (tmp_path / "c0000-1" / "co_attention.png").exists()


def test_without_genes_it_says_so_and_a_case_without_them_is_a_row(
    root: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="Give --rna"):
        run(settings(root, tmp_path, rna=""))
    assert run(settings(root, tmp_path, cases="")) == ExitCode.EXCLUSIONS
    reason = (tmp_path / "failures.csv").read_text()
    assert "c0000-1" in reason
    assert "gene expression" in reason
