"""Stage 1 learns what modalities share beyond the cancer type; and nothing once pairs are shuffled.

The whole, on painted slides, is slow (`benchmarks/stage1_proof.py` draws it); CI runs the same
claims on features with planted factors.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.stage1_proof import (
    TRIALS,
    Found,
    Trial,
    claims_of,
    gallery_claims,
    handed_round,
    prove,
    recall,
    run_trial,
)
from mstar.data.cases import read_cases
from mstar.data.reports import read_reports
from mstar.models.aggregator import AggregatorConfig
from mstar.models.gene_encoder import GeneEncoderConfig
from mstar.pretrain.small_text_encoder import write_small_text_encoder
from mstar.pretrain.stage1_config import Stage1Config
from mstar.recipes import stage1 as recipes
from support.stage1_inputs import write_stage1_inputs


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Stage1Config:
    """A cohort of seconds with factors planted in features, words and genes."""
    out = tmp_path_factory.mktemp("proof")
    made = write_stage1_inputs(out, cases=260, cancers=3, missing=0.05, patches=(8, 12))
    reports = read_reports(str(made.cohort / "reports.csv"))
    write_small_text_encoder(
        made.text, [report.text for report in reports.values()], hidden=32, layers=1, heads=2
    )
    return replace(
        recipes.laptop(),
        cohort=str(made.cohort),
        features=str(made.features),
        text=str(made.text),
        out=str(out),
        val_fraction=0.5,
        tracking=False,
        epochs=40,
        batch_cases=64,
        chunk_cases=64,
        bag_patches=12,
        max_tokens=32,
        lr=3e-3,
        lr_text=2e-3,
        binning="floor_clip",
        num_bins=5,
        aggregator=AggregatorConfig(dim=32, heads=2, landmarks=8),
        gene=GeneEncoderConfig(dim=16, heads=2, head_dim=8, random_features=16, checkpoint_cases=0),
    )


def test_held_out_pairs_are_found_within_the_type_and_shuffled_ones_are_not(
    planted: Stage1Config,
) -> None:
    found = {t.name: run_trial(planted, t, Path(planted.out)) for t in TRIALS[:2]}
    wrong = [claim.text for claim in claims_of(found) if not claim.holds]
    assert not wrong
    for direction in ("wsi_to_text", "wsi_to_gene"):
        paired, shuffled = (recall(one, direction, "within", 5) for one in found.values())
        assert paired["low"] > shuffled["high"], direction


@pytest.mark.parametrize(
    ("change", "directions"),
    [
        ({"modalities": "wsi,text"}, {"wsi_to_text", "text_to_wsi"}),
        ({"modalities": "wsi,gene", "triplet_weight": 0.0}, {"wsi_to_gene", "gene_to_wsi"}),
    ],
)
def test_what_is_left_out_is_reported_as_left_out(
    planted: Stage1Config, change: dict[str, object], directions: set[str]
) -> None:
    name = "-".join(map(str, change.values()))
    trial = Trial(name=name, change=change)
    found: Found = run_trial(replace(planted, epochs=1), trial, Path(planted.out))
    assert set(found) == directions


def test_shuffling_keeps_every_case_its_type_and_how_many_have_what(planted: Stage1Config) -> None:
    cases = read_cases(f"{planted.cohort}/cases.csv")
    shuffled = handed_round(cases, np.random.default_rng(0))
    for before, after in zip(cases, shuffled, strict=True):
        assert replace(after, report=before.report, rna=before.rna) == before
        assert (after.report is None, after.rna is None) == (
            before.report is None,
            before.rna is None,
        )
    types = {case.case_id: case.cancer_type for case in cases}
    for name in ("report", "rna"):
        given = [getattr(case, name) for case in cases]
        assert Counter(given) == Counter(getattr(case, name) for case in shuffled)
        moved = [getattr(case, name) for case in shuffled if getattr(case, name) is not None]
        owners = [case for case in shuffled if getattr(case, name) is not None]
        assert all(types[key] == case.cancer_type for key, case in zip(moved, owners, strict=True))
        assert np.mean([key == c.case_id for key, c in zip(moved, owners, strict=True)]) < 0.1


@pytest.mark.slow
@pytest.mark.timeout(3600)  # five runs of stage 1
def test_it_holds_the_whole_way_from_pixels(tmp_path: Path) -> None:
    found = prove(tmp_path)
    claims = [*claims_of(found), *gallery_claims(found["as it is"])]
    assert not [claim.text for claim in claims if not claim.holds]
