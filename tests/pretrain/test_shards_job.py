"""Targets and slides in, shuffled shards out: every patch once and with its own target."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mstar.data.shards.format import ShardIndex, decode_targets, read_index
from mstar.data.shards.hashing import row_hashes
from mstar.data.targets import TargetStore
from mstar.features.store import FeatureStore
from mstar.pretrain.shards_check import ShardsCheckConfig
from mstar.pretrain.shards_check import run as check
from mstar.pretrain.shards_config import ShardsConfig
from mstar.pretrain.shards_job import write_shards
from mstar.slides.patches import read_patch
from mstar.slides.raw_tiles import decode
from mstar.slides.reader import open_slide
from mstar.training.exit_codes import ExitCode
from support.shard_inputs import KINDS, PASSED, PATCH_PX, TARGET_DIM
from support.shard_runs import changed, digests, elsewhere, rows_of, shards_of, small_work


@pytest.fixture(scope="module", autouse=True)
def _small_work() -> Iterator[None]:
    with small_work():
        yield


@pytest.fixture
def config(shard_inputs: ShardsConfig, tmp_path: Path) -> ShardsConfig:
    """The same job with an output of its own."""
    return elsewhere(shard_inputs, tmp_path)


# ------------------------------------------------------------------------------ what comes out


def test_every_patch_with_a_target_comes_once_and_with_its_own_target(
    finished_shards: ShardsConfig,
) -> None:
    store = TargetStore.open(finished_shards.out)
    expected = {}
    for slide_id in store.slide_ids():
        slide = store.read(slide_id)
        for (x, y), target in zip(slide.coords.tolist(), slide.targets, strict=True):
            expected[slide_id, x, y] = (slide.case_id, target.tobytes())
    rows = rows_of(finished_shards)
    found = {
        (row["slide_id"], row["x_l0"], row["y_l0"]): (row["case_id"], row["target"]) for row in rows
    }
    assert len(rows) == len(found) == len(expected)
    assert found == expected


def test_rows_are_in_the_order_of_their_hash_over_all_shards(finished_shards: ShardsConfig) -> None:
    rows = rows_of(finished_shards)
    hashes = [
        int(row_hashes(0, row["slide_id"], np.array([[row["x_l0"], row["y_l0"]]]))[0])
        for row in rows
    ]
    assert hashes == sorted(hashes)
    assert len(read_index(finished_shards.out).shards) > 1


def test_pixels_are_those_the_encoder_saw(finished_shards: ShardsConfig) -> None:
    """Bit for bit where a raw tile was passed through, nearly where it was encoded."""
    features = FeatureStore.open(finished_shards.features)
    rows = rows_of(finished_shards)
    passed = 0
    for slide_id in features.done_ids():
        slide = open_slide(Path(finished_shards.cohort) / "slides" / f"{slide_id}.svs")
        grid = features.read(slide_id).grid
        places = {tuple(place): row for row, place in enumerate(grid.coords.tolist())}
        for row in rows:
            if row["slide_id"] != slide_id:
                continue
            expected = read_patch(slide, grid, places[row["x_l0"], row["y_l0"]])
            pixels = decode(row["jpeg"])
            assert pixels.shape == (PATCH_PX, PATCH_PX, 3)
            if slide_id.startswith(PASSED):
                np.testing.assert_array_equal(pixels, expected)
                passed += 1
            else:
                error = (pixels.astype(float) - expected) ** 2
                assert 0 < error.mean() < 10
        slide.close()
    assert read_index(finished_shards.out).counts.passed_through == passed > 0


def test_the_index_says_what_there_is(finished_shards: ShardsConfig) -> None:
    index, rows = read_index(finished_shards.out), rows_of(finished_shards)
    targets = np.stack([np.frombuffer(row["target"], "<f2") for row in rows]).astype(float)
    np.testing.assert_allclose(index.target_mean, targets.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(index.target_std, targets.std(axis=0), atol=1e-6)
    assert index.num_rows == len(rows)
    assert (index.target_dim, index.patch_px) == (TARGET_DIM, PATCH_PX)
    assert index.counts.jpeg_bytes == sum(len(row["jpeg"]) for row in rows)
    assert (index.counts.num_slides, index.counts.num_cases) == (len(KINDS), 2)
    assert index.counts.left_out == {}
    assert index.encoder.input_px == 64
    assert index.encoder.weights_sha256 != "ab" * 32
    for shard in index.shards:
        data = (shards_of(finished_shards) / shard.name).read_bytes()
        assert (shard.num_bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert index.cosine is not None
    assert 0.99 <= index.cosine.mean <= 1
    assert index.cosine.smallest < 1, "encoded patches are not quite the same"


def test_only_shards_and_what_describes_them_stay(finished_shards: ShardsConfig) -> None:
    names = {name for name in digests(finished_shards) if not name.endswith(".parquet")}
    assert names == {"index.json", "preview.jpg", "shards.json"}


# ------------------------------------------------------------------------------------- settings


def test_images_of_the_encoders_size(config: ShardsConfig) -> None:
    assert write_shards(changed(config, image="encoder")) == ExitCode.COMPLETE
    index = read_index(config.out)
    assert index.patch_px == index.encoder.input_px == 64
    assert {decode(row["jpeg"]).shape for row in rows_of(config)} == {(64, 64, 3)}
    assert index.counts.passed_through == 0


def test_nothing_is_passed_through_when_it_is_not_wanted(config: ShardsConfig) -> None:
    assert write_shards(changed(config, pass_through=False)) == ExitCode.COMPLETE
    assert read_index(config.out).counts.passed_through == 0


def test_what_is_known_before_and_as_it_goes_is_said(
    config: ShardsConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write_shards(config) == ExitCode.COMPLETE
    said = capsys.readouterr()
    for words in ("bytes each with target", "raw tiles", "patches/s of one thread", "free"):
        assert words in said.out
    for words in ("shards 1/2:", "patches/s", "bytes/patch", "raw tiles", "free", "to go"):
        assert words in said.err


def test_a_dry_run_writes_nothing(config: ShardsConfig, capsys: pytest.CaptureFixture[str]) -> None:
    dry = replace(config, run=replace(config.run, dry_run=True))
    assert write_shards(dry) == ExitCode.COMPLETE
    assert not shards_of(config).exists()
    assert "Nothing was written" in capsys.readouterr().out


# ------------------------------------------------------------------------------- shards check


def test_check_finds_finished_shards_sound(
    finished_shards: ShardsConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(ShardsCheckConfig(shards=finished_shards.out)) == ExitCode.COMPLETE
    assert (
        check(ShardsCheckConfig(shards=str(shards_of(finished_shards)), decode=3))
        == ExitCode.COMPLETE
    )
    out = capsys.readouterr().out
    assert "sound" in out
    assert "WRONG" not in out


@pytest.fixture
def copy(finished_shards: ShardsConfig, tmp_path: Path) -> Path:
    """Finished shards to spoil."""
    shutil.copytree(shards_of(finished_shards), tmp_path / "shards")
    return tmp_path / "shards"


def cut(folder: Path, index: ShardIndex) -> None:
    path = folder / index.shards[0].name
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder: Path, index: ShardIndex) -> None:
    path = folder / index.shards[0].name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose(folder: Path, index: ShardIndex) -> None:
    (folder / index.shards[1].name).unlink()


def add_stray(folder: Path, index: ShardIndex) -> None:
    shutil.copy(folder / index.shards[0].name, folder / "shard-00099.parquet")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (cut, "bytes, got"),
        (flip, "its sha256 is not that of the index"),
        (lose, "got no such file"),
        (add_stray, "is not in index.json"),
    ],
)
def test_check_finds_damage(
    spoil: Callable[[Path, ShardIndex], None],
    said: str,
    copy: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(copy, read_index(str(copy)))
    assert check(ShardsCheckConfig(shards=str(copy))) == ExitCode.FAILED
    assert said in capsys.readouterr().out


def test_check_without_shards_is_a_usage_error(tmp_path: Path) -> None:
    assert check(ShardsCheckConfig(shards=str(tmp_path))) == ExitCode.USAGE
    assert decode_targets(pa.array([b"\0\0"], pa.binary(2)), 1).shape == (1, 1)
