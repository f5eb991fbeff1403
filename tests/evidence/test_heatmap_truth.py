"""Attention finds what was planted: slides, texture features, ABMIL, heatmap, truth of the patches.

The head saw one label a slide. Of the slides of the test part that carry the mutation, the truth
says which cells show it. Two to three minutes where a core is free.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from mstar.cohorts import generate, split_job
from mstar.cohorts.generated.config import GenerateConfig
from mstar.data.splits.preset import PresetConfig
from mstar.downstream import train_job
from mstar.downstream.predictions import Predictions, read_predictions
from mstar.downstream.train_config import TrainHeadConfig, TrialChanges
from mstar.embed.config import RunConfig
from mstar.evidence.config import HeatmapConfig
from mstar.evidence.heatmap_job import run
from mstar.evidence.scores import SlideScores, read_scores
from mstar.training.exit_codes import ExitCode
from support.evidence_world import embed_folder

pytestmark = pytest.mark.slow

CASES, TASK = 120, "planted_mutation"
MARGIN = 0.25  # AUPRC above prevalence; found 0.82 against 0.32


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated cohort, its features, a head for the mutation, heatmaps of the test slides."""
    root = tmp_path_factory.mktemp("heatmap-truth")
    config = GenerateConfig(
        out=f"{root}/C", cases=CASES, seed=5, slide_px=768, slides_per_case_max=1, workers=1
    )
    assert generate.run(config) == 0
    preset = PresetConfig(cohorts="all", min_cases=10, ratio=(0.5, 0.15, 0.35))
    split = split_job.SplitConfig(cohort=f"{root}/C", preset="mstar", settings=preset)
    assert split_job.run(split) == 0
    embed_folder(f"{root}/C/slides.csv", root / "F")
    training = TrainHeadConfig(
        task=TASK, labels=f"{root}/C/labels", features=f"texture={root}/F", out=f"{root}/R",
        head="abmil", cohort=f"{root}/C", trial=TrialChanges(lr=1e-3, batch_bags=8, epochs=30),
        threads=1, cache_dir=f"{root}/cache",
    )  # fmt: skip
    assert train_job.run(training) == 0
    slides = [slide for own in told(root).slides for slide in own]
    heatmaps = HeatmapConfig(
        model=f"{root}/R/{TASK}/texture/abmil", features=(f"{root}/F",), slides=tuple(slides),
        cases=f"{root}/C/cases.csv", out=f"{root}/H", run=RunConfig(tracking=False),
    )  # fmt: skip
    assert run(heatmaps) == ExitCode.COMPLETE
    return root


def told(root: Path) -> Predictions:
    return read_predictions(f"{root}/R/{TASK}/texture/abmil/predictions-test.parquet")


def truth_of(root: Path, found: SlideScores) -> pd.DataFrame:
    """The truth's cell nearest to each patch; cells and patches are of nearly one lattice."""
    every = pd.read_parquet(root / "C" / "truth" / "patches.parquet")
    cells = every[every.slide_id == found.slide_id]
    corners = cells[["x_l0", "y_l0"]].to_numpy()
    apart = np.abs(found.coords_l0[:, None] - corners[None]).max(axis=2)
    assert apart.min(axis=1).max() < found.patch_size_l0 / 8
    return cells.iloc[apart.argmin(axis=1)]


def test_attention_is_where_the_mutation_shows_and_tiles_are_on_tissue(root: Path) -> None:
    cases = pd.read_csv(root / "C" / "truth" / "cases.csv").set_index("case_id")
    hits, weights, tissue = [], [], []
    for path in sorted((root / "H").glob("*/scores.parquet")):
        found = read_scores(str(path))
        truth = truth_of(root, found)
        tissue.append(truth.tissue.to_numpy())
        if cases.mutation[found.made_by["bag"]]:
            hits.append(truth.signal_mutation.to_numpy(bool))
            weights.append(found.layers[0].values)
    assert np.concatenate(tissue).min() > 0
    assert len(hits) >= 15
    every = np.concatenate(hits)
    area, prevalence = average_precision_score(every, np.concatenate(weights)), every.mean()
    print(
        f"AUPRC {area:.3f}, prevalence {prevalence:.3f}, {len(hits)} slides, {len(every)} patches"
    )
    assert area > prevalence + MARGIN
