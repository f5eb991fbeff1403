"""A manifest or a file from a stranger reaches no file but its own."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.errors import ConfigError, FeatureError
from mstar.features.hdf5 import open_checked
from mstar.storage.confine import SLIDE_ROOTS
from mstar.storage.ids import quoted, slide_id_problem
from mstar.storage.manifest import BadRow, read_slides


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["..", ".", "", "a", "/", "\\", "~", "%2e%2e", "x.h5"])))
def test_an_id_that_passes_stays_below_its_folder(steps: list[str]) -> None:
    slide_id = "/".join(steps)
    if slide_id_problem(slide_id) is None:
        base = Path("/out")
        assert (base / f"{slide_id}.h5").resolve().is_relative_to(base)
        assert ".." not in slide_id.split("/")
    assert "/" not in quoted(slide_id)
    assert not quoted(slide_id).startswith(".")


@pytest.mark.parametrize("slide_id", ["../evil", "/etc/cron.d/x", "a/../../b", "a\\..\\b", ".ssh"])
def test_a_manifest_cannot_name_an_output_elsewhere(slide_id: str, tmp_path: Path) -> None:
    (tmp_path / "slides.csv").write_text(f"path,slide_id\na.svs,{slide_id}\nb.svs,good\n")
    bad, good = read_slides(tmp_path / "slides.csv")
    assert isinstance(bad, BadRow)
    assert good.slide_id == "good"


def manifest(folder: Path, paths: list[str]) -> Path:
    rows = "\n".join(f"{path},s{number}" for number, path in enumerate(paths))
    (folder / "slides.csv").write_text(f"path,slide_id\n{rows}\n")
    return folder / "slides.csv"


def test_slides_stay_within_the_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with `..` and through links; a sibling whose name begins alike is outside."""
    inside, other = tmp_path / "data", tmp_path / "data-private"
    for folder in (inside, other):
        folder.mkdir()
        (folder / "a.svs").write_bytes(b"")
    (inside / "link.svs").symlink_to(other / "a.svs")
    paths = ["a.svs", "../data-private/a.svs", "link.svs", str(other / "a.svs"), "/etc/passwd"]
    paths += ["s3://cohort/x.svs", "s3://cohort/../private/x.svs", "s3://cohort-2/x.svs"]
    monkeypatch.setenv(SLIDE_ROOTS, f"{inside}, s3://cohort/")
    allowed = [not isinstance(entry, BadRow) for entry in read_slides(manifest(inside, paths))]
    assert allowed == [True, False, False, False, False, True, False, False]
    monkeypatch.delenv(SLIDE_ROOTS)
    assert not any(isinstance(entry, BadRow) for entry in read_slides(manifest(inside, paths)))


def test_a_relative_root_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SLIDE_ROOTS, "slides")
    with pytest.raises(ConfigError, match="absolute"):
        list(read_slides(manifest(tmp_path, ["a.svs"])))


def external_link(file: h5py.File, secret: Path) -> None:
    file["features"] = h5py.ExternalLink(str(secret), "/features")


def external_storage(file: h5py.File, secret: Path) -> None:
    raw = [(str(secret), 0, 16)]
    file.create_dataset("features", shape=(16,), dtype="u1", external=raw)


def virtual_dataset(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource(str(secret), "features", shape=(4,))
    file.create_virtual_dataset("features", layout)


def in_a_group(file: h5py.File, secret: Path) -> None:
    external_link(file.create_group("deep"), secret)


def group_in_itself(file: h5py.File, secret: Path) -> None:
    file.create_group("deep")["again"] = file["/"]


@pytest.mark.parametrize(
    "plant", [external_link, external_storage, virtual_dataset, in_a_group, group_in_itself]
)
def test_a_feature_file_that_names_another_file_is_refused(plant: object, tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["features"] = np.arange(4, dtype="f4")
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        plant(file, secret)  # type: ignore[operator]
    with pytest.raises(FeatureError, match=r"foreign\.h5"), open_checked(foreign, str(foreign)):
        pass
