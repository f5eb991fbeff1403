"""Each layout as h5py, torch and torchmil see it: their datasets, types, chunks and attributes."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from mstar.errors import FeatureError, MppError
from mstar.features.exporting import export_store
from mstar.features.foreign_grids import read_foreign_grid
from mstar.features.layouts import clam, trident
from mstar.features.layouts.contract import flat_name, unflat_name
from mstar.features.store import FeatureStore
from support.feature_files import (
    CONFIG,
    assert_same_grid,
    toy_features,
    toy_grid,
    toy_provenance,
)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Three slides: a plain one, one of the same stem in a folder, one without tissue."""
    store = FeatureStore.open_or_create(str(tmp_path / "F"), CONFIG)
    for seed, (slide_id, num) in enumerate((("a", 12), ("site 1/a", 7), ("blank", 0))):
        features = toy_features(num, seed=seed)
        store.write(slide_id, toy_grid(slide_id, num), features, toy_provenance(store.fingerprint))
    return store


def attributes(path: Path, dataset: str | None = None) -> dict[str, object]:
    with h5py.File(path) as file:
        item = file[dataset] if dataset else file
        return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in item.attrs.items()}


def test_clam(store: FeatureStore, tmp_path: Path) -> None:
    import torch

    report = export_store(store.root, "clam", str(tmp_path / "D"))
    assert (report.written, report.empty, report.failures) == (2, ["blank"], {})
    found = sorted(p.relative_to(tmp_path / "D").as_posix() for p in (tmp_path / "D").rglob("*.*"))
    stems = ("a", "site 1%2Fa")
    assert found == sorted(
        [f"patches/{s}.h5" for s in stems]
        + [f"h5_files/{s}.h5" for s in stems]
        + [f"pt_files/{s}.pt" for s in stems]
        + ["mstar_export_clam_vit_tiny.json"]
    )
    expected = toy_features().astype(np.float32)
    with h5py.File(tmp_path / "D/h5_files/a.h5") as file:
        assert file["features"].dtype == np.float32
        assert file["features"].chunks == (32, 8)
        assert file["coords"].dtype == np.int32
        np.testing.assert_array_equal(file["features"][()], expected)
        np.testing.assert_array_equal(file["coords"][()], toy_grid().coords)
    tensor = torch.load(tmp_path / "D/pt_files/a.pt", weights_only=True)
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), expected)
    with h5py.File(tmp_path / "D/patches/a.h5") as file:
        coords = file["coords"]
        assert (coords.dtype, coords.chunks, coords.maxshape) == (np.int64, (1, 2), (None, 2))
        assert coords.compression is None
    found_attributes = attributes(tmp_path / "D/patches/a.h5", "coords")
    found_attributes.pop("mpp")
    assert found_attributes == {
        "patch_size": 512,
        "patch_level": 0,
        "downsample": [1.0, 1.0],
        "downsampled_level_dim": [30_000, 20_000],
        "level_dim": [30_000, 20_000],
        "name": "a",
        "save_path": "",
    }


def test_mstar(store: FeatureStore, tmp_path: Path) -> None:
    import torch

    export_store(store.root, "mstar", str(tmp_path / "D"), encoder="mSTAR")
    tensor = torch.load(tmp_path / "D/pt_files/mSTAR/a.pt", weights_only=True)
    np.testing.assert_array_equal(tensor.numpy(), toy_features().astype(np.float32))
    path = tmp_path / "D/h5_files/mSTAR/a.h5"
    with h5py.File(path) as file:
        assert list(file) == ["coords"]
        assert file["coords"].chunks == (1, 2)
        assert not dict(file["coords"].attrs)
        np.testing.assert_array_equal(file["coords"][()], toy_grid().coords)
    assert attributes(tmp_path / "D/patches/a.h5", "coords")["patch_size"] == 512


def test_trident(store: FeatureStore, tmp_path: Path) -> None:
    report = export_store(store.root, "trident", str(tmp_path / "D"))
    assert (report.written, report.empty) == (3, [])
    run = tmp_path / "D/20x_256px_0px_overlap"
    theirs = {
        "patch_size": 256,
        "patch_size_level0": 512,
        "level0_magnification": 40,
        "target_magnification": 20,
        "overlap": 0,
        "name": "a",
        "savetodir": "",
        "level0_width": 30_000,
        "level0_height": 20_000,
    }
    for path in (run / "patches/a_patches.h5", run / "features_vit_tiny/a.h5"):
        found = attributes(path, "coords")
        assert {key: found[key] for key in theirs} == theirs
        assert isinstance(found["level0_magnification"], int)
    with h5py.File(run / "features_vit_tiny/a.h5") as file:
        assert file["features"].chunks == (1, 8)
        assert file["features"].dtype == np.float16
        assert file["features"].attrs["encoder"] == "vit_tiny"
        np.testing.assert_array_equal(file["features"][()], toy_features())
    with h5py.File(run / "features_vit_tiny/blank.h5") as file:
        assert file["features"].shape == (0, 8)
        assert file["coords"].shape == (0, 2)


def test_trident_has_its_own_names_of_encoders(store: FeatureStore, tmp_path: Path) -> None:
    export_store(store.root, "trident", str(tmp_path / "D"), encoder="uni")
    assert (tmp_path / "D/20x_256px_0px_overlap/features_uni_v1/a.h5").is_file()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # inside torchmil
def test_torchmil_reads_the_trident_export(store: FeatureStore, tmp_path: Path) -> None:
    from mstar.models.torchvision_ops import declare_missing_ops

    declare_missing_ops()
    datasets = pytest.importorskip("torchmil.datasets")
    export_store(store.root, "trident", str(tmp_path / "D"))
    names = {"a": "a", "site 1%2Fa": "site 1/a"}
    (tmp_path / "labels.csv").write_text(
        "slide,label\n" + "".join(f"{name}.svs,1\n" for name in names)
    )
    data = datasets.TridentWSIDataset(
        base_path=f"{tmp_path}/D/20x_256px_0px_overlap/",  # joined as a string: ends in /
        labels_path=str(tmp_path / "labels.csv"),
        feature_extractor="vit_tiny",
        wsi_names=list(names),
        bag_keys=["X", "Y", "adj", "coords"],
        patch_size=512,  # patch_size_level0, or neighbours are two apart
        wsi_name_col="slide",
        wsi_label_col="label",
    )
    assert data.get_bag_names() == sorted(names)
    for index, name in enumerate(data.get_bag_names()):
        original = store.read(names[name])
        bag = data[index]
        np.testing.assert_array_equal(bag["X"].numpy(), original.features)
        np.testing.assert_array_equal(bag["coords"].numpy(), original.grid.coords // 512)
        assert bag["adj"].to_dense().count_nonzero() > len(original.features)  # has neighbours


def test_stamp(store: FeatureStore, tmp_path: Path) -> None:
    export_store(store.root, "stamp", str(tmp_path / "D"), encoder="mstar")
    path = tmp_path / "D/mstar/site 1/a.h5"
    with h5py.File(path) as file:
        assert file["feats"].dtype == np.float16
        assert file["coords"].dtype == np.float32
        np.testing.assert_allclose(file["coords"][()], toy_grid(num=7).coords * 0.25, rtol=1e-6)
    found = attributes(path)
    assert found["stamp_version"] == "2.1.0"
    assert (found["extractor"], found["unit"], found["feat_type"]) == ("mstar", "um", "tile")
    assert (found["tile_size_um"], found["tile_size_px"]) == (128.0, 256)
    assert isinstance(found["code_hash"], str)


@pytest.mark.parametrize("layout", ["clam", "mstar", "trident", "stamp"])
def test_two_exports_are_equal_byte_for_byte(
    store: FeatureStore, tmp_path: Path, layout: str
) -> None:
    for out in ("D", "E"):
        export_store(store.root, layout, str(tmp_path / out))
    files = [p for p in (tmp_path / "D").rglob("*") if p.suffix in (".h5", ".pt")]
    assert files
    for path in files:
        assert (tmp_path / "E" / path.relative_to(tmp_path / "D")).read_bytes() == path.read_bytes()


def test_flat_names_are_reversible() -> None:
    ids = ["a/b", "a%2Fb", "a%b", "a", "%", "ü/%2F/%25"]
    assert [unflat_name(flat_name(slide_id)) for slide_id in ids] == ids
    assert len({flat_name(slide_id) for slide_id in ids}) == len(ids)
    assert not any("/" in flat_name(slide_id) for slide_id in ids)


def test_misfit_is_told_where_another_tool_would_read_other_pixels() -> None:
    prepath = toy_grid()
    exact = toy_grid(grid_mode="exact", mpp=0.2425, patch_size_l0=528, read_px=528, output_px=256)
    assert clam.misfit(prepath) is None
    assert trident.misfit(prepath) is None
    assert "0.5 mpp" in (clam.misfit(exact) or "")
    assert "another footprint" in (trident.misfit(exact) or "")


GRID_CHECKS = ("patch_size_l0", "mpp", "width_l0", "height_l0")


@pytest.mark.parametrize("kind", ["clam", "trident"])
def test_coordinate_files_keep_the_geometry(tmp_path: Path, kind: str) -> None:
    writer = {"clam": clam.write_grid, "trident": trident.write_grid}[kind]
    grid = toy_grid(overlap_px=0 if kind == "clam" else 32)
    (rel,) = writer(tmp_path, "s1", grid)
    found = read_foreign_grid(tmp_path / rel)
    assert found.grid_mode == "imported"
    assert found.slide_id == "s1"
    np.testing.assert_array_equal(found.coords, grid.coords)
    for name in GRID_CHECKS:
        assert getattr(found, name) == getattr(grid, name), name
    if kind == "trident":
        for name in ("patch_px", "overlap_px", "target_mpp", "target_magnification"):
            assert getattr(found, name) == getattr(grid, name), name


def foreign(path: Path, arrays: dict[str, np.ndarray], attrs: dict[str, object]) -> Path:
    """A file as another tool wrote it; attributes go to `coords`, or to the file with `feats`."""
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file[key] = values
        item = file if "feats" in arrays else file["imgs" if "imgs" in arrays else "coords"]
        item.attrs.update(attrs)
    return path


COORDS = np.array([[100, 200], [1124, 200], [100, 1224]], np.int64)


def test_clam_files_of_a_lower_level(tmp_path: Path) -> None:
    attrs = {
        "patch_size": 256,
        "patch_level": 1,
        "downsample": [3.9998, 4.0001],
        "downsampled_level_dim": [7500, 5000],
        "level_dim": [7500, 5000],
        "name": "x",
        "save_path": "/somewhere",
    }
    path = foreign(tmp_path / "x.h5", {"coords": COORDS}, attrs)
    with pytest.raises(MppError, match=r"x: mpp.*--slide-mpp"):
        read_foreign_grid(path)
    grid = read_foreign_grid(path, mpp=0.25)
    assert (grid.read_level, grid.read_px, grid.output_px, grid.patch_size_l0) == (
        1,
        256,
        256,
        1024,
    )
    assert grid.effective_mpp == 1.0
    np.testing.assert_array_equal(grid.coords, COORDS)


def test_clam_files_of_the_old_layout(tmp_path: Path) -> None:
    arrays = {"coords": COORDS.astype(np.int32), "imgs": np.zeros((3, 64, 64, 3), np.uint8)}
    attrs = {"patch_level": 0, "downsample": [1.0, 1.0], "level_dim": [5000, 4000], "wsi_name": "x"}
    grid = read_foreign_grid(foreign(tmp_path / "x.h5", arrays, attrs), mpp=0.5)
    assert (grid.patch_size_l0, grid.width_l0) == (64, 5000)
    assert grid.coords.dtype == np.int64


def test_trident_files_without_mpp(tmp_path: Path) -> None:
    attrs = {
        "patch_size": 256,
        "patch_size_level0": 512,
        "level0_magnification": 40,
        "target_magnification": 20,
        "overlap": 0,
        "name": "x",
        "savetodir": "None",
    }
    arrays = {"coords": COORDS + np.array([0.4, -0.4])}
    path = foreign(tmp_path / "x_patches.h5", arrays, attrs)
    with pytest.raises(MppError, match="from-objective"):
        read_foreign_grid(path)
    derived = read_foreign_grid(path, mpp_from_objective=True)
    assert (derived.mpp, derived.provenance["mpp_source"]) == (0.25, "magnification")
    stated = read_foreign_grid(path, mpp=0.2425)
    assert (stated.mpp, stated.slide_id, stated.patch_px) == (0.2425, "x", 256)
    np.testing.assert_array_equal(stated.coords, COORDS)  # rounded


@pytest.mark.parametrize(
    ("attrs", "scale", "tile_px"),
    [
        ({"unit": "um", "tile_size_um": 256.0, "tile_size_px": 224}, 1.0, 224),
        ({"unit": "um", "tile_size": 256.0}, 1.0, 224),
        ({}, 224 / 256, 224),
    ],
)
def test_stamp_files_of_every_age(
    tmp_path: Path, attrs: dict[str, object], scale: float, tile_px: int
) -> None:
    arrays = {"coords": (COORDS * 0.25 * scale).astype(np.float32), "feats": toy_features(3)}
    path = foreign(tmp_path / "x.h5", arrays, attrs)
    grid = read_foreign_grid(path, mpp=0.25)
    np.testing.assert_array_equal(grid.coords, COORDS)
    assert (grid.patch_size_l0, grid.patch_px) == (1024, tile_px)
    with pytest.raises(MppError):
        read_foreign_grid(path)


def test_microns_in_float32_find_every_pixel_of_a_large_slide(tmp_path: Path) -> None:
    coords = np.random.default_rng(0).integers(0, 300_000, (5000, 2))
    for mpp in (0.1213, 0.2425, 0.499):
        arrays = {"coords": (coords * mpp).astype(np.float32), "feats": toy_features(5000)}
        attrs = {"unit": "um", "tile_size_um": 256 * mpp, "tile_size_px": 256}
        grid = read_foreign_grid(foreign(tmp_path / "x.h5", arrays, attrs), mpp=mpp)
        np.testing.assert_array_equal(grid.coords, coords)


def test_bare_coordinates_need_a_patch_size(tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.h5", {"coords": COORDS}, {})
    with pytest.raises(FeatureError, match="--patch-size-l0"):
        read_foreign_grid(path, mpp=0.5)
    assert read_foreign_grid(path, mpp=0.5, patch_size_l0=256).effective_mpp == 0.5


def test_our_own_files_keep_everything(store: FeatureStore) -> None:
    found = read_foreign_grid(Path(store.slide_uri("a")))
    assert_same_grid(found, toy_grid("a"))


def test_what_holds_no_coordinates_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"PK\3\4 not hdf5")
    with pytest.raises(FeatureError, match="not HDF5"):
        read_foreign_grid(tmp_path / "x.h5")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["patch_embeddings"] = toy_features(3)
    with pytest.raises(FeatureError, match="no coordinates"):
        read_foreign_grid(tmp_path / "y.h5", mpp=0.5)
