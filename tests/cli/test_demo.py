"""`mstar demo --quick`, as a stranger would run it."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mstar.features.files import read_features

pytestmark = pytest.mark.ray


def test_the_demo_runs(real_slide: Path, tmp_path: Path) -> None:
    """Every step says where to look, and what it names is there."""
    command = [sys.executable, "-m", "mstar.cli.main", "demo", "--quick", "--out"]
    environment = os.environ | {"MSTAR_REAL_SLIDE": str(real_slide)}
    ended = subprocess.run(
        [*command, str(tmp_path / "demo")], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("look at") == 15
    out = tmp_path / "demo"
    assert len(read_features(out / "features" / "cmu_small_region.h5", check="full").features) > 30
    assert (out / "grids" / "cmu_small_region.jpg").stat().st_size > 10_000
    assert (out / "grids" / "cmu_small_region.geojson").is_file()
    assert list(out.glob("export/trident/*/features_vit_tiny/*.h5"))
    assert (out / "features" / "mlflow.db").is_file()
    assert (out / "cohort" / "check.png").stat().st_size > 10_000
    for name in ("aggregator", "text_encoder", "gene_encoder"):
        assert (out / "stage1" / f"{name}.safetensors").is_file()
    assert (out / "targets" / "shards" / "preview.jpg").stat().st_size > 10_000
    assert (out / "stage2" / "encoder.safetensors").is_file()
    with (out / "prediction" / "predictions.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["task"] == "planted_mutation"
    assert 0 < float(row["calibrated_mutated"]) < 1
    assert "research software" in row["warning"]
    page = (out / "results" / "index.html").read_text()
    for name in ("planted_mutation", "planted_cancer_type", "planted_survival", "generated"):
        assert name in page
    with (out / "results" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["encoder"], row["head"]) for row in rows} == {
        (encoder, head) for encoder in ("initial", "stage2") for head in ("abmil", "linear")
    }
    assert len(rows) == 12
