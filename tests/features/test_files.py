"""Grid and feature files: exact round trips, equal bytes, and errors that name what is wrong."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mstar.errors import FeatureError
from mstar.features import files
from support.feature_files import assert_same_grid, toy_features, toy_grid, toy_provenance


def write(path: Path, num: int = 12, **fields: Any) -> Path:
    files.write_features(path, toy_grid(num=num), toy_features(num), toy_provenance(), **fields)
    return path


@given(
    num=st.integers(0, 40),
    dim=st.integers(1, 33),
    dtype=st.sampled_from(["float16", "float32"]),
    slide_id=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1),
    mpp=st.floats(0.05, 10, allow_nan=False),
    seed=st.integers(0, 99),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_is_written_is_read_back_exactly(
    tmp_path: Path, num: int, dim: int, dtype: str, slide_id: str, mpp: float, seed: int
) -> None:
    grid = toy_grid(slide_id, num, mpp=mpp)
    features = toy_features(num, dim, dtype, seed)
    path = tmp_path / "x.h5"
    files.write_features(path, grid, features, toy_provenance())
    found = files.read_features(path, check="full")
    assert_same_grid(found.grid, grid)
    assert found.features.dtype == features.dtype
    np.testing.assert_array_equal(found.features, features)
    assert found.provenance == toy_provenance()
    np.testing.assert_array_equal(files.map_features(path), features)


def test_plain_h5py_sees_the_documented_layout(tmp_path: Path) -> None:
    with h5py.File(write(tmp_path / "x.h5")) as file:
        assert sorted(file) == ["coords", "features", "unreadable"]
        assert file["coords"].dtype == np.int64
        assert file["features"].dtype == np.float16
        assert file["features"].chunks is None
        assert file["features"].compression is None
        trident = {
            "patch_size": 256,
            "patch_size_level0": 512,
            "level0_magnification": 40,
            "target_magnification": 20,
            "overlap": 0,
            "name": "s1",
            "level0_width": 30_000,
            "level0_height": 20_000,
        }
        assert {key: file["coords"].attrs[key] for key in trident} == trident
        assert file["coords"].attrs["mpp"] == 0.25
        assert file["features"].attrs["encoder"] == "vit_tiny"
        assert file["features"].attrs["weights_sha256"] == "ab" * 32
        assert file["features"].attrs["dtype"] == "float16"


def test_two_writes_are_equal_byte_for_byte(tmp_path: Path) -> None:
    first = write(tmp_path / "one.h5").read_bytes()
    time.sleep(1.1)  # HDF5 counts in seconds
    (tmp_path / "elsewhere").mkdir()
    assert write(tmp_path / "elsewhere" / "two.h5").read_bytes() == first
    assert b"elsewhere" not in first
    assert str(tmp_path).encode() not in first


def test_rows_in_another_order_are_other_bytes(tmp_path: Path) -> None:
    swapped = toy_features()[::-1]
    files.write_features(tmp_path / "b.h5", toy_grid(), swapped, toy_provenance())
    assert write(tmp_path / "a.h5").read_bytes() != (tmp_path / "b.h5").read_bytes()


def test_an_empty_slide_is_an_explicit_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5", num=0)
    found = files.read_features(path, check="full")
    assert found.features.shape == (0, 8)
    assert found.grid.coords.shape == (0, 2)
    assert files.map_features(path).shape == (0, 8)


def test_unreadable_patches_are_left_out_and_kept_apart(tmp_path: Path) -> None:
    full = toy_grid()
    reasons = {7: "tile 3,4: bad JPEG", 2: "timeout: " + "x" * 100_000}
    grid, left_out = files.leave_out(full, reasons)
    path = tmp_path / "x.h5"
    files.write_features(path, grid, toy_features(10), toy_provenance(), unreadable=left_out)
    found = files.read_features(path, check="full")
    np.testing.assert_array_equal(found.unreadable.coords, full.coords[[2, 7]])
    assert found.unreadable.reasons == (reasons[2], reasons[7])
    kept = {tuple(row) for row in found.grid.coords}
    lost = {tuple(row) for row in found.unreadable.coords}
    assert kept | lost == {tuple(row) for row in full.coords}
    assert not kept & lost


def test_grid_file_is_a_feature_file_without_features(tmp_path: Path) -> None:
    files.write_grid(tmp_path / "g.h5", toy_grid())
    assert_same_grid(files.read_grid(tmp_path / "g.h5"), toy_grid())
    assert_same_grid(files.read_grid(write(tmp_path / "f.h5")), toy_grid())
    with pytest.raises(FeatureError, match="dataset `features`"):
        files.read_features(tmp_path / "g.h5")


def test_reads_from_an_open_stream_as_from_a_path(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5")
    found = files.read_features(io.BytesIO(path.read_bytes()), name="s3://b/x.h5")
    np.testing.assert_array_equal(found.features, toy_features())
    with pytest.raises(FeatureError, match=r"s3://b/x\.h5: file"):
        files.read_features(io.BytesIO(b"nonsense" * 100), name="s3://b/x.h5")


def test_map_is_read_only_and_copies_nothing(tmp_path: Path) -> None:
    rows = files.map_features(write(tmp_path / "x.h5"))
    assert isinstance(rows, np.memmap)
    assert not rows.flags.writeable


def test_read_into_fills_the_head_of_the_buffer(tmp_path: Path) -> None:
    buffer = np.full((20, 8), 9, np.float32)
    rows = files.read_into(write(tmp_path / "x.h5"), buffer)
    assert np.shares_memory(rows, buffer)
    np.testing.assert_array_equal(rows, toy_features().astype(np.float32))
    assert (buffer[12:] == 9).all()
    with pytest.raises(FeatureError, match="larger buffer"):
        files.read_into(tmp_path / "x.h5", buffer[:3])


def test_values_that_do_not_fit_are_refused_not_turned_to_inf() -> None:
    features = toy_features(dtype="float32")
    features[3, 1] = 70_000
    with pytest.raises(FeatureError, match=r"row 3.*float16 can hold, got 70000.*--dtype float32"):
        files.cast_features(features)
    assert files.cast_features(features, "float32") is features
    features[5, 0] = np.nan
    with pytest.raises(FeatureError, match="row 5"):
        files.cast_features(features, "float32")


def test_rows_must_match_the_grid(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"s1: features: expected \(12, D\).*got \(11, 8\)"):
        files.write_features(tmp_path / "x.h5", toy_grid(), toy_features(11), toy_provenance())


def edit(action: Callable[[Any], None]) -> Callable[[Path], None]:
    """A damage done through h5py."""

    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            action(file)

    return damage


def flip(key: str) -> Callable[[Any], None]:
    """A damage to the first value of a dataset."""

    def action(file: Any) -> None:
        file[key][0, 0] += 1

    return action


def remake(key: str, values: np.ndarray) -> Callable[[Any], None]:
    """Replaces a dataset, keeping its attributes."""

    def action(file: Any) -> None:
        attributes = dict(file[key].attrs)
        del file[key]
        file.create_dataset(key, data=values).attrs.update(attributes)

    return action


def set_nan(file: Any) -> None:
    file["features"][4, 2] = np.nan
    file["features"].attrs["features_sha256"] = files.hdf5.digest(file["features"][()])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-40]), "truncated or damaged"),
    "cut in half": (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "truncated"),
    "empty": (lambda p: p.write_bytes(b""), "an empty file"),
    "text": (lambda p: p.write_bytes(b"<html>503 Slow Down</html>"), "not HDF5"),
    "gone": (lambda p: p.unlink(), "no such file"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "a folder"),
    "no coords": (edit(lambda f: f.__delitem__("coords")), "dataset `coords`"),
    "no features": (edit(lambda f: f.__delitem__("features")), "dataset `features`"),
    "no mpp": (edit(lambda f: f["coords"].attrs.__delitem__("mpp")), "attribute `mpp`"),
    "bad mpp": (edit(lambda f: f["coords"].attrs.__setitem__("mpp", "x")), "attribute `mpp`"),
    "no encoder": (edit(lambda f: f["features"].attrs.__delitem__("encoder")), "`encoder`"),
    "newer": (
        edit(lambda f: f["coords"].attrs.__setitem__("schema_version", 99)),
        "schema_version: expected at most 1, got 99. Update mstar",
    ),
    "moved coords": (edit(flip("coords")), "digest of coords"),
    "fewer rows": (edit(remake("features", toy_features(11))), r"expected \(12, D\)"),
    "double": (edit(remake("features", toy_features(12, dtype="float64"))), "float16 or float32"),
    "float coords": (edit(remake("coords", np.zeros((12, 2)))), r"int64 \(N, 2\)"),
    "one vector": (edit(remake("features", np.zeros(12, np.float16))), r"got \(12,\)"),
    "changed value": (edit(flip("features")), "digest of features"),
    "nan": (edit(set_nan), "finite values, got row 4"),
    "lost reasons": (edit(remake("unreadable", np.zeros((1, 2), np.int64))), "unreadable"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_refused_by_name_and_field(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "x.h5")
    damage, message = DAMAGES[kind]
    damage(path)
    with pytest.raises(FeatureError, match=message) as caught:
        files.read_features(path, check="full")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_no_truncation_goes_unseen(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "x.h5", num=400)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(FeatureError):
        files.read_features(path)
    with pytest.raises(FeatureError):
        files.map_features(path)


def test_row_chunked_files_cannot_be_mapped(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("features", data=toy_features(), chunks=(1, 8))
    with pytest.raises(FeatureError, match="contiguous"):
        files.map_features(tmp_path / "x.h5")
