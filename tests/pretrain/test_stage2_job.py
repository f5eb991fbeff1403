"""The stage-2 job end to end: what it leaves, what it says, what it leaves out, what it refuses."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch

from mstar.cli.main import main
from mstar.data.shards.format import ShardIndex
from mstar.data.shards.rows import SlideRows
from mstar.errors import ConfigError, TrainingError, WeightsError
from mstar.models.patch_encoders import find_encoder, load_model, prepare_weights
from mstar.models.projection import load_projection
from mstar.pretrain import stage2, stage2_finish
from mstar.pretrain.stage2 import read_facts, run
from mstar.pretrain.stage2_export import read_record
from mstar.pretrain.stage2_knn import knn_accuracy, read_labelled
from mstar.training.engines import EngineConfig
from mstar.training.exit_codes import ExitCode
from mstar.training.group_config import GroupConfig
from mstar.training.run_log import read_steps
from support.shard_sets import patch_image
from support.stage2_runs import (
    ROWS,
    ids_of,
    losses_of,
    recorded,
    small_run,
    write_stage2_shards,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage2") / "T"
    write_stage2_shards(folder / "shards")
    return folder


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches of two kinds that any encoder tells apart, from four cases."""
    rows = []
    for place in range(16):
        image = patch_image(place, 0, 64) // 4 + (160 if place % 2 else 0)
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(image.astype(np.uint8)), quality=95)
        rows.append({"jpeg": jpeg, "label": "ab"[place % 2], "case_id": f"c{place // 4}"})
    path = tmp_path_factory.mktemp("knn") / "labels.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def done(shards: Path, labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one whole run, with everything that watches it."""
    out = tmp_path_factory.mktemp("out") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert run(watched(shards, labels, out)) == ExitCode.COMPLETE
    return out


def watched(shards: Path, labels: Path, out: Path) -> stage2.Stage2Config:
    return small_run(
        shards,
        out,
        watch_every_steps=4,
        knn_labels=str(labels),
        knn_every_steps=6,
        knn_neighbours=3,
        tracking=True,
    )


def test_a_run_leaves_its_export_log_pictures_and_record(done: Path) -> None:
    facts = read_facts(str(done))
    assert facts["complete"] is True
    assert facts["steps_done"] == facts["steps"] == len(losses_of(done)) == 10
    assert facts["bad_rows"] == 0
    assert facts["facts"]["counts"] == {"patches": ROWS, "slides": 5, "cases": 3}
    assert set(facts["weights_sha256"]) == {
        "encoder.pth",
        "encoder.safetensors",
        "projection.safetensors",
    }
    for name in ("curves.png", "neighbours.png"):
        assert (done / name).read_bytes().startswith(b"\x89PNG")
    assert "vit_micro" in (done / "model_card.md").read_text()
    assert "10 steps of 24" in (done / "log.txt").read_text()


def test_the_export_is_what_plain_timm_loads_strictly(done: Path) -> None:
    spec = find_encoder("vit_micro")
    encoder = spec.build()
    state = torch.load(done / "encoder.pth", weights_only=True)
    encoder.load_state_dict(state, strict=True)
    ours = load_model(spec, prepare_weights("vit_micro", str(done / "encoder.safetensors")))
    first = load_model(spec, prepare_weights("vit_micro", "random:0")).state_dict()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert any(not torch.equal(value, first[name]) for name, value in state.items()), "trained"
    assert load_projection(done / "projection.safetensors").weight.shape == (16, 96)
    record = read_record(done / "encoder.safetensors")
    assert record["initial_uri"] == "random:0"
    assert not {"patches_per_s", "input_wait", "step_s", "pid"} & set(record["metrics"])


def test_probe_and_knn_check_are_looked_at_when_they_are_due(done: Path) -> None:
    rows = list(read_steps(done / "steps.jsonl"))
    assert [r["step"] for r in rows if "watch.drift" in r] == [0, 4, 8, 10]
    assert [r["step"] for r in rows if "knn.balanced_accuracy" in r] == [0, 6, 10]
    assert rows[0]["watch.drift"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["watch.drift"] > 1e-6
    assert rows[0]["knn.chance"] == 0.5
    assert rows[0]["knn.balanced_accuracy"] == 1.0
    for row in rows:
        if "loss" in row:
            expected = row["loss.a"] + 0.6 * row["loss.b"]
            assert row["loss"] == pytest.approx(expected, rel=1e-5)
            assert 0 <= row["input_wait"] <= 1


def test_neighbours_of_the_own_case_do_not_vote(labels: Path) -> None:
    """Every patch's twin lies in its own case and has its label; nothing else agrees with it."""
    features = np.repeat(np.eye(4), 2, axis=0) + 0.01 * np.arange(8)[:, None]
    label = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    case = np.repeat(np.arange(4), 2)
    assert knn_accuracy(features, label, -1 - np.arange(8), 1) == 1.0
    assert knn_accuracy(features, label, case, 1) < 1.0
    found = read_labelled(str(labels))
    assert found.names == ("a", "b")
    assert len(np.unique(found.case)) == 4


def test_a_complete_run_does_nothing_when_asked_again(
    shards: Path,
    labels: Path,
    done: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("it trained again")

    monkeypatch.setattr(stage2, "train", never)
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()}
    began_s = time.monotonic()
    assert run(watched(shards, labels, done)) == ExitCode.COMPLETE
    assert time.monotonic() - began_s < 5
    assert "already complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 3e-4, "seed": 5}, ["lr: there 0.0001, here 0.0003", "seed: there 0, here 5"]),
        ({"epochs": 3}, ["epochs: there 2, here 3"]),
    ],
)
def test_another_run_in_the_same_folder_is_refused_by_its_settings(
    shards: Path, labels: Path, done: Path, changes: dict[str, Any], named: list[str]
) -> None:
    with pytest.raises(ConfigError) as told:
        run(replace(watched(shards, labels, done), **changes))
    for text in (str(done), *named, "another --out"):
        assert text in str(told.value)


def test_other_shards_in_the_same_folder_are_refused(
    labels: Path, done: Path, tmp_path: Path
) -> None:
    write_stage2_shards(tmp_path / "shards", seed=3)
    with pytest.raises(ConfigError, match=r"shards_fingerprint: there '0{16}', here '0{15}3'"):
        run(watched(tmp_path, labels, done))


def test_other_weights_than_those_behind_the_features_are_refused(
    shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=r"made with weights of sha256 .*allow-other-weights"):
        run(small_run(shards, tmp_path / "out", weights="random:1"))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    args = ["stage2", "laptop", "--shards", str(shards), "--weights", "random:0", "--out", str(out)]
    assert main([*args, "--batch-patches", "32", "--lanes", "8", "--dry-run"]) == ExitCode.COMPLETE
    said = capsys.readouterr().out
    assert "would train vit_micro on 100 patches of 5 slides" in said
    assert "4 steps of 32 patches (32 a worker), 4 an epoch; 21.88% of the places" in said
    assert not out.exists()


def test_mlflow_has_the_run_its_pictures_and_the_model(done: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{done / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "stage2"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["batch_patches"] == "24"
    assert found.data.params["loss.balance"] == "0.6"
    logged = {m.step: m.value for m in client.get_metric_history(found.info.run_id, "loss")}
    assert logged == pytest.approx(losses_of(done))
    drift = client.get_metric_history(found.info.run_id, "watch.drift")
    assert [m.step for m in drift] == [0, 4, 8, 10]
    files = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert {"curves.png", "neighbours.png", "model_card.md"} <= files
    picture = client.download_artifacts(found.info.run_id, "neighbours.png", str(tmp_path))
    assert Path(picture).read_bytes() == (done / "neighbours.png").read_bytes()
    (version,) = client.search_model_versions("name = 'mstar-patch-encoder'")
    assert version.tags["sha256"] == read_facts(str(done))["weights_sha256"]["encoder.safetensors"]
    assert version.source.endswith("encoder.safetensors")


# rows that cannot be trained


def spoil(slides: list[SlideRows]) -> None:
    """Two broken JPEGs and a target with NaN, in three slides."""
    for slide, row in ((0, 3), (1, 5)):
        jpegs = list(slides[slide].jpegs)
        jpegs[row] = jpegs[row][: len(jpegs[row]) // 2] if slide else b"no image"
        object.__setattr__(slides[slide], "jpegs", jpegs)
    slides[2].targets[7, 4] = np.nan


SPOILT = (
    "slide slide-00 at (768, 0)",
    "slide slide-01 at (1280, 0)",
    "slide slide-02 at (1792, 0)",
)


def truncated(folder: Path, index: ShardIndex, shard: int) -> int:
    """Cut a shard's file in half; how many rows that costs."""
    path = folder / index.shards[shard].name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return index.shards[shard].num_rows


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage2_finish, "curves", lambda *_: None)
    monkeypatch.setattr(stage2_finish, "neighbours", lambda *_: None)


def test_bad_rows_are_counted_named_and_left_out_below_the_bound(
    tmp_path: Path, no_pictures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_stage2_shards(tmp_path / "T/shards", spoil=spoil)
    out = tmp_path / "out"
    config = small_run(tmp_path / "T", out, max_bad_rows="3", watch_every_steps=5)
    with recorded(out, "all"):
        assert run(config) == ExitCode.COMPLETE
    assert read_facts(str(out))["bad_rows"] == 2 * 3, "in each of two epochs"
    assert "6 rows left out" in capsys.readouterr().out
    said = (out / "log.txt").read_text()
    for name in SPOILT:
        assert f"left out: {name}" in said
    ids = ids_of(out, "all")
    for epoch in (0, 1):
        trained = [patch for step in range(5 * epoch, 5 * epoch + 5) for patch in ids[step]]
        assert len(trained) == len(set(trained)) == ROWS - 3
        assert not set(SPOILT) & set(trained)
    rows = [row for row in read_steps(out / "steps.jsonl") if "loss" in row]
    assert sum(row["rows"] for row in rows) == 2 * (ROWS - 3)
    assert all(np.isfinite(row["loss"]) for row in rows)


def test_a_truncated_shard_costs_its_rows_only(tmp_path: Path, no_pictures: None) -> None:
    folder, out = tmp_path / "T/shards", tmp_path / "out"
    index = write_stage2_shards(folder)
    lost = truncated(folder, index, 1)
    config = small_run(tmp_path / "T", out, max_bad_rows="25%", epochs=1)
    with recorded(out, "all"):
        assert run(config) == ExitCode.COMPLETE
    assert read_facts(str(out))["bad_rows"] == lost
    assert index.shards[1].name in (out / "log.txt").read_text()
    trained = [patch for ids in ids_of(out, "all").values() for patch in ids]
    assert len(trained) == len(set(trained)) == ROWS - lost


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda folder: write_stage2_shards(folder, spoil=spoil),
            r"at most 2 rows.*got 3: 2 whose",
        ),
        (
            lambda folder: truncated(folder, write_stage2_shards(folder), 1),
            r"at most 2 rows.*in shards that cannot be read.*shard-00001\.parquet",
        ),
    ],
    ids=["rows", "shard"],
)
def test_more_bad_rows_than_allowed_stop_the_run_and_nothing_is_exported(
    tmp_path: Path, no_pictures: None, change: Callable[[Path], Any], words: str
) -> None:
    change(tmp_path / "T/shards")
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match=re.compile(words, re.DOTALL)):
        run(small_run(tmp_path / "T", out, max_bad_rows="2"))
    assert not (out / "stage2.json").exists()
    assert not (out / "encoder.pth").exists()


# a group of workers


@pytest.mark.slow
@pytest.mark.ray
def test_two_ray_workers_reading_through_ray_data_give_the_losses_of_one_process(
    shards: Path, tmp_path: Path, local_ray: None, no_pictures: None
) -> None:
    alone = small_run(shards, tmp_path / "alone")
    assert run(alone) == ExitCode.COMPLETE
    group = GroupConfig(workers=2, cpus_per_worker=1.0)
    config = replace(alone, out=str(tmp_path / "two"), micro_batch=12, group=group)
    config = replace(config, engine=EngineConfig(engine="deepspeed", precision="fp32"))
    assert run(config) == ExitCode.COMPLETE
    ours, theirs = losses_of(tmp_path / "two"), losses_of(tmp_path / "alone")
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-4)
    facts = json.loads((tmp_path / "two/stage2.json").read_text())
    assert facts["complete"]
    rows = [r["rows"] for r in read_steps(tmp_path / "two/steps.jsonl") if "loss" in r]
    assert sum(rows) == 2 * ROWS
    spec = find_encoder("vit_micro")
    spec.build().load_state_dict(torch.load(tmp_path / "two/encoder.pth", weights_only=True))
