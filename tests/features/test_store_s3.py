"""The same stores and exchanges on a real S3 server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mstar.errors import FeatureError, StoreMismatchError
from mstar.features.exporting import export_store
from mstar.features.importing import import_layout
from mstar.features.store import FeatureStore
from support.feature_files import (
    CONFIG,
    assert_same_grid,
    toy_features,
    toy_grid,
    toy_provenance,
)
from support.s3 import make_bucket


@pytest.fixture(scope="module")
def bucket(s3_server: str) -> str:
    """A bucket of this module's own."""
    return make_bucket("features")


def fill(root: str) -> FeatureStore:
    store = FeatureStore.open_or_create(root, CONFIG)
    for slide_id in ("a", "site 1/ü"):
        provenance = toy_provenance(store.fingerprint)
        assert store.write(slide_id, toy_grid(slide_id), toy_features(), provenance)
    return store


def test_a_store_in_a_bucket_equals_one_on_disk(bucket: str, tmp_path: Path) -> None:
    remote, local = fill(f"{bucket}/equal"), fill(str(tmp_path / "F"))
    assert sorted(remote.done_ids()) == sorted(local.done_ids()) == ["a", "site 1/ü"]
    for slide_id in local.done_ids():
        found = remote.read(slide_id)
        np.testing.assert_array_equal(found.features, toy_features())
        assert_same_grid(found.grid, local.read(slide_id).grid)
    assert not remote.write("a", toy_grid("a"), toy_features(), toy_provenance(remote.fingerprint))
    assert not list(remote.verify())
    with pytest.raises(StoreMismatchError, match="encoder"):
        FeatureStore.open_or_create(remote.root, CONFIG | {"encoder": "uni"})
    with pytest.raises(FeatureError, match="no such file"):
        remote.read("absent")


def test_parts_in_a_bucket(bucket: str) -> None:
    store = FeatureStore.open_or_create(f"{bucket}/parts", CONFIG)
    rows = toy_features()
    store.write_part("x/a", 0, 7, rows[:7], grid=toy_grid("x/a"))
    assert not store.complete("x/a", 12)
    store.write_part("x/a", 7, 12, rows[7:], grid=toy_grid("x/a"))
    assert store.complete("x/a", 12)
    np.testing.assert_array_equal(
        store.assemble(toy_grid("x/a"), dim=8, dtype="float16").features, rows
    )
    removed = store.collect_stale(is_done=lambda slide_id: True, grid_of=lambda slide_id: None)
    assert removed == 2
    assert store.parts("x/a") == []
    assert list(store.done_ids()) == []


@pytest.mark.parametrize("layout", ["clam", "trident", "stamp"])
def test_exchange_through_buckets(bucket: str, layout: str) -> None:
    store = fill(f"{bucket}/from-{layout}")
    assert export_store(store.root, layout, f"{bucket}/as-{layout}").written == 2
    settings = {"encoder": "vit_tiny"} if layout == "clam" else {}
    report = import_layout(f"{bucket}/as-{layout}", layout, f"{bucket}/back-{layout}", **settings)
    assert (report.written, report.failures) == (2, {})
    back = FeatureStore.open(f"{bucket}/back-{layout}")
    assert_rows = np.testing.assert_array_equal
    assert_rows(back.read("site 1/ü").features.astype(np.float16), toy_features())
