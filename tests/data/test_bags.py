"""Bags: every row once, the same draw everywhere, filled as asked, and bad features named."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.data.bag_rows import partition_rows, sample_rows
from mstar.data.bags import NO_ROW, BagConfig, BagReader, make_buffer
from mstar.errors import ConfigError, FeatureError
from mstar.features.files import write_features
from mstar.features.store import FeatureStore
from support.feature_files import CONFIG, toy_features, toy_grid, toy_provenance
from support.s3 import make_bucket

PINNED_DRAW = (51, 77, 107, 217, 563)
PINNED_WINDOWS = [[1, 2, 3], [0, 5], [4, 6]]
SLIDES = {"a": 30, "b": 0, "folder/c": 7, "d": 50}


def values_of(slide: str, num: int, dim: int = 8) -> np.ndarray:
    return toy_features(num, dim, seed=sum(slide.encode()))


def make_store(root: str | Path, slides: dict[str, int] = SLIDES, dim: int = 8) -> str:
    store = FeatureStore.open_or_create(str(root), CONFIG)
    for slide, num in slides.items():
        provenance = toy_provenance(store.fingerprint)
        store.write(slide, toy_grid(slide, num), values_of(slide, num, dim), provenance)
    return str(root)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path / "F")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 500), st.integers(1, 80), st.integers(0, 3), st.text(max_size=5))
def test_windows_hold_every_row_exactly_once(rows: int, window: int, epoch: int, case: str) -> None:
    parts = partition_rows(rows, window, seed=1, case_id=case, epoch=epoch)
    sizes = [len(part) for part in parts]
    assert np.array_equal(np.sort(np.concatenate([[], *parts])), np.arange(rows))
    assert len(parts) == -(-rows // window)
    assert max(sizes, default=0) <= window
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert all((np.diff(part) > 0).all() for part in parts)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 500), st.integers(1, 600), st.integers(0, 3))
def test_a_draw_is_exact_ascending_and_without_repeats(rows: int, size: int, epoch: int) -> None:
    drawn = sample_rows(rows, size, seed=1, case_id="x", epoch=epoch)
    assert len(drawn) == min(rows, size)
    assert (np.diff(drawn) > 0).all()
    assert set(drawn.tolist()) <= set(range(rows))


def test_draws_are_even() -> None:
    """Each row comes as often as every other: chi-square of 2,000 draws, 5 standard deviations."""
    counts = np.zeros(40)
    for epoch in range(2000):
        counts[sample_rows(40, 10, seed=0, case_id="x", epoch=epoch)] += 1
    deviation = (counts - 500) / np.sqrt(2000 * 0.25 * 0.75)
    assert np.abs(deviation).max() < 5
    assert (deviation**2).sum() < 39 + 5 * np.sqrt(2 * 39)


def test_draws_depend_on_seed_case_and_epoch_and_are_pinned() -> None:
    """The literal rows: another numpy, another machine or another order of work changes none."""
    draws = [
        tuple(sample_rows(1000, 5, seed=seed, case_id=case, epoch=epoch).tolist())
        for seed, case, epoch in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    ]
    assert len(set(draws)) == 4
    assert draws[0] == PINNED_DRAW
    windows = partition_rows(7, 3, seed=0, case_id="a")
    assert [window.tolist() for window in windows] == PINNED_WINDOWS


def test_a_bag_is_rows_of_the_concatenated_slides(store: str) -> None:
    slides = tuple(SLIDES)
    bag = BagReader(store, BagConfig(size=40)).read("case", slides, epoch=2)
    together = np.concatenate([values_of(slide, num) for slide, num in SLIDES.items()])
    rows = sample_rows(87, 40, seed=0, case_id="case", epoch=2)
    np.testing.assert_array_equal(bag.features, together[rows])
    assert bag.features.dtype == np.float16
    assert bag.mask.all()
    assert bag.num_rows == 87
    for value, slide, row in zip(bag.features, bag.slide_index, bag.row_index, strict=True):
        name = slides[slide]
        np.testing.assert_array_equal(value, values_of(name, SLIDES[name])[row])


def test_all_rows_when_no_size_is_asked(store: str) -> None:
    bag = BagReader(store, BagConfig(size=None)).read("case", ("d", "a"))
    np.testing.assert_array_equal(
        bag.features, np.concatenate([values_of("d", 50), values_of("a", 30)])
    )
    assert bag.mask.all()


@pytest.mark.parametrize("fill", ["mean", "masked", "repeat"])
def test_smaller_cases_are_filled_up(store: str, fill: Any) -> None:
    values = np.concatenate([values_of("a", 30), values_of("folder/c", 7)])
    bag = BagReader(store, BagConfig(size=100, fill=fill)).read("case", ("a", "folder/c"))
    np.testing.assert_array_equal(bag.features[:37], values)
    rest = bag.features[37:]
    if fill == "repeat":
        assert bag.mask.all()
        np.testing.assert_array_equal(bag.features, np.resize(values, (100, 8)))
        np.testing.assert_array_equal(bag.row_index[37:74], bag.row_index[:37])
        return
    assert bag.mask.tolist() == [True] * 37 + [False] * 63
    assert (bag.slide_index[37:] == NO_ROW).all()
    assert (bag.row_index[37:] == NO_ROW).all()
    expected = values.astype(np.float64).mean(axis=0) if fill == "mean" else np.zeros(8)
    np.testing.assert_array_equal(rest, np.tile(expected.astype(np.float16), (63, 1)))


def test_the_mean_keeps_its_digits(tmp_path: Path) -> None:
    """Adding up in float16 would stop at 2,048."""
    store = FeatureStore.open_or_create(str(tmp_path / "F"), CONFIG)
    ones = np.ones((3000, 2), np.float16)
    store.write("s", toy_grid("s", 3000), ones, toy_provenance(store.fingerprint))
    bag = BagReader(store.root, BagConfig(size=4096)).read("case", ("s",))
    assert (bag.features == 1).all()


def test_windows_of_a_case_cover_it(store: str) -> None:
    slides = tuple(SLIDES)
    windows = list(BagReader(store, BagConfig(size=40)).windows("case", slides))
    assert [len(window.features) for window in windows] == [29, 29, 29]
    seen = sorted(
        (int(slide), int(row))
        for window in windows
        for slide, row in zip(window.slide_index, window.row_index, strict=True)
    )
    assert seen == [(i, r) for i, num in enumerate(SLIDES.values()) for r in range(num)]
    for window in windows:
        assert window.mask.all()
        for value, slide, row in zip(
            window.features, window.slide_index, window.row_index, strict=True
        ):
            name = slides[slide]
            np.testing.assert_array_equal(value, values_of(name, SLIDES[name])[row])


def bag_bytes(store: str, epoch: int) -> bytes:
    return read_bytes(BagReader(store, BagConfig(size=20)), epoch)


def read_bytes(reader: BagReader, epoch: int) -> bytes:
    bag = reader.read("case", ("a", "d"), epoch=epoch)
    return bag.features.tobytes() + bag.slide_index.tobytes() + bag.row_index.tobytes()


def test_other_workers_and_restarts_read_the_same(store: str) -> None:
    """A reader that read other things before, a pickled one, and other processes agree."""
    expected = [bag_bytes(store, epoch) for epoch in range(3)]
    assert len(set(expected)) == 3
    reader = BagReader(store, BagConfig(size=20))
    reader.read("other", ("d",))
    assert [read_bytes(reader, epoch) for epoch in (2, 0, 1)] == [expected[e] for e in (2, 0, 1)]
    assert read_bytes(pickle.loads(pickle.dumps(reader)), 1) == expected[1]
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawned) as pool:  # unlike Pool it ends where a worker cannot start
        assert list(pool.map(bag_bytes, [store] * 3, range(3))) == expected
    script = (
        "import sys, hashlib; from mstar.data.bags import *;"
        "b = BagReader(sys.argv[1], BagConfig(size=20)).read('case', ('a', 'd'), epoch=1);"
        "d = b.features.tobytes() + b.slide_index.tobytes() + b.row_index.tobytes();"
        "print(d.hex())"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, store], capture_output=True, text=True, check=True
    )
    assert bytes.fromhex(found.stdout.strip()) == expected[1]


def test_a_buffer_is_filled_in_place(store: str) -> None:
    reader = BagReader(store, BagConfig(size=40))
    buffer = make_buffer(2, 40, 8)
    bags = [reader.read(case, ("a", "d"), out=buffer[i]) for i, case in enumerate("xy")]
    for index, bag in enumerate(bags):
        assert np.shares_memory(bag.features, buffer[index])
        fresh = reader.read("xy"[index], ("a", "d"))
        np.testing.assert_array_equal(fresh.features, buffer[index])
    for wrong in (buffer[0, :39], buffer[0].astype(np.float32), np.asfortranarray(buffer[0])):
        with pytest.raises(FeatureError, match="bag buffer: expected contiguous float16"):
            reader.read("x", ("a", "d"), out=wrong)


def test_views_are_the_files_own_pages(store: str) -> None:
    views = BagReader(store).views("case", ("a", "d"))
    np.testing.assert_array_equal(views[1], values_of("d", 50))
    assert all(isinstance(view, np.memmap) and not view.flags.writeable for view in views)


def test_a_bounded_number_of_files_is_held(tmp_path: Path) -> None:
    slides = {f"s{number}": 3 for number in range(12)}
    reader = BagReader(make_store(tmp_path / "F", slides), BagConfig(size=40), max_open=4)
    before = len(list(Path("/proc/self/fd").iterdir()))
    first = reader.read("case", tuple(slides)).features.copy()
    assert reader.num_open == 4
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 4
    np.testing.assert_array_equal(reader.read("case", tuple(slides)).features, first)
    reader.close()
    assert reader.num_open == 0
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    np.testing.assert_array_equal(reader.read("case", tuple(slides)).features, first)


def test_only_slides_with_rows_in_the_draw_are_mapped(store: str) -> None:
    """Known slides without a drawn row stay closed."""
    reader = BagReader(store, BagConfig(size=1))
    reader.num_rows("case", ("a", "d"))
    reader.close()
    reader.read("case", ("a", "d"))
    assert reader.num_open == 1


def test_a_missing_slide_is_named(store: str) -> None:
    with pytest.raises(FeatureError, match=r"case P1, slide gone: expected features in .*1 of its"):
        BagReader(store).read("P1", ("a", "gone"))


def test_missing_slides_may_be_left_out_and_are_counted(store: str) -> None:
    reader = BagReader(store, BagConfig(size=20, missing="skip"))
    bag = reader.read("P1", ("gone", "a", "lost"))
    assert bag.missing == ("gone", "lost")
    assert reader.missing_slides == ("gone", "lost")
    assert set(bag.slide_index.tolist()) == {1}
    same = BagReader(store, BagConfig(size=20)).read("P1", ("a",))
    np.testing.assert_array_equal(bag.features, same.features)
    with pytest.raises(
        FeatureError, match=r"case P2: expected patches, got none in its 1 slides \(1"
    ):
        reader.read("P2", ("gone",))


@pytest.mark.parametrize("slides", [(), ("b",)])
def test_an_empty_case_is_named(store: str, slides: tuple[str, ...]) -> None:
    with pytest.raises(FeatureError, match="case P1: expected patches, got none"):
        BagReader(store).read("P1", slides)


def test_a_slide_named_twice_is_refused(store: str) -> None:
    with pytest.raises(FeatureError, match="case P1: a slide comes twice"):
        BagReader(store).read("P1", ("a", "a"))


@pytest.mark.parametrize("other", [{"dim": 9}, {"dtype": "float32"}])
def test_slides_that_differ_in_kind_are_named(store: str, other: dict[str, Any]) -> None:
    features = toy_features(5, **({"dim": 8} | other))
    path = Path(store) / "odd.h5"
    write_features(path, toy_grid("odd", 5), features, toy_provenance())
    with pytest.raises(
        FeatureError, match="case P1, slide odd: features: expected 8 dims of float16"
    ):
        BagReader(store).read("P1", ("a", "odd"))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(tmp_path: Path, dtype: str, bad: float) -> None:
    """Writing refuses them, so they are put into the file's bytes afterwards."""
    config = CONFIG | {"dtype": dtype}
    store = FeatureStore.open_or_create(str(tmp_path / "F"), config)
    values = toy_features(40, 8, dtype)
    provenance = toy_provenance(store.fingerprint)
    store.write("first", toy_grid("first", 40), values, provenance)
    store.write("s", toy_grid("s", 40), values, provenance)
    broken = values.copy()
    broken[17, 3] = bad
    path = Path(store.slide_uri("s"))
    data = path.read_bytes()
    assert data.count(values.tobytes()) == 1
    path.write_bytes(data.replace(values.tobytes(), broken.tobytes()))
    with pytest.raises(FeatureError, match="case P1, slide s: features, row 17: expected finite"):
        BagReader(store.root, BagConfig(size=None)).read("P1", ("first", "s"))
    unchecked = BagReader(store.root, BagConfig(size=None, check_finite=False))
    assert not np.isfinite(unchecked.read("P1", ("first", "s")).features).all()


def test_the_largest_values_are_finite(tmp_path: Path) -> None:
    store = FeatureStore.open_or_create(str(tmp_path / "F"), CONFIG)
    values = np.array([[65504, -65504, 0.0, -0.0]], np.float16)
    store.write("s", toy_grid("s", 1), values, toy_provenance(store.fingerprint))
    bag = BagReader(store.root, BagConfig(size=3)).read("P1", ("s",))
    np.testing.assert_array_equal(bag.features[2], values[0])


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bag size: expected at least 1"):
        BagConfig(size=0)
    with pytest.raises(FeatureError, match=r"expected a store"):
        BagReader(str(tmp_path))


def test_pinned_memory_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="pinned bags: expected a CUDA device"):
        make_buffer(1, 2, 3, pinned=True)


@pytest.mark.gpu
def test_pinned_memory_is_pinned_and_copies_right(store: str) -> None:
    import torch

    buffer = make_buffer(1, 40, 8, pinned=True)
    assert torch.from_numpy(buffer).is_pinned()
    bag = BagReader(store, BagConfig(size=40)).read("case", ("a", "d"), out=buffer[0])
    copied = torch.from_numpy(bag.features).to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    np.testing.assert_array_equal(copied.cpu().numpy(), bag.features)


def test_a_remote_store_is_read_through_the_cache(s3_server: str, tmp_path: Path) -> None:
    root = make_store(make_bucket("mstar-bags") + "/F", {"a": 30, "d": 50})
    cache = str(tmp_path / "cache")
    reader = BagReader(root, BagConfig(size=20), cache_dir=cache, max_open=1)
    bag = reader.read("case", ("a", "d"), epoch=1)
    local = BagReader(make_store(tmp_path / "F"), BagConfig(size=20))
    np.testing.assert_array_equal(bag.features, local.read("case", ("a", "d"), epoch=1).features)
    entries = len(list((tmp_path / "cache" / "entries").iterdir()))
    assert entries == 2
    again = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(again.read("case", ("a", "d"), epoch=1).features, bag.features)
    assert len(list((tmp_path / "cache" / "entries").iterdir())) == 2
    with pytest.raises(FeatureError, match="slide gone: expected features in s3://mstar-bags/F"):
        reader.read("case", ("gone",))
