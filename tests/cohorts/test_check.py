"""`mstar cohort check`: a sound cohort passes, and what it holds is counted right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest

from mstar.cohorts.check import CheckConfig, check_cohort, run
from mstar.cohorts.check_result import ALL, PRETRAINING, USABLE
from mstar.errors import CohortError, FeatureError
from mstar.features.store import GridStore
from mstar.training.exit_codes import ExitCode
from support.cohort_faults import set_rna
from support.feature_files import CONFIG, toy_grid
from support.sound_cohort import PATCHES, Made


@pytest.fixture
def made(sound_cohort: Made, tmp_path: Path) -> Made:
    """A copy to break."""
    return sound_cohort.copied(tmp_path)


def test_a_sound_cohort_has_no_problems(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made.config) == ExitCode.COMPLETE
    out = capsys.readouterr().out
    assert "no problem found" in out
    assert "data: generated" in out
    assert f"{sum(PATCHES.values())} in 6 slides" in out
    assert len(out.splitlines()) <= 24  # one screen
    assert max(map(len, out.replace(str(made.folder.parent), "").splitlines())) <= 120


def test_counts_equal_those_of_pandas(made: Made) -> None:
    """Pairs before and after the held-out cases, held against pandas on the case table itself."""
    check = check_cohort(made.config)
    table = pd.read_csv(made.folder / "cases.csv").notna()
    pretraining = pd.read_csv(made.folder / "splits.csv").pretraining == 1
    for name, rows in ((ALL, table), (USABLE, table), (PRETRAINING, table[pretraining])):
        pairs = check.pairs[name]
        assert pairs.cases == len(rows)
        assert pairs.wsi_report == (rows.slides & rows.report).sum()
        assert pairs.wsi_rna == (rows.slides & rows.rna).sum()
        assert pairs.report_rna == (rows.report & rows.rna).sum()
        assert pairs.all_three == (rows.slides & rows.report & rows.rna).sum()
    assert {name: n.cases for name, n in check.cancer_types.items()} == {"BRCA": 3, "LUAD": 3}
    assert {name: n.held_out for name, n in check.cancer_types.items()} == {"BRCA": 2, "LUAD": 0}
    assert (check.num_slides, check.patches.total, check.num_genes) == (6, 40, 4)
    assert sum(check.overlap.values()) == 6


def test_json_and_figure_are_written_and_the_same_each_time(made: Made) -> None:
    run(made.config)
    first = [(made.folder / name).read_bytes() for name in ("check.json", "check.png")]
    content = json.loads(first[0])
    assert content["problems"] == []
    assert content["slides"] == 6
    assert content["patches"] == 40
    assert content["pairs"]["all cases"]["wsi_report"] == 3
    image = matplotlib.image.imread(made.folder / "check.png")
    assert image.shape[0] > 400
    assert image[..., :3].std() > 0.05  # something is drawn
    run(made.config)
    assert first == [(made.folder / name).read_bytes() for name in ("check.json", "check.png")]


def test_outputs_go_where_asked_or_nowhere(made: Made, tmp_path: Path) -> None:
    before = sorted(made.folder.rglob("*"))
    run(replace(made.config, json=str(tmp_path / "x" / "a.json"), figure="none"))
    assert sorted(made.folder.rglob("*")) == before
    assert json.loads((tmp_path / "x" / "a.json").read_text())["errors"] == 0


def test_without_features_patches_come_from_the_cohorts_grids(made: Made) -> None:
    config = replace(made.config, features="")
    assert check_cohort(config).patches.source == "none"
    store = GridStore.open_or_create(str(made.folder / "grids"), CONFIG)
    for slide, num in PATCHES.items():
        store.write(slide, toy_grid(slide, num))
    patches = check_cohort(config).patches
    assert (patches.source, patches.total) == ("grids", 40)
    elsewhere = replace(config, grids=str(made.folder / "grids"))
    assert check_cohort(elsewhere).patches.total == 40


def test_a_slide_that_is_gone_is_no_error_when_its_features_are_there(made: Made) -> None:
    (made.folder / "slides" / "s5.svs").unlink()
    assert [p.kind for p in check_cohort(made.config).problems] == ["slide_file_gone"]
    assert run(made.config) == ExitCode.COMPLETE
    assert run(replace(made.config, strict=True)) == ExitCode.EXCLUSIONS


def test_what_problems_take_away_is_not_counted_as_usable(made: Made) -> None:
    (made.features / "s5.h5").unlink()
    set_rna(made, "P1", 0.0)
    pairs = check_cohort(made.config).pairs
    assert (pairs[ALL].wsi_report, pairs[USABLE].wsi_report) == (3, 2)
    assert (pairs[ALL].all_three, pairs[USABLE].all_three) == (2, 0)
    assert pairs[PRETRAINING].wsi_rna == 0


def test_what_is_no_cohort_or_store_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"expected a cohort folder with cases\.csv"):
        run(CheckConfig(cohort=str(tmp_path / "nothing")))
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(FeatureError, match="expected a store"):
        run(replace(made.config, features=str(tmp_path / "nothing")))
