"""`mstar retrieve` and `mstar heatmap`: what was planted comes first."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from mstar.downstream.language.encoders import SlideSide, TextSide
from mstar.downstream.language.heatmap import ranked
from mstar.downstream.language.heatmap_job import HeatmapConfig
from mstar.downstream.language.heatmap_job import run as run_heatmap
from mstar.downstream.language.retrieve_job import RetrieveConfig, retrieve, run
from mstar.errors import ConfigError, FeatureError
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
    pictures = list((tmp_path / "heatmaps").glob("*.png"))
    assert len(pictures) == len(found["hits"][0]["slides"])
    assert pictures[0].read_bytes()[:4] == b"\x89PNG"


def test_a_heatmap_has_a_tile_a_patch_coloured_by_rank(world: World, tmp_path: Path) -> None:
    asked = HeatmapConfig(
        features=f"enc={world.root}/F", stage1=f"{world.root}/S1", stage2=f"{world.root}/S2",
        slides=(f"{case_id(0)}-0",), text="pale stroma", minus="solid gland", out=str(tmp_path),
    )  # fmt: skip
    assert run_heatmap(asked) == 0
    tiles = json.loads(gzip.decompress((tmp_path / f"{case_id(0)}-0.geojson.gz").read_bytes()))
    grid = FeatureStore.open(f"{world.root}/F").read(f"{case_id(0)}-0").grid
    assert len(tiles["features"]) == len(grid)
    cosines = np.array([f["properties"]["measurements"]["similarity"] for f in tiles["features"]])
    best = tiles["features"][int(cosines.argmax())]["properties"]["classification"]
    worst = tiles["features"][int(cosines.argmin())]["properties"]["classification"]
    assert (best["name"], worst["name"]) == ("similarity 10 of 10", "similarity 1 of 10")
    assert best["color"] != worst["color"]
    assert ranked(np.array([0.3, 0.1, 0.2], np.float32)).tolist() == pytest.approx(
        [2 / 3, 0, 1 / 3]
    )
    with pytest.raises(FeatureError, match="expected a slide of"):
        run_heatmap(
            HeatmapConfig(**{n: getattr(asked, n) for n in asked.__slots__} | {"slides": ("x",)})
        )


def test_bad_questions_are_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="--text or --like"):
        config(world, text="")
    with pytest.raises(ConfigError, match="--text or --like"):
        config(world, like="x")
    with pytest.raises(ConfigError, match="one token or more"):
        retrieve(config(world, text="\u200b\u00ad"))
    with pytest.raises(ConfigError, match="expected a case of the index"):
        retrieve(config(world, text="", like="nobody"))
