"""Whole stores out and in again: rows matched by coordinate, one bad slide never ends the rest."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import tyro

from mstar.errors import ConfigError, FeatureError, StoreMismatchError
from mstar.features.exporting import ExportConfig, export_store, run_export
from mstar.features.importing import ImportConfig, import_layout, run_import
from mstar.features.store import FeatureStore, GridStore
from support.feature_files import CONFIG, toy_features, toy_grid, toy_provenance

LAYOUTS = ("clam", "mstar", "trident", "stamp")
IDS = ("a", "site 1/a", "ü b/c d")


def fill(root: Path, dtype: str = "float16", ids: tuple[str, ...] = IDS) -> FeatureStore:
    """A store with one slide per id, and one without tissue."""
    store = FeatureStore.open_or_create(str(root), CONFIG)
    for seed, slide_id in enumerate(ids):
        features = toy_features(9 + seed, dtype=dtype, seed=seed)
        grid = toy_grid(slide_id, 9 + seed)
        store.write(slide_id, grid, features, toy_provenance(store.fingerprint))
    store.write("blank", toy_grid("blank", 0), toy_features(0), toy_provenance(store.fingerprint))
    return store


def by_coordinate(store: FeatureStore, slide_id: str) -> dict[tuple[int, ...], bytes]:
    found = store.read(slide_id)
    rows = found.features.astype(np.float32)
    return {
        tuple(at): row.tobytes() for at, row in zip(found.grid.coords.tolist(), rows, strict=True)
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_round_trip(tmp_path: Path, layout: str, dtype: str) -> None:
    store = fill(tmp_path / "F", "float16" if layout == "stamp" else dtype)
    exported = export_store(store.root, layout, str(tmp_path / "D"))
    assert not exported.failures
    encoder = {"encoder": "vit_tiny"} if layout == "clam" else {}
    report = import_layout(str(tmp_path / "D"), layout, str(tmp_path / "I"), **encoder)
    assert not report.failures
    back = FeatureStore.open(str(tmp_path / "I"))
    expected = {*IDS, "blank"} if layout == "trident" else set(IDS)
    assert set(back.done_ids()) == expected
    for slide_id in expected:
        assert by_coordinate(back, slide_id) == by_coordinate(store, slide_id)
        found, original = back.read(slide_id), store.read(slide_id)
        assert found.grid.patch_size_l0 == original.grid.patch_size_l0
        assert found.grid.mpp == original.grid.mpp
        assert found.provenance.encoder == "vit_tiny"
        if layout in ("trident", "stamp"):
            assert found.provenance.weights_sha256 == "ab" * 32
            assert found.provenance.licence == "apache-2.0"
    assert not list(back.verify())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_second_export_finds_everything_there(tmp_path: Path, layout: str) -> None:
    store = fill(tmp_path / "F")
    first = export_store(store.root, layout, str(tmp_path / "D"))
    again = export_store(store.root, layout, str(tmp_path / "D"))
    assert (again.written, again.already) == (0, first.written)
    assert not again.failures


def test_another_store_into_the_same_export_is_refused_slide_by_slide(tmp_path: Path) -> None:
    fill(tmp_path / "F")
    other = FeatureStore.open_or_create(str(tmp_path / "G"), CONFIG | {"encoder": "uni"})
    for slide_id in ("a", "new"):
        rows = toy_features(9, seed=77)
        other.write(slide_id, toy_grid(slide_id, 9), rows, toy_provenance(other.fingerprint))
    export_store(str(tmp_path / "F"), "clam", str(tmp_path / "D"))
    before = (tmp_path / "D/pt_files/a.pt").read_bytes()
    report = export_store(other.root, "clam", str(tmp_path / "D"))
    assert report.written == 1
    assert "of another encoder" in report.failures["a"]
    assert (tmp_path / "D/pt_files/a.pt").read_bytes() == before


def test_one_bad_slide_does_not_end_an_export(tmp_path: Path) -> None:
    store = fill(tmp_path / "F")
    path = tmp_path / "F/a.h5"
    path.write_bytes(path.read_bytes()[:-30])
    report = run_export(ExportConfig(features=store.root, layout="clam", out=str(tmp_path / "D")))
    assert report.written == 2
    assert report.failures.keys() == {"a"}
    assert "truncated" in report.failures["a"]
    assert "FeatureError" in report.tracebacks["a"]
    kept = json.loads((tmp_path / "D/mstar_export_clam_vit_tiny.json").read_text())
    assert kept["report"]["failures"] == report.failures
    assert kept["report"]["empty"] == ["blank"]
    assert kept["store_config"] == CONFIG


def test_one_bad_file_does_not_end_an_import(tmp_path: Path) -> None:
    store = fill(tmp_path / "F")
    export_store(store.root, "mstar", str(tmp_path / "D"))
    folder = tmp_path / "D/pt_files/vit_tiny"
    (folder / "broken.pt").write_bytes((folder / "a.pt").read_bytes()[:200])
    (folder / "code.pt").write_bytes(b"\x80\x02cos\nsystem\n.")
    report = import_layout(str(tmp_path / "D"), "mstar", str(tmp_path / "I"))
    assert report.failures.keys() == {"broken", "code"}
    assert report.written == 3


def test_rows_of_two_files_are_matched_by_coordinate(tmp_path: Path) -> None:
    store = fill(tmp_path / "F", "float32")
    export_store(store.root, "clam", str(tmp_path / "D"))
    order = np.random.default_rng(1).permutation(9)
    with h5py.File(tmp_path / "D/h5_files/a.h5", "r+") as file:  # CLAM's own order is another
        for key in ("features", "coords"):
            file[key][...] = file[key][()][order]
    import_layout(str(tmp_path / "D"), "clam", str(tmp_path / "I"), encoder="vit_tiny")
    back = FeatureStore.open(str(tmp_path / "I"))
    assert by_coordinate(back, "a") == by_coordinate(store, "a")
    assert not np.array_equal(back.read("a").features, store.read("a").features)


def test_features_of_another_run_than_the_coordinates_are_refused(tmp_path: Path) -> None:
    store = fill(tmp_path / "F")
    export_store(store.root, "clam", str(tmp_path / "D"))
    with h5py.File(tmp_path / "D/h5_files/a.h5", "r+") as file:
        file["coords"][3] = [5, 5]
    report = import_layout(str(tmp_path / "D"), "clam", str(tmp_path / "I"), encoder="vit_tiny")
    assert "not of one run" in report.failures["a"]
    assert report.written == 2


def test_an_import_needs_to_know_the_encoder(tmp_path: Path) -> None:
    store = fill(tmp_path / "F")
    export_store(store.root, "clam", str(tmp_path / "C"))
    with pytest.raises(ConfigError, match="--encoder"):
        import_layout(str(tmp_path / "C"), "clam", str(tmp_path / "I"))
    for encoder in ("one", "two"):
        export_store(store.root, "trident", str(tmp_path / "T"), encoder=encoder)
    with pytest.raises(ConfigError, match=r"\['one', 'two'\].*--encoder"):
        import_layout(str(tmp_path / "T"), "trident", str(tmp_path / "I"))
    report = import_layout(str(tmp_path / "T"), "trident", str(tmp_path / "I"), encoder="two")
    assert report.written == 4
    with pytest.raises(StoreMismatchError, match="encoder: expected 'one', found 'two'"):
        import_layout(str(tmp_path / "T"), "trident", str(tmp_path / "I"), encoder="one")


def test_a_stamp_folder_may_be_the_extractors_or_its_parent(tmp_path: Path) -> None:
    store = fill(tmp_path / "F")
    export_store(store.root, "stamp", str(tmp_path / "D"), encoder="uni2")
    (tmp_path / "D/uni2").rename(tmp_path / "D/uni2-ab12cd34")
    (tmp_path / "D/uni2-ab12cd34/0 broken.h5").write_bytes(b"")
    for source, out in (("D", "I"), ("D/uni2-ab12cd34", "J")):
        report = import_layout(str(tmp_path / source), "stamp", str(tmp_path / out))
        assert set(FeatureStore.open(str(tmp_path / out)).done_ids()) == set(IDS)
        assert report.failures.keys() == {"0 broken"}


def test_names_by_stem_refuse_a_collision_before_writing(tmp_path: Path) -> None:
    store = fill(tmp_path / "F")
    with pytest.raises(ConfigError, match=r"'a'.*'site 1/a'|'site 1/a'.*'a'"):
        export_store(store.root, "clam", str(tmp_path / "D"), names="stem")
    assert not (tmp_path / "D").exists()
    single = fill(tmp_path / "G", ids=("site 1/a", "x/b"))
    report = export_store(single.root, "clam", str(tmp_path / "D"), names="stem")
    assert report.written == 2
    assert (tmp_path / "D/pt_files/b.pt").is_file()


def test_grids_from_which_clam_would_read_other_pixels(tmp_path: Path) -> None:
    store = FeatureStore.open_or_create(str(tmp_path / "F"), CONFIG)
    for slide_id in ("a", "b"):
        grid = toy_grid(slide_id, grid_mode="exact", read_level=1, read_px=256, output_px=256)
        store.write(slide_id, grid, toy_features(), toy_provenance(store.fingerprint))
    report = export_store(store.root, "clam", str(tmp_path / "D"))
    assert list(report.warnings.values()) == [2]
    assert report.written == 2
    refused = export_store(store.root, "clam", str(tmp_path / "E"), misfit="refuse")
    assert refused.failures.keys() == {"a", "b"}
    assert refused.written == 0


def test_a_grid_store_exports_its_coordinates(tmp_path: Path) -> None:
    grids = GridStore.open_or_create(str(tmp_path / "G"), {"patch_px": 256})
    grids.write("x/a", toy_grid("x/a"))
    export_store(grids.root, "trident", str(tmp_path / "D"))
    path = tmp_path / "D/20x_256px_0px_overlap/patches/x%2Fa_patches.h5"
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["coords"][()], toy_grid().coords)
    with pytest.raises(ConfigError, match="stamp has no file"):
        export_store(grids.root, "stamp", str(tmp_path / "D"))


def test_widths_are_not_mixed(tmp_path: Path) -> None:
    store = fill(tmp_path / "F")
    export_store(store.root, "trident", str(tmp_path / "D"))
    path = tmp_path / "D/20x_256px_0px_overlap/features_vit_tiny/site 1%2Fa.h5"
    with h5py.File(path, "r+") as file:
        attributes = dict(file["features"].attrs)
        del file["features"]
        file.create_dataset("features", data=toy_features(10, 16)).attrs.update(attributes)
    report = import_layout(str(tmp_path / "D"), "trident", str(tmp_path / "I"))
    assert "width of features: expected 8, as before, got 16" in report.failures["site 1/a"]


def test_the_flags_are_the_contracts(tmp_path: Path) -> None:
    config = tyro.cli(
        ImportConfig, args=["--from", "D", "--layout", "stamp", "--out", "F", "--slide-mpp", "0.5"]
    )
    assert (config.from_, config.layout, config.slide_mpp) == ("D", "stamp", 0.5)
    exported = tyro.cli(ExportConfig, args=["--features", "F", "--layout", "clam", "--out", "D"])
    assert (exported.features, exported.layout, exported.out) == ("F", "clam", "D")
    with pytest.raises(ConfigError, match="expected one, found none"):
        run_import(ImportConfig(from_=str(tmp_path), layout="stamp", out=str(tmp_path / "F")))
    with pytest.raises(FeatureError, match=r"store\.json"):
        run_export(ExportConfig(features=str(tmp_path), layout="clam", out=str(tmp_path / "D")))
