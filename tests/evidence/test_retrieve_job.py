"""`mstar retrieve` and `mstar heatmap`: what was planted comes first."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mstar.downstream.language.encoders import SlideSide, TextSide
from mstar.embed.config import RunConfig
from mstar.errors import ConfigError, FeatureError
from mstar.evidence.config import HeatmapConfig
from mstar.evidence.heatmap_job import run as run_heatmap
from mstar.evidence.retrieve_job import RetrieveConfig, retrieve, run
from mstar.evidence.scores import read_scores
from mstar.features.store import FeatureStore
from support.language_world import World, case_id, write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("world"), cases=12)


def config(world: World, **changes: object) -> RetrieveConfig:
    given: dict[str, object] = {
        "features": f"enc={world.root}/F",
        "cohort": f"{world.root}/C",
        "stage1": f"{world.root}/S1",
        "stage2": f"{world.root}/S2",
        "index": f"{world.root}/index",
        "text": "pale stroma",
        "k": 3,
        "patches": 4,
    }
    return RetrieveConfig(**(given | changes))  # type: ignore[arg-type]


def test_cases_come_in_the_order_of_their_slide_vectors(world: World) -> None:
    hits, index = retrieve(config(world))
    assert (len(hits), len(index.entries)) == (3, 12)
    side, text = SlideSide(f"{world.root}/S1"), TextSide(f"{world.root}/S1")
    question = text.vectors(text.token_ids(["pale stroma"], ["q"]))[0]
    store = FeatureStore.open(f"{world.root}/F")
    scores = {}
    for entry in index.entries:
        rows = np.concatenate([store.read(slide).features for slide in entry.slides])
        scores[entry.name] = float(side.vector(rows, entry.name).numpy() @ question)
    best = sorted(scores, key=lambda name: -scores[name])[:3]
    assert [hit.entry.name for hit in hits] == best
    for hit in hits:
        assert hit.score == pytest.approx(scores[hit.entry.name], abs=1e-5)


def test_patches_are_those_most_like_the_text_with_their_places(world: World) -> None:
    """The projection of this world changes nothing, so a patch's cosine is plain."""
    hits, _ = retrieve(config(world))
    text = TextSide(f"{world.root}/S1")
    question = text.vectors(text.token_ids(["pale stroma"], ["q"]))[0]
    store = FeatureStore.open(f"{world.root}/F")
    for hit in hits:
        cosines = {}
        for slide in hit.entry.slides:
            found = store.read(slide)
            rows = found.features.astype(np.float32)
            unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            for (x, y), cosine in zip(found.grid.coords.tolist(), unit @ question, strict=True):
                cosines[slide, x, y] = float(cosine)
        best = sorted(cosines.values(), reverse=True)[:4]
        assert [cosines[s, x, y] for s, x, y, _, _ in hit.patches] == pytest.approx(best)
        assert [cosine for *_, cosine in hit.patches] == pytest.approx(best, abs=1e-5)


def test_a_case_is_not_like_itself(world: World) -> None:
    hits, _ = retrieve(config(world, text="", like=case_id(4), k=20, patches=0))
    assert len(hits) == 11
    assert case_id(4) not in {hit.entry.name for hit in hits}
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_the_index_is_kept_and_refused_for_other_cases(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    first, _ = retrieve(config(world, index=str(folder)))
    (folder / "vectors.npy").rename(folder / "moved.npy")
    with pytest.raises(FileNotFoundError):
        retrieve(config(world, index=str(folder)))
    (folder / "moved.npy").rename(folder / "vectors.npy")
    again, _ = retrieve(config(world, index=str(folder)))
    assert again == first
    with pytest.raises(ConfigError, match="other cases, features or weights"):
        retrieve(config(world, index=str(folder), cohort=""))


def test_it_prints_one_screen_and_writes_hits_and_heatmaps(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config(world, out=str(tmp_path), heatmaps=1)) == 0
    shown = capsys.readouterr().out
    assert "3 of 12 entries, searched exactly" in shown
    found = json.loads((tmp_path / "retrieved.json").read_text())
    assert len(found["hits"]) == 3
    assert all(len(hit["patches"]) == 4 for hit in found["hits"])
    pictures = list((tmp_path / "heatmaps").glob("*/similarity.png"))
    assert len(pictures) == len(found["hits"][0]["slides"])
    assert pictures[0].read_bytes()[:4] == b"\x89PNG"
    best = found["hits"][0]["patches"][0]
    scores = read_scores(
        str(next((tmp_path / "heatmaps").glob(f"01-{best['slide']}")) / "scores.parquet")
    )
    at = int(scores.layers[0].values.argmax())
    assert scores.coords_l0[at].tolist() == [best["x_l0"], best["y_l0"]]


def test_a_text_scores_patches_by_their_cosine(world: World, tmp_path: Path) -> None:
    """The projection of this world changes nothing, so a patch's cosine is plain."""
    slide = f"{case_id(0)}-0"
    asked = HeatmapConfig(
        features=(f"enc={world.root}/F",), stage1=f"{world.root}/S1", stage2=f"{world.root}/S2",
        slides=(slide,), text="pale stroma", minus="solid gland", out=str(tmp_path),
        device="cpu", run=RunConfig(tracking=False),
    )  # fmt: skip
    assert run_heatmap(asked) == 0
    scores = read_scores(str(tmp_path / slide / "scores.parquet"))
    text = TextSide(f"{world.root}/S1")
    vectors = text.vectors(text.token_ids(["pale stroma", "solid gland"], ["q", "r"]))
    rows = FeatureStore.open(f"{world.root}/F").read(slide).features.astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    (layer,) = scores.layers
    np.testing.assert_allclose(layer.values, unit @ (vectors[0] - vectors[1]), atol=1e-5)
    tiles = json.loads(gzip.decompress((tmp_path / slide / f"{slide}.geojson.gz").read_bytes()))
    cosines = np.array([f["properties"]["measurements"]["similarity"] for f in tiles["features"]])
    np.testing.assert_allclose(cosines, layer.values, rtol=1e-5)
    best = tiles["features"][int(cosines.argmax())]["properties"]["classification"]
    assert best["name"] == "similarity 10 of 10"
    with pytest.raises(FeatureError, match="expected a slide of"):
        run_heatmap(replace(asked, slides=("x",)))
    with pytest.raises(ConfigError, match="--classes yes: expected one of none"):
        run_heatmap(replace(asked, classes=("yes",)))


def test_bad_questions_are_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="--text or --like"):
        config(world, text="")
    with pytest.raises(ConfigError, match="--text or --like"):
        config(world, like="x")
    with pytest.raises(ConfigError, match="one token or more"):
        retrieve(config(world, text="\u200b\u00ad"))
    with pytest.raises(ConfigError, match="expected a case of the index"):
        retrieve(config(world, text="", like="nobody"))
