"""Finding weights: files, folders, an object store, seeds; hashed once, checked everywhere."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mstar.errors import WeightsError
from mstar.models.encoder_table import find_encoder
from mstar.models.state_dicts import draw_model
from mstar.models.weights import ResolvedWeights, choose_file, localise, resolve
from mstar.storage import objects
from support.s3 import make_bucket

TINY = find_encoder("vit_tiny")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same small model in two formats."""
    folder = tmp_path_factory.mktemp("weights")
    state = draw_model(TINY.build, 5).state_dict()
    save_file(state, folder / "tiny.safetensors")
    torch.save(state, folder / "tiny.pth")
    return folder


@pytest.fixture(scope="module")
def s3_bucket(s3_server: str) -> str:
    """A bucket of the test's own: `s3://…`."""
    return make_bucket("models-weights")


def sha256(path: Path) -> str:
    """Independent of the code under test: of the whole file at once."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["tiny.pth", "tiny.safetensors"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_is_hashed_by_content(files: Path, name: str, scheme: str) -> None:
    found = resolve(f"{scheme}{files / name}", TINY)
    assert found.sha256 == sha256(files / name)
    assert found.path == str(files / name)
    assert localise(found, TINY) == files / name


def test_a_relative_path_means_the_drivers_folder_in_every_worker(
    files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(files)
    found = resolve("tiny.pth", TINY)
    monkeypatch.chdir(tmp_path)
    assert localise(found, TINY) == files / "tiny.pth"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "config.json"], "model.safetensors"),
        (["pytorch_model.bin", "other.pth"], "pytorch_model.bin"),
        (["mSTAR.pth", "README.md", "sub/model.safetensors"], "mSTAR.pth"),
        (["encoder.pth", "encoder.safetensors", "projection.safetensors"], "encoder.safetensors"),
    ],
)
def test_the_weights_of_a_folder_are_found(names: list[str], chosen: str) -> None:
    assert choose_file(names, "folder") == chosen


def test_an_ambiguous_folder_names_the_candidates(files: Path) -> None:
    with pytest.raises(WeightsError, match=r"tiny\.pth, tiny\.safetensors"):
        resolve(str(files), TINY)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="no weights there"):
        resolve(str(tmp_path), TINY)


def test_a_folder_with_one_file_resolves_to_it(files: Path, tmp_path: Path) -> None:
    (tmp_path / "only.pth").write_bytes((files / "tiny.pth").read_bytes())
    assert resolve(str(tmp_path), TINY).path == str(tmp_path / "only.pth")


@pytest.mark.parametrize("wrong", ["nowhere/w.pth", "Wangyh/mSTAR"])
def test_a_path_that_is_not_there_explains_hub_ids(wrong: str) -> None:
    with pytest.raises(WeightsError, match="hf-hub:org/name"):
        resolve(wrong, TINY)


def test_an_expected_hash_is_held(files: Path) -> None:
    file = files / "tiny.pth"
    assert resolve(str(file), TINY, expected_sha256=sha256(file).upper()).sha256 == sha256(file)
    with pytest.raises(WeightsError, match=f"expected weights with sha256 {'0' * 64}, found"):
        resolve(str(file), TINY, expected_sha256="0" * 64)


def test_weights_that_change_during_the_run_are_refused(files: Path, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes((files / "tiny.pth").read_bytes())
    found = resolve(str(file), TINY)
    with file.open("ab") as more:
        more.write(b"x")
    with pytest.raises(WeightsError, match="changed since the run started"):
        localise(found, TINY)


def test_weights_on_the_drivers_disk_only_are_named(tmp_path: Path) -> None:
    elsewhere = ResolvedWeights(sha256="0" * 64, uri="/no/w.pth", path="/no/w.pth")
    with pytest.raises(WeightsError, match=r"/no/w\.pth: no such file or folder on this node"):
        localise(elsewhere, TINY, cache=tmp_path)


def test_random_weights_say_so_loudly(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = resolve(None, TINY)
    assert found.uri == "random:0"
    assert found.path is None
    assert found.seed == 0
    assert any("RANDOM weights" in r.message for r in caplog.records)
    assert resolve("random:1", TINY).sha256 != found.sha256 == resolve("random:00", TINY).sha256


@pytest.mark.parametrize("wrong", ["random:", "random:x", "random:-1", "random:1.5"])
def test_a_seed_is_a_whole_number(wrong: str) -> None:
    with pytest.raises(WeightsError, match="random:SEED"):
        resolve(wrong, TINY)


def test_s3_weights_are_fetched_once_per_node_and_named_by_content(
    files: Path, tmp_path: Path, s3_bucket: str
) -> None:
    uri = f"{s3_bucket}/models/tiny.pth"
    objects.put_file(files / "tiny.pth", uri)
    found = resolve(uri, TINY, cache=tmp_path / "driver")
    assert found.sha256 == sha256(files / "tiny.pth") == sha256(Path(found.path or ""))
    assert resolve(f"{s3_bucket}/models", TINY, cache=tmp_path / "folder").uri == uri

    on_node = ResolvedWeights(sha256=found.sha256, uri=uri, path="/not/on/this/node.pth")
    first = localise(on_node, TINY, cache=tmp_path / "node")
    objects.delete(uri)  # whoever comes second on the node no longer needs the store
    assert localise(on_node, TINY, cache=tmp_path / "node") == first
    assert first is not None
    assert sha256(first) == found.sha256


def test_s3_weights_replaced_during_the_run_are_refused(
    files: Path, tmp_path: Path, s3_bucket: str
) -> None:
    uri = f"{s3_bucket}/models2/tiny.pth"
    objects.put_file(files / "tiny.pth", uri)
    before = ResolvedWeights(sha256="0" * 64, uri=uri, path="/not/on/this/node.pth")
    with pytest.raises(WeightsError, match="expected weights with sha256 0000"):
        localise(before, TINY, cache=tmp_path)
    assert not list(tmp_path.glob("fetching-*"))
