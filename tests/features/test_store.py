"""Stores: one configuration, done told by names, nothing overwritten."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from mstar.errors import FeatureError, ManifestError, StoreMismatchError
from mstar.features.files import FeatureProvenance
from mstar.features.store import FeatureStore, GridStore
from mstar.features.store_record import read_record
from support.feature_files import (
    CONFIG,
    assert_same_grid,
    toy_features,
    toy_grid,
    toy_provenance,
)


def provenance(store: FeatureStore) -> FeatureProvenance:
    return toy_provenance(store.fingerprint)


def add(store: FeatureStore, slide_id: str, num: int = 12, seed: int = 0) -> bool:
    grid, features = toy_grid(slide_id, num), toy_features(num, seed=seed)
    return store.write(slide_id, grid, features, provenance(store))


def test_write_read_and_list(tmp_path: Path) -> None:
    store = FeatureStore.open_or_create(str(tmp_path / "F"), CONFIG)
    ids = ["a", "folder/a", "folder/deep er/ü ñ", "empty"]
    assert all(add(store, slide_id, num=0 if slide_id == "empty" else 12) for slide_id in ids)
    assert sorted(store.done_ids()) == sorted(ids)
    assert store.has("folder/a")
    assert not store.has("b")
    found = store.read("folder/a")
    np.testing.assert_array_equal(found.features, toy_features())
    assert_same_grid(found.grid, toy_grid("folder/a"))
    assert (tmp_path / "F/folder/a.h5").is_file()


def test_reopening_joins_and_another_configuration_is_refused_by_field(tmp_path: Path) -> None:
    root = str(tmp_path / "F")
    store = FeatureStore.open_or_create(root, CONFIG)
    before = (tmp_path / "F/store.json").read_bytes()
    assert FeatureStore.open_or_create(root, CONFIG) == store
    other = CONFIG | {"encoder": "uni", "grid": {"mode": "prepath"}}
    with pytest.raises(StoreMismatchError) as caught:
        FeatureStore.open_or_create(root, other)
    text = str(caught.value)
    assert "encoder: expected 'uni', found 'vit_tiny'" in text
    assert "grid.mode: expected 'prepath', found 'exact'" in text
    assert "another --out" in text
    assert "patch_px" not in text
    assert (tmp_path / "F/store.json").read_bytes() == before


def test_an_open_store_is_for_reading(tmp_path: Path) -> None:
    root = str(tmp_path / "F")
    with pytest.raises(FeatureError, match=r"store\.json: expected a store"):
        FeatureStore.open(root)
    add(FeatureStore.open_or_create(root, CONFIG), "a")
    store = FeatureStore.open(root)
    assert list(store.done_ids()) == ["a"]
    with pytest.raises(FeatureError, match="opened for reading"):
        add(store, "b")
    with pytest.raises(FeatureError, match="expected grids, got features"):
        GridStore.open(root)


def test_a_folder_of_strange_h5_files_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/x.h5").write_bytes(b"someone's work")
    with pytest.raises(StoreMismatchError, match=r"sub/x\.h5 without store\.json"):
        FeatureStore.open_or_create(str(tmp_path), CONFIG)
    assert not (tmp_path / "store.json").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema_version": 99}', '{"schema_version": 1}']
)
def test_a_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(FeatureError, match=r"store\.json"):
        FeatureStore.open_or_create(str(tmp_path), CONFIG)


def test_a_finished_slide_is_never_touched(tmp_path: Path) -> None:
    store = FeatureStore.open_or_create(str(tmp_path), CONFIG)
    assert add(store, "a")
    before = (tmp_path / "a.h5").read_bytes()
    assert not add(store, "a")
    assert not add(store, "a", seed=1)
    assert (tmp_path / "a.h5").read_bytes() == before


def test_of_many_writers_one_wins(tmp_path: Path) -> None:
    results: list[bool] = []
    start = threading.Barrier(6)

    def work() -> None:
        start.wait()
        store = FeatureStore.open_or_create(str(tmp_path / "F"), CONFIG)
        results.append(add(store, "a"))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 5 + [True]
    assert not list(FeatureStore.open(str(tmp_path / "F")).verify())


def test_the_listing_shows_slides_only(tmp_path: Path) -> None:
    store = FeatureStore.open_or_create(str(tmp_path), CONFIG)
    add(store, "a")
    store.write_part("b", 0, 5, toy_features(5), grid=toy_grid("b"))
    store.grids({"grid": 1}).write("b", toy_grid("b"))
    for name in ("failures/c.json", "failures/c.h5", ".hidden.h5", "x/.tmp-1.h5", "_state/d.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert list(store.done_ids()) == ["a"]
    ours = {p.name for p in tmp_path.rglob("*.h5")} - {"c.h5", ".hidden.h5", ".tmp-1.h5", "d.h5"}
    assert ours == {"a.h5"}


@pytest.mark.parametrize(
    "slide_id", ["../evil", "a/../../b", "/abs", "_state/x", "failures/x", ".hidden", "a/.b"]
)
def test_ids_that_would_leave_or_hide_are_refused(tmp_path: Path, slide_id: str) -> None:
    store = FeatureStore.open_or_create(str(tmp_path / "F"), CONFIG)
    with pytest.raises(ManifestError):
        add(store, slide_id)
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"store.json"}


def test_features_of_another_configuration_cannot_be_written(tmp_path: Path) -> None:
    store = FeatureStore.open_or_create(str(tmp_path), CONFIG)
    with pytest.raises(FeatureError, match="a: fingerprint"):
        store.write("a", toy_grid("a"), toy_features(), toy_provenance("f" * 16))


def test_verify_finds_what_the_listing_cannot(tmp_path: Path) -> None:
    store = FeatureStore.open_or_create(str(tmp_path), CONFIG)
    for slide_id in ("good", "cut", "renamed", "foreign"):
        add(store, slide_id)
    cut = tmp_path / "cut.h5"
    cut.write_bytes(cut.read_bytes()[:-9])
    (tmp_path / "renamed.h5").rename(tmp_path / "other.h5")
    other = FeatureStore.open_or_create(str(tmp_path / "../G"), CONFIG | {"encoder": "uni"})
    add(other, "foreign")
    (tmp_path / "../G/foreign.h5").replace(tmp_path / "foreign.h5")
    problems = dict(store.verify())
    assert problems.keys() == {"cut", "other", "foreign"}
    assert "truncated" in problems["cut"]
    assert "renamed" in problems["other"]
    assert "fingerprint" in problems["foreign"]


def test_parts_of_a_store_become_the_slide(tmp_path: Path) -> None:
    store = FeatureStore.open_or_create(str(tmp_path / "F"), CONFIG)
    whole = FeatureStore.open_or_create(str(tmp_path / "W"), CONFIG)
    grid, rows = toy_grid("x/a"), toy_features()
    for start in (6, 0):
        assert not store.complete("x/a", 12)
        store.write_part("x/a", start, start + 6, rows[start : start + 6], grid=grid)
    assert store.complete("x/a", 12)
    assert [(p.start, p.stop) for p in store.parts("x/a")] == [(0, 6), (6, 12)]
    np.testing.assert_array_equal(store.read_part("x/a", 6, 12).rows, rows[6:])
    found = store.assemble(grid, dim=8, dtype="float16")
    assert store.write("x/a", grid, found.features, provenance(store))
    assert store.drop_parts("x/a") == 2
    add(whole, "x/a")
    assert (tmp_path / "F/x/a.h5").read_bytes() == (tmp_path / "W/x/a.h5").read_bytes()


def test_grid_store_keeps_grids_under_its_suffix(tmp_path: Path) -> None:
    grids = GridStore.open_or_create(str(tmp_path / "G"), {"patch_px": 256}, suffix=".hdf5")
    assert grids.write("f/a", toy_grid("f/a"))
    assert not grids.write("f/a", toy_grid("f/a"))
    assert (tmp_path / "G/f/a.hdf5").is_file()
    again = GridStore.open(str(tmp_path / "G"))
    assert list(again.done_ids()) == ["f/a"]
    assert again.has("f/a")
    assert_same_grid(again.read("f/a"), toy_grid("f/a"))
    with pytest.raises(StoreMismatchError, match="suffix"):
        GridStore.open_or_create(str(tmp_path / "G"), {"patch_px": 256}, suffix=".h5")


def test_the_record_is_the_configuration_as_json(tmp_path: Path) -> None:
    store = FeatureStore.open_or_create(str(tmp_path), CONFIG)
    content = json.loads((tmp_path / "store.json").read_text())
    assert content["config"] == CONFIG
    assert content["fingerprint"] == store.fingerprint
    assert read_record(str(tmp_path)) == store.record
