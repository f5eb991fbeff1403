"""`mstar heatmap`: scores of a trained model where they belong, and what goes wrong stays small."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from mlflow.tracking import MlflowClient
from PIL import Image

import mstar
from mstar.cli.main import main
from mstar.embed.config import RunConfig
from mstar.errors import ConfigError, FeatureError, StoreMismatchError, WeightsError
from mstar.evidence.heatmap_job import run
from mstar.evidence.palette import LEVELS, colours
from mstar.evidence.scores import SlideScores, read_scores
from mstar.features.coordless import coordless_grid
from mstar.features.importing import import_layout
from mstar.schema import RESEARCH_ONLY
from mstar.training.exit_codes import ExitCode
from support.evidence_world import SLIDES, EvidenceWorld, spec_of, write_evidence_world
from support.slides import tissue_truth, write_non_image, write_slide, write_without_mpp


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> EvidenceWorld:
    return write_evidence_world(tmp_path_factory.mktemp("evidence"))


@pytest.fixture(scope="module")
def made(world: EvidenceWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heatmaps of every slide."""
    out = tmp_path_factory.mktemp("heatmaps")
    assert run(world.config(out)) == ExitCode.COMPLETE
    return out


def scores_of(out: Path, slide: str = "s0") -> SlideScores:
    return read_scores(str(out / slide / "scores.parquet"))


def test_scores_are_those_of_the_models(world: EvidenceWorld, made: Path) -> None:
    """Attention of the Python API, which is the mean of two models, is what the file holds."""
    head = mstar.load_head(str(world.model))
    assert len(head.models) == 2
    for number in range(SLIDES):
        found = scores_of(made, f"s{number}")
        bag = mstar.Bag.of(world.store, found.slide_id)
        said = head.predict(bag)
        assert said.attention is not None
        np.testing.assert_array_equal(found.coords_l0, bag.coords_l0)
        layers = {layer.name: layer for layer in found.layers}
        for at, name in enumerate(head.classes):
            own = layers[f"attention:{name}"]
            np.testing.assert_allclose(own.values, said.attention[:, at], rtol=1e-4)
            assert layers[f"instance:{name}"].values.max() < 1
        told = found.made_by["prediction"]
        assert told["predicted"] == head.classes[int(said.scores.argmax())]
        assert found.layers[0].class_name == told["predicted"]
        assert found.made_by["identity"]["averaged_over"] == 2
        assert found.warning == RESEARCH_ONLY
    record = json.loads((made / "heatmap.json").read_text())
    assert record["slides"] == [f"s{number}" for number in range(SLIDES)]
    assert (record["failed"], record["notes"], record["warning"]) == ({}, {}, RESEARCH_ONLY)


def features_in(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    document = json.loads(gzip.decompress(path.read_bytes()))
    return document, document["features"]


def check_geojson(document: dict[str, Any]) -> None:
    """RFC 7946's rules of a FeatureCollection of polygons, and QuPath's of an object."""
    assert document["type"] == "FeatureCollection"
    assert "crs" not in document
    ids = set()
    for one in document["features"]:
        assert set(one) == {"type", "id", "geometry", "properties"}
        assert one["type"] == "Feature"
        ids.add(uuid.UUID(one["id"]))
        assert one["geometry"]["type"] == "Polygon"
        (ring,) = one["geometry"]["coordinates"]
        assert len(ring) >= 4
        assert ring[0] == ring[-1]
        assert all(len(point) == 2 and all(map(math.isfinite, point)) for point in ring)
        properties = one["properties"]
        assert properties["objectType"] in ("tile", "detection")
        red, green, blue = properties["classification"]["color"]
        assert all(isinstance(c, int) and 0 <= c <= 255 for c in (red, green, blue))
        assert properties["classification"]["name"]
        for name, value in properties["measurements"].items():
            assert isinstance(name, str)
            assert isinstance(value, float)
            assert math.isfinite(value)
    assert len(ids) == len(document["features"])


def test_tiles_are_valid_geojson_on_the_tissue(made: Path) -> None:
    for number in range(SLIDES):
        document, features = features_in(made / f"s{number}" / f"s{number}.geojson.gz")
        check_geojson(document)
        found = scores_of(made, f"s{number}")
        mask = tissue_truth(spec_of(number))  # one pixel is 8 of the slide's
        assert len(features) == len(found) > 3
        for at, one in enumerate(features):
            ring = np.array(one["geometry"]["coordinates"][0])
            left, top = ring.min(axis=0)
            right, bottom = ring.max(axis=0)
            assert [left, top] == found.coords_l0[at].tolist()
            assert right - left == bottom - top == found.patch_size_l0
            covered = mask[top // 8 : -(-bottom // 8), left // 8 : -(-right // 8)]
            assert covered.mean() > 0.05
            measured = one["properties"]["measurements"]
            assert len(measured) == 2 * len(found.layers)
            first = found.layers[0]
            label = f"attention: {first.class_name}"
            assert measured[label] == pytest.approx(first.values[at], rel=1e-5)
            assert measured[f"{label} percentile"] == pytest.approx(first.percentile[at], abs=1e-3)
            level = min(LEVELS - 1, int(first.percentile[at] * LEVELS / 100))
            assert one["properties"]["classification"]["name"] == f"{label} {level + 1} of {LEVELS}"
        assert document["mstar"]["warning"] == RESEARCH_ONLY


def middles(found: SlideScores, downsample: int) -> Iterator[tuple[int, int]]:
    for corner in found.coords_l0:
        x, y = (corner + found.patch_size_l0 / 2) / downsample
        yield int(x), int(y)


def test_the_overlay_has_each_patch_s_colour_in_its_place(made: Path) -> None:
    """Reopened by tifffile and by OpenSlide, which takes place and scale from the tags."""
    found = scores_of(made)
    layer = found.layers[0]
    path = made / "s0" / f"attention-{layer.class_name}.tif"
    expected = colours(layer.percentile)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        assert page.is_tiled
        assert RESEARCH_ONLY in page.description
        downsample = -(-found.width_l0 // page.shape[1])
        assert downsample == found.patch_size_l0 // 16
        pixels = page.asarray()
        assert file.pages[0].resolution[0] == pytest.approx(1e4 / (found.mpp * downsample))
    for at, (x, y) in enumerate(middles(found, downsample)):
        assert pixels[y, x, :3].tolist() == expected[at].tolist()
        assert pixels[y, x, 3] == 255
    assert pixels[..., 3].min() == 0
    with openslide.OpenSlide(str(path)) as slide:
        mpp = float(slide.properties["openslide.mpp-x"])
        assert mpp == pytest.approx(found.mpp * downsample, rel=1e-4)
        assert slide.dimensions == (pixels.shape[1], pixels.shape[0])
        for at, (x, y) in enumerate(middles(found, downsample)):
            shown = slide.read_region((x, y), 0, (1, 1)).convert("RGBA").getpixel((0, 0))
            assert shown == (*expected[at].tolist(), 255)


def test_pictures_have_the_slide_below_and_top_patches_above_bottom_ones(
    world: EvidenceWorld, made: Path, tmp_path: Path
) -> None:
    found = scores_of(made)
    name = f"attention-{found.layers[0].class_name}"
    sheet = Image.open(made / "s0" / f"{name}-patches.png")
    over = np.asarray(Image.open(made / "s0" / f"{name}.png").convert("RGB"))
    assert run(world.config(tmp_path, slides=("s0",), slide_files="", k=0)) == ExitCode.COMPLETE
    assert not (tmp_path / "s0" / f"{name}-patches.png").exists()
    assert (tmp_path / "s0" / f"{name}.png").exists()
    note = json.loads((tmp_path / "heatmap.json").read_text())["notes"]["s0"]
    assert "no slide file is known" in note[0]
    assert len(np.unique(over.reshape(-1, 3), axis=0)) > 5000  # tissue, not ten flat colours
    assert sheet.width > 2 * 224
    assert sheet.height > 2 * 224


def test_run_again_makes_what_is_missing_and_refuses_other_scores(
    world: EvidenceWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = world.config(tmp_path, slides=("s0", "s1"), overlay="none")
    assert run(config) == ExitCode.COMPLETE
    assert not list(tmp_path.rglob("*.tif"))
    kept = (tmp_path / "s0" / "scores.parquet").stat().st_mtime_ns
    (tmp_path / "s1" / "scores.parquet").unlink()
    capsys.readouterr()
    assert run(config) == ExitCode.COMPLETE
    shown = capsys.readouterr().out
    assert "2 with features, 1 of them done" in shown
    assert "made         1; 0 without" in shown
    assert RESEARCH_ONLY in shown
    assert (tmp_path / "s1" / "scores.parquet").exists()
    assert (tmp_path / "s0" / "scores.parquet").stat().st_mtime_ns == kept
    with pytest.raises(StoreMismatchError, match=r"made otherwise.*methods"):
        run(world.config(tmp_path, slides=("s0",), method="gradient"))


def test_tiles_for_a_cropped_view_need_the_slide(world: EvidenceWorld, tmp_path: Path) -> None:
    """These slides state no scanned area: theirs begins at (0, 0)."""
    quiet = {"slides": ("s0",), "overlay": "none", "k": 0, "origin": "bounds"}
    assert run(world.config(tmp_path, slide_files="", **quiet)) == ExitCode.EXCLUSIONS
    assert "--origin bounds needs the slide" in (tmp_path / "failures.csv").read_text()
    assert not (tmp_path / "s0").exists()
    assert run(world.config(tmp_path, **quiet)) == ExitCode.COMPLETE
    _, features = features_in(tmp_path / "s0" / "s0.geojson.gz")
    first = features[0]["geometry"]["coordinates"][0][0]
    assert first == scores_of(tmp_path).coords_l0[0].tolist()


def test_other_methods_and_all_classes(world: EvidenceWorld, tmp_path: Path) -> None:
    config = world.config(
        tmp_path, slides=("s1",), method="occlusion", classes=("all",), passes=8,
        overlay="values", object_type="detection", slide_files="",
    )  # fmt: skip
    assert run(config) == ExitCode.COMPLETE
    found = scores_of(tmp_path, "s1")
    assert [layer.name for layer in found.layers] == ["occlusion:class0", "occlusion:class1"]
    np.testing.assert_allclose(found.layers[0].values, -found.layers[1].values, atol=1e-7)
    _, features = features_in(tmp_path / "s1" / "s1.geojson.gz")
    assert {one["properties"]["objectType"] for one in features} == {"detection"}
    for layer in found.layers:
        pixels = tifffile.imread(tmp_path / "s1" / f"occlusion-{layer.class_name}.tif")
        step = -(-found.width_l0 // pixels.shape[1])
        for at, (x, y) in enumerate(middles(found, step)):
            assert pixels[y, x] == layer.values[at]
        assert np.isnan(pixels).any()


def test_broken_slides_are_rows_and_the_others_are_done(
    world: EvidenceWorld, tmp_path: Path
) -> None:
    """New files are embedded as the training slides were; two of them cannot be."""
    folder = tmp_path / "new"
    write_slide(folder / "fine.svs", spec_of(0))
    write_non_image(folder / "corrupt.svs")
    write_without_mpp(folder / "nowhere.svs")
    config = world.config(
        tmp_path / "H", slides=(str(folder),), features=(), slide_files="", overlay="none", k=1
    )
    assert run(config) == ExitCode.EXCLUSIONS
    with (tmp_path / "H" / "failures.csv").open(newline="") as file:
        failed = {row["name"]: row["reason"] for row in csv.DictReader(file)}
    assert set(failed) == {"corrupt", "nowhere"}
    assert "mpp" in failed["nowhere"]
    found, inside = scores_of(tmp_path / "H", "fine"), scores_of_store(world, "s0")
    np.testing.assert_array_equal(found.coords_l0, inside.coords_l0)
    assert found.slide_uri.endswith("fine.svs")
    assert list((tmp_path / "H" / "fine").glob("*-patches.png"))


def scores_of_store(world: EvidenceWorld, slide: str) -> Any:
    return mstar.Bag.of(world.store, slide)


@pytest.mark.slow
def test_the_run_is_in_mlflow(
    world: EvidenceWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = world.config(tmp_path / "H", slides=("s0",))
    assert run(replace(config, run=RunConfig())) == ExitCode.COMPLETE
    client = MlflowClient(f"sqlite:///{tmp_path}/H/mlflow.db")
    experiment = client.get_experiment_by_name("heatmap")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["model"] == config.model
    assert (found.data.metrics["slides"], found.data.metrics["failed"]) == (1, 0)
    assert found.data.tags["warning"] == RESEARCH_ONLY
    pictures = [file.path for file in client.list_artifacts(found.info.run_id, "s0")]
    assert len(pictures) == 1
    assert pictures[0].endswith(".png")


def test_a_dry_run_writes_nothing(
    world: EvidenceWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["heatmap", "--model", str(world.model), "--features", world.store.root]
    assert main([*words, "--out", str(tmp_path / "H"), "--dry-run"]) == ExitCode.COMPLETE
    shown = capsys.readouterr().out
    assert "planted by clam_mb on texture, mean of 2 models" in shown
    assert "Lu et al. 2021" in shown
    assert "Nothing was written" in shown
    assert not (tmp_path / "H").exists()


def test_what_cannot_be_meant_is_refused(world: EvidenceWorld, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--model or --text, one of them"):
        world.config(tmp_path, text="gland")
    with pytest.raises(ConfigError, match="expected --stage1"):
        world.config(tmp_path, model="", text="gland")
    with pytest.raises(ConfigError, match="--classes class7: expected one of class0"):
        run(world.config(tmp_path, classes=("class7",)))
    with pytest.raises(FeatureError, match="expected a slide of"):
        run(world.config(tmp_path, slides=("nobody",)))
    with pytest.raises(WeightsError):
        run(world.config(tmp_path, model=str(tmp_path / "nothing")))
    with pytest.raises(ConfigError, match="reads no gene expression"):
        run(world.config(tmp_path, rna=str(tmp_path / "rna")))
    assert not any(tmp_path.iterdir())


def test_features_of_another_encoder_or_without_places_are_refused(
    world: EvidenceWorld, tmp_path: Path
) -> None:
    """Places are looked at first for the slides of a store that otherwise fits."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    rows = world.store.read("s0").features
    np.save(theirs / "s0.npy", rows)
    import_layout(str(theirs), "plain", str(tmp_path / "I"), encoder="texture", slide_mpp=0.5)
    with pytest.raises(FeatureError, match="other features than the model was trained on"):
        run(world.config(tmp_path / "H", features=(str(tmp_path / "I"),)))
    slide = world.store.read("s0")
    lost = coordless_grid("lost", len(rows), layout="plain")
    copy = tmp_path / "F"
    copy.mkdir()
    (copy / "store.json").write_bytes((Path(world.store.root) / "store.json").read_bytes())
    own = type(world.store).open_or_create(str(copy), world.store.record.config)
    own.write("lost", lost, slide.features, slide.provenance)
    assert run(world.config(tmp_path / "H", features=(str(copy),))) == ExitCode.EXCLUSIONS
    with (tmp_path / "H" / "failures.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert "heatmaps need to know where patches are" in row["reason"]


def test_slides_of_a_case_are_one_bag(world: EvidenceWorld, tmp_path: Path) -> None:
    """The attention of both slides together sums to one."""
    lines = [f"{world.slides}/s{at}.svs,s{at},case" for at in (0, 1)]
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,slide_id,case_id\n" + "\n".join(lines) + "\n")
    config = world.config(tmp_path / "H", slides=(str(manifest),), unit="case", overlay="none", k=0)
    assert run(config) == ExitCode.COMPLETE
    both = [scores_of(tmp_path / "H", slide) for slide in ("s0", "s1")]
    sums = [one.layers[0].values.sum() for one in both]
    assert sum(sums) == pytest.approx(1, abs=1e-4)
    assert all(0 < one < 1 for one in sums)
    assert both[0].made_by["slides"] == ["s0", "s1"]
    sheet = io.BytesIO((tmp_path / "H" / "s0" / "scores.parquet").read_bytes())
    assert sheet.getvalue()[:4] == b"PAR1"
