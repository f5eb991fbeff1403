"""`mstar encode`: vectors of slides, cases, reports and RNA, and the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from mstar.cli.main import main
from mstar.data.bags import BagConfig, BagReader
from mstar.data.cases import read_cases
from mstar.data.reports import read_reports
from mstar.data.rna.store import ExpressionStore
from mstar.downstream import encode_vectors
from mstar.downstream.encode_files import read_parquet
from mstar.downstream.encode_job import run
from mstar.downstream.language.encoders import GeneSide, TextSide
from mstar.errors import ConfigError
from mstar.features.store import FeatureStore
from mstar.models.aggregator import Aggregator, AggregatorConfig
from mstar.models.stage1_files import load_aggregator, save_aggregator
from mstar.training.exit_codes import ExitCode
from support.encode_runs import config_of, rows
from support.h5ad import read_h5ad
from support.language_world import DIM, World


@pytest.fixture
def world(small_world: World, tmp_path: Path) -> World:
    return small_world.copied(tmp_path / "w")


def unit(values: torch.Tensor) -> np.ndarray:
    """Of length 1."""
    return torch.nn.functional.normalize(values.float(), dim=0).numpy()


def whole(world: World, owner: str, slides: Sequence[str]) -> np.ndarray:
    """The aggregator on all patches at once, in the order of the windows."""
    reader = BagReader(f"{world.root}/F", BagConfig(size=None))
    bag = reader.read(owner, slides).features.astype(np.float32)
    with torch.no_grad():
        return unit(load_aggregator(f"{world.root}/S1")(torch.from_numpy(bag)[None]).slide[0])


def test_slides_and_cases_are_what_the_aggregator_says(world: World) -> None:
    assert run(config_of(world)) == ExitCode.COMPLETE
    assert run(config_of(world, level="case")) == ExitCode.COMPLETE
    slides, cases = rows(world, "slide_vectors"), rows(world, "case_vectors")
    table = read_cases(f"{world.root}/C/cases.csv")
    assert set(cases) == {case.case_id for case in table if case.slides}
    assert set(slides) == {slide for case in table for slide in case.slides}
    for case in table[:4]:
        expected = whole(world, case.case_id, case.slides)
        np.testing.assert_allclose(cases[case.case_id], expected, rtol=1e-4, atol=1e-5)
        for slide in case.slides:
            expected = whole(world, case.case_id, (slide,))
            np.testing.assert_allclose(slides[slide], expected, rtol=1e-4, atol=1e-5)


def test_long_slides_go_through_in_windows_that_hold_every_patch_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    plain = encode_vectors.SlideEncoder._vector

    def spied(self: Any, part: np.ndarray) -> torch.Tensor:
        seen.append(part.copy())
        return plain(self, part)

    monkeypatch.setattr(encode_vectors.SlideEncoder, "_vector", spied)
    case = read_cases(f"{world.root}/C/cases.csv")[0]
    (slide, *_), window = case.slides, 3
    features = FeatureStore.open(f"{world.root}/F").read(slide).features
    assert len(features) > window
    run(config_of(world, window=window))
    of_slide = [part for part in seen if len(np.unique(np.vstack([part, features]), axis=0))
                == len(np.unique(features, axis=0))]  # fmt: skip
    assert max(map(len, seen)) <= window
    found = np.sort(np.concatenate(of_slide), axis=0)
    np.testing.assert_array_equal(found, np.sort(features, axis=0))
    aggregator = load_aggregator(f"{world.root}/S1")
    with torch.no_grad():
        parts = [
            unit(aggregator(torch.from_numpy(part.astype(np.float32))[None]).slide[0])
            for part in of_slide
        ]
    expected = np.mean(parts, axis=0)
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(rows(world, "slide_vectors")[slide], expected, rtol=1e-4, atol=1e-5)


def test_padding_that_counts_is_that_of_stage_1(world: World) -> None:
    """An aggregator in public mode saw bags of one size, filled up with their mean."""
    settings = AggregatorConfig(input_dim=DIM, dim=DIM, heads=4, landmarks=4, mode="public")
    torch.manual_seed(3)
    aggregator = Aggregator(settings).eval()
    save_aggregator(f"{world.root}/public", aggregator, provenance={"config": {"bag_patches": 64}})
    config = config_of(world, aggregator=f"{world.root}/public")
    run(config)
    slide = next(iter(rows(world, "slide_vectors")))
    features = FeatureStore.open(config.features).read(slide).features.astype(np.float32)
    bag = np.repeat(features.mean(axis=0, keepdims=True), 64, axis=0)
    bag[: len(features)] = features
    with torch.no_grad():
        expected = unit(aggregator(torch.from_numpy(bag)[None]).slide[0])
    np.testing.assert_allclose(rows(world, "slide_vectors")[slide], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="expected 64"):
        run(config_of(world, aggregator=f"{world.root}/public", window=32, out=f"{world.root}/X"))


def test_reports_and_rna_come_too(world: World) -> None:
    assert run(config_of(world, modalities="wsi,text,gene", level="case")) == ExitCode.COMPLETE
    table = read_cases(f"{world.root}/C/cases.csv")
    texts, genes = rows(world, "report_vectors"), rows(world, "rna_vectors")
    reports, side = read_reports(f"{world.root}/C/reports.csv"), TextSide(f"{world.root}/S1")
    store = ExpressionStore.open(f"{world.root}/C/expression")
    gene_side = GeneSide(f"{world.root}/S1")
    for case in table[:3]:
        if case.report:
            ids = side.token_ids([reports[case.report].text], ["x"])
            expected = side.vectors(ids)[0]
            np.testing.assert_allclose(texts[case.case_id], expected, rtol=1e-4, atol=1e-5)
        if case.rna:
            expected = gene_side.vectors(store, [case.rna])[0]
            np.testing.assert_allclose(genes[case.case_id], expected, rtol=1e-4, atol=1e-5)
    assert set(texts) == {case.case_id for case in table if case.report}
    assert set(genes) == {case.case_id for case in table if case.rna}
    lengths = [np.linalg.norm(v) for v in (*texts.values(), *genes.values())]
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_every_format_holds_the_same_vectors(world: World) -> None:
    run(config_of(world, formats="parquet,h5ad,trident,patho-bench", picture=True))
    expected = rows(world, "slide_vectors")
    found = read_h5ad(world.root / "V" / "slide_vectors.h5ad")
    assert list(found.obs.index) == sorted(expected)
    np.testing.assert_array_equal(found.x, np.stack([expected[n] for n in found.obs.index]))
    table = {slide: case for case in read_cases(f"{world.root}/C/cases.csv")
             for slide in case.slides}  # fmt: skip
    for name, row in found.obs.iterrows():
        assert (row["case_id"], row["cancer_type"]) == (
            table[name].case_id,
            table[name].cancer_type,
        )
        assert row["patches"] > 0
    assert found.obsm["X_pca"].shape == (len(expected), 2)
    stated = json.loads(found.uns["mstar"])
    assert stated["features_fingerprint"] == FeatureStore.open(f"{world.root}/F").fingerprint
    assert len(stated["encoder_sha256"]) == 64
    assert read_parquet(f"{world.root}/V/slide_vectors.parquet")[1] == stated
    of_slide = sorted((world.root / "V" / "trident").glob("*/slide_features_mstar-slide/*.h5"))
    assert len(of_slide) == len(expected)
    pooled = world.root / "V" / "patho_bench" / "by_slide_id"
    for path in of_slide:
        with h5py.File(path) as file, h5py.File(pooled / path.name) as other:
            np.testing.assert_array_equal(file["features"][()], expected[path.stem])
            assert file["features"].shape == (DIM,)
            grid = FeatureStore.open(f"{world.root}/F").read(path.stem).grid
            np.testing.assert_array_equal(file["coords"][()], grid.coords)
            assert file["coords"].attrs["patch_size_level0"] == grid.patch_size_l0
            np.testing.assert_array_equal(other["features"][()], expected[path.stem])
    assert (world.root / "V" / "slide_vectors.png").stat().st_size > 1000


def test_without_a_cohort_every_slide_of_the_store(world: World) -> None:
    run(config_of(world, cohort=""))
    assert set(rows(world, "slide_vectors")) == set(FeatureStore.open(f"{world.root}/F").done_ids())


def test_raw_vectors_are_those_of_the_aggregator(world: World) -> None:
    run(config_of(world, scale="raw"))
    slide, vector = next(iter(rows(world, "slide_vectors").items()))
    features = FeatureStore.open(f"{world.root}/F").read(slide).features.astype(np.float32)
    with torch.no_grad():
        aggregator = load_aggregator(f"{world.root}/S1")
        expected = aggregator(torch.from_numpy(features)[None]).slide[0].numpy()
    np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"modalities": "wsi,rna"}, "--modalities"),
        ({"formats": ""}, "--formats"),
        ({"features": ""}, "--features"),
        ({"cohort": "", "level": "case"}, "--cohort"),
        ({"window": 0}, "--window"),
        ({"scale": "raw", "modalities": "wsi,text"}, "--scale raw"),
        ({"umap": "on"}, "--umap on"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    small_world: World, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(small_world, **fields)


def test_the_command_and_its_dry_run(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["encode", "--features", f"{world.root}/F", "--aggregator", f"{world.root}/S1"]
    words += ["--out", f"{world.root}/V", "--no-tracking", "--dry-run"]
    assert main(words) == ExitCode.COMPLETE
    assert not (world.root / "V").exists()
    assert "slide_vectors" in capsys.readouterr().out
