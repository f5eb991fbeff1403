"""Packed bags: the stored rows, written once, mapped by all, evicted when nobody holds them."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from mstar.data.label_tables import Sample
from mstar.downstream import bag_files, bags
from mstar.downstream.bags import load_bags
from mstar.errors import FeatureError
from mstar.features.store import FeatureStore
from support.planted_tasks import DIM, write_store


def sample(case_id: str, *slides: str) -> Sample:
    return Sample(case_id=case_id, slides=slides, label=0, row=1, patient=case_id)


def rows(seed: int, num: int, dtype: str = "float16") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num, DIM)).astype(dtype)


@pytest.fixture
def slides() -> dict[str, np.ndarray]:
    return {"a": rows(0, 3), "b/c": rows(1, 5), "d": rows(2, 1), "empty": rows(3, 0)}


@pytest.fixture
def store(tmp_path: Path, slides: dict[str, np.ndarray]) -> FeatureStore:
    return write_store(tmp_path / "F", slides)


SAMPLES = (sample("x", "b/c", "a"), sample("y", "d"), sample("z", "empty", "a"))


def test_bags_are_the_stored_rows_in_the_order_of_slides(tmp_path, store, slides) -> None:
    packed = load_bags(SAMPLES, store, cache_root=str(tmp_path / "c"))
    assert packed.ids == ("x", "y", "z")
    assert packed.sizes().tolist() == [8, 1, 3]
    np.testing.assert_array_equal(packed.bag(0), np.concatenate([slides["b/c"], slides["a"]]))
    np.testing.assert_array_equal(packed.bag(1), slides["d"])
    np.testing.assert_array_equal(packed.bag(2), slides["a"])
    assert packed.x.dtype == np.float16
    assert packed.dim == DIM


def test_float32_features_are_cast(tmp_path) -> None:
    values = rows(0, 4, "float32")
    store = write_store(tmp_path / "F", {"a": values})
    packed = load_bags([sample("x", "a")], [store], cache_root=str(tmp_path / "c"))
    np.testing.assert_array_equal(packed.bag(0), values.astype(np.float16))


def test_a_value_beyond_float16_is_named(tmp_path) -> None:
    values = rows(0, 4, "float32")
    values[2, 1] = 1e6
    store = write_store(tmp_path / "F", {"a": values})
    with pytest.raises(FeatureError, match=r"slide a: features, row 2"):
        load_bags([sample("x", "a")], store, cache_root=str(tmp_path / "c"))
    assert not list((tmp_path / "c").glob("*.bags"))


def test_the_second_call_maps_the_same_file(tmp_path, store, monkeypatch) -> None:
    first = load_bags(SAMPLES, store, cache_root=str(tmp_path / "c"))
    monkeypatch.setattr(bags, "_pack", lambda *a: pytest.fail("packed again"))
    second = load_bags(SAMPLES, store, cache_root=str(tmp_path / "c"))
    assert second.path == first.path
    assert second.digest == first.digest
    np.testing.assert_array_equal(second.x, first.x)


def test_of_many_at_once_one_packs(tmp_path, store, monkeypatch) -> None:
    packed, count = bags._pack, []

    def counting(*arguments):
        count.append(1)
        packed(*arguments)

    monkeypatch.setattr(bags, "_pack", counting)
    found = []
    work = [
        threading.Thread(
            target=lambda: found.append(load_bags(SAMPLES, store, cache_root=str(tmp_path / "c")))
        )
        for _ in range(6)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(found) == 6
    assert len(count) == 1


def test_features_made_again_are_packed_again(tmp_path, store, slides) -> None:
    first = load_bags(SAMPLES, store, cache_root=str(tmp_path / "c"))
    (tmp_path / "F/d.h5").unlink()
    write_store(tmp_path / "F", {"d": slides["d"] + 1})
    second = load_bags(SAMPLES, store, cache_root=str(tmp_path / "c"))
    assert second.path != first.path
    assert second.digest != first.digest
    np.testing.assert_array_equal(second.bag(1), slides["d"] + 1)


def test_the_digest_is_of_the_features_wherever_they_lie(tmp_path, store, slides) -> None:
    (tmp_path / "other").mkdir()
    elsewhere = write_store(tmp_path / "other/F", slides)
    one = load_bags(SAMPLES, store, cache_root=str(tmp_path / "c"))
    two = load_bags(SAMPLES, elsewhere, cache_root=str(tmp_path / "c"))
    assert one.digest == two.digest


def test_another_process_maps_the_file_anew(tmp_path, store) -> None:
    packed = load_bags(SAMPLES, store, cache_root=str(tmp_path / "c"))
    again = pickle.loads(pickle.dumps(packed))
    assert again.path == packed.path
    np.testing.assert_array_equal(again.x, packed.x)


def test_files_that_are_held_stay_and_others_make_room(tmp_path, store) -> None:
    root = tmp_path / "c"
    held = load_bags(SAMPLES, store, cache_root=str(root))
    other = load_bags(SAMPLES[:1], store, cache_root=str(root))
    path = other.path
    del other
    assert bag_files.drop_unused(root) > 0
    assert held.path.exists()
    assert not path.exists()


def test_small_bags_lie_in_shared_memory_and_too_large_ones_on_disk(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(bag_files, "SHARED_MEMORY", tmp_path)
    monkeypatch.setenv("MSTAR_CACHE_DIR", str(tmp_path / "disk"))
    assert bag_files.choose_root(1000, "k").parent == tmp_path
    assert bag_files.choose_root(1 << 60, "k") == tmp_path / "disk/bags"


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ((sample("x", "a", "gone"),), r"case x, slide gone: expected features .* got none"),
        ((sample("x", "empty"),), r"case x: expected patches, got none"),
    ],
)
def test_bags_without_features_are_named(tmp_path, store, samples, words) -> None:
    with pytest.raises(FeatureError, match=words):
        load_bags(samples, store, cache_root=str(tmp_path / "c"))


def test_a_slide_in_two_stores_is_refused(tmp_path, store) -> None:
    (tmp_path / "two").mkdir()
    other = write_store(tmp_path / "two/F", {"a": rows(9, 2)})
    with pytest.raises(FeatureError, match="slide a: expected it in one store"):
        load_bags(SAMPLES[:1], [store, other], cache_root=str(tmp_path / "c"))


def test_vectors_of_two_lengths_are_refused(tmp_path, store) -> None:
    (tmp_path / "F/d.h5").unlink()
    write_store(tmp_path / "F", {"d": rows(0, 2)[:, :4].copy()})
    with pytest.raises(FeatureError, match=r"one length of vectors, got 16 .* 4 of slide d"):
        load_bags(SAMPLES, store, cache_root=str(tmp_path / "c"))
