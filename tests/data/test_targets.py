"""The store of targets: what is written is what is read, once, whole, and of one configuration."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.data.target_files import SlideTargets, TargetProvenance, read_targets, write_targets
from mstar.data.targets import TargetStore
from mstar.errors import FeatureError, ManifestError, StoreMismatchError

CONFIG = {"aggregator": {"sha256": "ab" * 32, "mode": "public"}, "target_dim": 8, "seed": 0}


def provenance(**fields: object) -> TargetProvenance:
    settings: dict[str, object] = {
        "fingerprint": "0123456789abcdef",
        "aggregator_sha256": "ab" * 32,
        "mode": "public",
        "attention": "nystrom",
        "precision": "float32",
        "features_fingerprint": "fedcba9876543210",
        "encoder": "vit_tiny",
        "weights_sha256": "cd" * 32,
        "coverage": "all",
        "window": 4096,
        "seed": 0,
    }
    return TargetProvenance(**{**settings, **fields})  # type: ignore[arg-type]


def slide(
    num: int = 6, *, patches: int = 10, slide_id: str = "s1", **fields: object
) -> SlideTargets:
    rng = np.random.default_rng(num)
    rows = np.sort(rng.permutation(patches)[:num]).astype(np.int64)
    made = SlideTargets(
        slide_id=slide_id,
        case_id="case 1",
        targets=rng.standard_normal((num, 8)).astype(np.float16),
        rows=rows,
        coords=np.stack([rows * 512, rows * 3], axis=1),
        num_patches=patches,
        grid_sha256="ef" * 32,
        provenance=provenance(),
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def opened(tmp_path: Path) -> TargetStore:
    return TargetStore.open_or_create(str(tmp_path), CONFIG)


def stored(store: TargetStore, **fields: object) -> SlideTargets:
    """A slide as this store takes it."""
    made = slide(**fields)  # type: ignore[arg-type]
    return replace(made, provenance=provenance(fingerprint=store.fingerprint))


def assert_same(left: SlideTargets, right: SlideTargets) -> None:
    for name in SlideTargets.__slots__:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    assert left.targets.dtype == right.targets.dtype == np.float16


@settings(max_examples=15, deadline=None)
@given(num=st.integers(0, 40), more=st.integers(0, 20))
def test_what_is_read_is_what_was_written(
    num: int, more: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("t") / "a.h5"
    made = slide(num, patches=num + more)
    write_targets(path, made)
    assert_same(read_targets(path, check="full"), made)


def test_equal_work_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_targets(tmp_path / name, slide())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_is_plain_hdf5_and_contiguous(tmp_path: Path) -> None:
    """Other tools read it without this package; rows in one piece can be mapped."""
    path, made = tmp_path / "a.h5", slide()
    write_targets(path, made)
    with h5py.File(path) as file:
        assert set(file) == {"targets", "rows", "coords"}
        assert file["targets"].chunks is None
        assert (file["targets"].dtype, file["rows"].dtype) == (np.float16, np.int64)
        assert file["targets"].attrs["aggregator_sha256"] == made.provenance.aggregator_sha256
        assert file["targets"].attrs["case_id"] == "case 1"


@pytest.mark.parametrize("value", [np.nan, np.inf, np.float32(1e6)])
def test_values_that_float16_cannot_hold_are_refused(value: float, tmp_path: Path) -> None:
    made = slide()
    with np.errstate(over="ignore"):
        made.targets[2, 5] = np.float32(value).astype(np.float16)
    with pytest.raises(FeatureError, match=rf"case 1, slide s1: target of patch {made.rows[2]}"):
        write_targets(tmp_path / "a.h5", made)
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize("rows", [[3, 1, 2], [0, 1, 1], [-1, 0, 1], [1, 2, 10]])
def test_rows_are_ascending_and_of_the_slide(rows: list[int], tmp_path: Path) -> None:
    bad = slide(3, rows=np.array(rows, np.int64))
    with pytest.raises(FeatureError, match="ascending"):
        write_targets(tmp_path / "a.h5", bad)


class TestDamage:
    """A file that is not whole or not itself is refused and named."""

    def test_truncated(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        write_targets(path, slide(40, patches=40))
        path.write_bytes(path.read_bytes()[:-900])
        with pytest.raises(FeatureError, match=r"a\.h5"):
            read_targets(path)

    def test_a_changed_byte_is_seen_by_the_full_check(self, tmp_path: Path) -> None:
        path, made = tmp_path / "a.h5", slide()
        write_targets(path, made)
        with h5py.File(path, "r+") as file:
            file["targets"][0, 0] += 1
        read_targets(path)
        with pytest.raises(FeatureError, match="digest of targets"):
            read_targets(path, check="full")

    def test_moved_coordinates(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        write_targets(path, slide())
        with h5py.File(path, "r+") as file:
            file["coords"][0, 0] += 1
        with pytest.raises(FeatureError, match="digest of coords"):
            read_targets(path)

    def test_another_type(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        write_targets(path, slide())
        with h5py.File(path, "r+") as file:
            rows = file["rows"][()].astype(np.int32)
            del file["rows"]
            file["rows"] = rows
        with pytest.raises(FeatureError, match="rows: expected int64"):
            read_targets(path)

    def test_fewer_rows_than_targets(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        write_targets(path, slide(6))
        with h5py.File(path, "r+") as file:
            rows = file["rows"][:5]
            del file["rows"]
            file["rows"] = rows
        with pytest.raises(FeatureError, match=r"targets: expected float16 of \(5, 8\)"):
            read_targets(path)

    def test_a_newer_format(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        write_targets(path, slide())
        with h5py.File(path, "r+") as file:
            file["targets"].attrs["schema_version"] = 99
        with pytest.raises(FeatureError, match="Update mstar"):
            read_targets(path)


class TestStore:
    """Done is a name in a listing; one configuration per store."""

    def test_write_list_read(self, tmp_path: Path) -> None:
        store = opened(tmp_path)
        made = [stored(store, slide_id=name) for name in ("s1", "site 1/s1", "s 2 ü")]
        assert [store.write(one) for one in made] == [True] * 3
        reader = TargetStore.open(str(tmp_path))
        assert sorted(reader.slide_ids()) == ["s 2 ü", "s1", "site 1/s1"]
        for one in made:
            assert_same(reader.read(one.slide_id, check="full"), one)
        assert reader.dim == 8
        assert list(reader.verify()) == []

    def test_a_second_write_changes_nothing(self, tmp_path: Path) -> None:
        store = opened(tmp_path)
        first = stored(store, num=6)
        assert store.write(first)
        assert not store.write(stored(store, num=4))
        assert_same(store.read("s1"), first)

    def test_another_configuration_is_refused_with_the_difference(self, tmp_path: Path) -> None:
        opened(tmp_path)
        with pytest.raises(StoreMismatchError, match="seed: expected 1, found 0"):
            TargetStore.open_or_create(str(tmp_path), {**CONFIG, "seed": 1})
        opened(tmp_path)  # the same one goes on

    def test_a_folder_that_is_no_store(self, tmp_path: Path) -> None:
        with pytest.raises(FeatureError, match="--out of `mstar targets`"):
            TargetStore.open(str(tmp_path))
        (tmp_path / "targets").mkdir()
        (tmp_path / "targets" / "stray.h5").write_bytes(b"x")
        with pytest.raises(StoreMismatchError, match="stray"):
            opened(tmp_path)

    def test_a_damaged_record(self, tmp_path: Path) -> None:
        opened(tmp_path)
        (tmp_path / "targets" / "targets.json").write_text("{")
        with pytest.raises(FeatureError, match="Restore the file"):
            TargetStore.open(str(tmp_path))

    def test_a_file_of_another_store_or_slide_is_refused(self, tmp_path: Path) -> None:
        store = opened(tmp_path)
        store.write(stored(store))
        root = tmp_path / "targets"
        (root / "s2.h5").write_bytes((root / "s1.h5").read_bytes())
        write_targets(root / "s3.h5", slide(slide_id="s3"))
        problems = dict(store.verify())
        assert set(problems) == {"s2", "s3"}
        assert "slide: expected s2, got s1" in problems["s2"]
        assert "fingerprint" in problems["s3"]

    def test_a_slide_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(FeatureError, match="no such file"):
            opened(tmp_path).read("s1")

    @pytest.mark.parametrize("slide_id", ["../x", "_state/x", "failures/x", ".x", ""])
    def test_ids_that_would_hide_or_escape(self, slide_id: str, tmp_path: Path) -> None:
        with pytest.raises(ManifestError):
            opened(tmp_path).slide_uri(slide_id)
