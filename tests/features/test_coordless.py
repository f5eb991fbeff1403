"""Features that others computed, with coordinates and without."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mstar.cli.exchange import summary_lines
from mstar.errors import ConfigError, FeatureError
from mstar.features.coordless import WARNING, coordless_grid, require_coords
from mstar.features.exporting import export_store
from mstar.features.importing import import_layout
from mstar.features.store import FeatureStore

ROWS = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """One slide in each kind of file; a, b, d and an empty one without coordinates."""
    folder = tmp_path / "theirs"
    (folder / "sub").mkdir(parents=True)
    np.save(folder / "a.npy", ROWS)
    torch.save(torch.from_numpy(ROWS[:3]), folder / "sub" / "b.pt")
    with h5py.File(folder / "c.h5", "w") as file:
        file["feats"] = ROWS.astype(np.float16)
        file["coords"] = np.arange(14).reshape(7, 2) * 512
    np.save(folder / "d.npy", ROWS[None])
    np.save(folder / "empty.npy", np.empty((0, 5), np.float32))
    np.save(folder / "e.npy", ROWS[:2])
    (folder / "e_coords.csv").write_text("index,y,x\n0,20,10\n1,40,30\n")
    return folder


def imported(theirs: Path, out: Path, **settings: object) -> FeatureStore:
    """A store of theirs."""
    given: dict[str, object] = {"encoder": "foreign", "slide_mpp": 0.25, "patch_size_l0": 512}
    report = import_layout(str(theirs), "plain", str(out), **(given | settings))
    assert report.failures == {}
    return FeatureStore.open(str(out))


def test_every_kind_of_file_is_read_and_what_is_missing_is_said(
    theirs: Path, tmp_path: Path
) -> None:
    report = import_layout(
        str(theirs), "plain", str(tmp_path / "F"), encoder="x", slide_mpp=0.25, patch_size_l0=512
    )
    assert report.written == 6
    assert report.warnings == {WARNING: 4}
    text = "\n".join(summary_lines("import", report))
    assert "no targets and no heatmaps can be made (4 slides)" in text
    store = FeatureStore.open(str(tmp_path / "F"))
    assert sorted(store.done_ids()) == ["a", "c", "d", "e", "empty", "sub/b"]
    for slide in ("a", "d"):
        np.testing.assert_array_equal(store.read(slide).features, ROWS)
        assert not store.read(slide).grid.has_coords
    assert store.read("empty").features.shape == (0, 5)
    with_places = store.read("c").grid
    assert with_places.has_coords
    np.testing.assert_array_equal(with_places.coords, np.arange(14).reshape(7, 2) * 512)
    np.testing.assert_array_equal(store.read("e").grid.coords, [[10, 20], [30, 40]])
    assert list(store.verify()) == []


def test_run_again_imports_nothing(theirs: Path, tmp_path: Path) -> None:
    imported(theirs, tmp_path / "F")
    again = import_layout(
        str(theirs), "plain", str(tmp_path / "F"), encoder="foreign", slide_mpp=0.25,
        patch_size_l0=512,
    )  # fmt: skip
    assert (again.written, again.already) == (0, 6)


def test_what_needs_a_place_refuses_them(theirs: Path, tmp_path: Path) -> None:
    store = imported(theirs, tmp_path / "F")
    grid = store.read("a").grid
    with pytest.raises(FeatureError, match=r"F/a.h5: patch targets need to know where patches"):
        require_coords(grid, store.slide_uri("a"), "patch targets")
    require_coords(store.read("c").grid, "c", "patch targets")


@pytest.mark.parametrize("layout", ["clam", "mstar", "trident", "stamp"])
def test_layouts_with_coordinates_are_not_written_without(
    theirs: Path, tmp_path: Path, layout: str
) -> None:
    imported(theirs, tmp_path / "F")
    report = export_store(str(tmp_path / "F"), layout, str(tmp_path / "X"), misfit="warn")
    assert set(report.failures) == {"a", "d", "sub/b", "empty"}
    assert "imported without coordinates" in report.failures["a"]
    assert report.written == 2


def test_round_trip_through_plain_arrays(theirs: Path, tmp_path: Path) -> None:
    store = imported(theirs, tmp_path / "F")
    report = export_store(str(tmp_path / "F"), "plain", str(tmp_path / "X"))
    assert report.failures == {}
    again = imported(tmp_path / "X", tmp_path / "G")
    for slide in store.done_ids():
        before, after = store.read(slide), again.read(slide)
        np.testing.assert_array_equal(before.features, after.features)
        np.testing.assert_array_equal(before.grid.coords, after.grid.coords)
        assert before.grid.has_coords == after.grid.has_coords


def test_tensors_of_mstars_layout_need_coordinates_unless_that_is_allowed(tmp_path: Path) -> None:
    folder = tmp_path / "theirs" / "pt_files" / "uni"
    folder.mkdir(parents=True)
    torch.save(torch.from_numpy(ROWS), folder / "a.pt")
    where, out = str(tmp_path / "theirs"), str(tmp_path / "F")
    refused = import_layout(where, "mstar", out)
    assert "--missing-coords allow" in refused.failures["a"]
    taken = import_layout(where, "mstar", out, missing_coords="allow")
    assert (taken.written, taken.warnings) == (1, {WARNING: 1})
    assert not FeatureStore.open(out).read("a").grid.has_coords


def test_troubles_are_of_one_slide(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    np.save(folder / "good.npy", ROWS)
    np.save(folder / "flat.npy", ROWS[0])
    np.save(folder / "wide.npy", np.zeros((2, 9), np.float32))
    (folder / "broken.npy").write_bytes(b"nothing")
    np.save(folder / "short.npy", ROWS)
    np.save(folder / "short_coords.npy", np.zeros((3, 2)))
    report = import_layout(
        str(folder), "plain", str(tmp_path / "F"), encoder="x", slide_mpp=0.5, patch_size_l0=256
    )
    assert set(report.failures) == {"flat", "broken", "short", "wide"}
    assert "(3, D)" in report.failures["short"]


def test_an_encoder_has_to_be_named(theirs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--encoder"):
        import_layout(str(theirs), "plain", str(tmp_path / "F"))


def test_a_grid_of_nowhere_keeps_its_count() -> None:
    grid = coordless_grid("s", 4, layout="plain")
    assert (len(grid), grid.has_coords) == (4, False)
