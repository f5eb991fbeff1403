"""What the shard job leaves out and names, and what it refuses before it writes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mstar.data.shards.format import read_index
from mstar.errors import CohortError, ConfigError, FeatureError, StorageError, WeightsError
from mstar.features.store import FeatureStore
from mstar.pretrain import shards_report
from mstar.pretrain.shards_config import ShardsConfig
from mstar.pretrain.shards_job import write_shards
from mstar.training.exit_codes import ExitCode
from support.shard_runs import (
    changed,
    digests,
    elsewhere,
    rows_of,
    shards_of,
    small_work,
    with_own_slides,
)
from support.slides import spoil_tile


@pytest.fixture(scope="module", autouse=True)
def _small_work() -> Iterator[None]:
    with small_work():
        yield


@pytest.fixture
def config(shard_inputs: ShardsConfig, tmp_path: Path) -> ShardsConfig:
    """The same job with an output of its own."""
    return elsewhere(shard_inputs, tmp_path)


def test_unreadable_patches_are_left_out_counted_and_named(
    config: ShardsConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_own_slides(config, tmp_path)
    spoil_tile(Path(config.cohort) / "slides" / "aligned.svs", tile=7)
    spoil_tile(Path(config.cohort) / "slides" / "rgb.svs", tile=12, damage="cut")
    assert write_shards(changed(config, max_left_out="2")) == ExitCode.COMPLETE
    index = read_index(config.out)
    assert index.counts.left_out == {"unreadable patch": 2}
    with (shards_of(config) / "left_out.csv").open() as file:
        named = {(row["slide_id"], row["x_l0"], row["y_l0"]) for row in csv.DictReader(file)}
    assert named == {("aligned", "256", "128"), ("rgb", "256", "256")}
    assert not named & {
        (row["slide_id"], str(row["x_l0"]), str(row["y_l0"])) for row in rows_of(config)
    }
    assert "2 × unreadable patch; named in" in capsys.readouterr().out


def test_pixels_that_the_encoder_sees_otherwise_are_refused(config: ShardsConfig) -> None:
    bad = changed(config, quality=1, pass_through=False)
    with pytest.raises(FeatureError, match=r"mean cosine of at least 0.99.*got 0\.\d+"):
        write_shards(bad)
    assert not any(name.endswith(".parquet") for name in digests(bad))
    assert write_shards(changed(bad, least_cosine=0.1)) == ExitCode.COMPLETE


def test_other_weights_are_refused_by_hash(config: ShardsConfig) -> None:
    with pytest.raises(WeightsError, match="expected weights with sha256"):
        write_shards(changed(config, weights="random:1"))


def test_without_weights_features_are_not_compared_and_that_is_said_loudly(
    config: ShardsConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write_shards(changed(config, weights=None)) == ExitCode.COMPLETE
    assert read_index(config.out).cosine is None
    out = capsys.readouterr().out
    assert "WARNING: the features of stored pixels are NOT compared" in out
    assert "NOT compared: no weights were given" in out


def test_the_disk_must_have_room(config: ShardsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_report, "free_bytes", lambda folder: 1000)
    with pytest.raises(StorageError, match="of free disk for buckets and"):
        write_shards(config)


def test_features_and_targets_must_belong_together(config: ShardsConfig, tmp_path: Path) -> None:
    other = FeatureStore.open_or_create(str(tmp_path / "F"), {"encoder": "another"})
    with pytest.raises(FeatureError, match="expected the features the targets were made from"):
        write_shards(replace(config, features=other.root))


def test_a_slide_that_the_cohort_lacks_is_named(config: ShardsConfig, tmp_path: Path) -> None:
    config = with_own_slides(config, tmp_path)
    manifest = Path(config.cohort) / "slides.csv"
    lines = [line for line in manifest.read_text().splitlines() if "coarse" not in line]
    manifest.write_text("\n".join(lines) + "\n")
    with pytest.raises(CohortError, match="slide coarse: expected in"):
        write_shards(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quality": 0}, "quality: expected 1 to 100"),
        ({"shard_mb": 300, "memory_mb": 1000}, "at most a quarter of memory_mb"),
        ({"max_left_out": "many"}, "max-failures"),
    ],
)
def test_settings_without_a_meaning_are_refused(
    settings: dict[str, Any], message: str, shard_inputs: ShardsConfig
) -> None:
    with pytest.raises(ConfigError, match=message):
        changed(shard_inputs, **settings)
