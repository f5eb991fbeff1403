"""`stage2 --init-from`: what is taken over, what is measured of it, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mstar.errors import ConfigError, WeightsError
from mstar.losses.self_taught import TargetStatistics
from mstar.models.patch_encoders import prepare_weights
from mstar.models.state_dicts import read_state
from mstar.models.student import build_student
from mstar.pretrain.stage2 import read_facts, run
from mstar.pretrain.stage2_export import folded_projection
from mstar.pretrain.stage2_init import initialise
from mstar.training.exit_codes import ExitCode
from support.stage2_runs import small_run, write_stage2_shards

FILES = ("encoder.safetensors", "projection.safetensors")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of the first run."""
    folder = tmp_path_factory.mktemp("stage2") / "T"
    write_stage2_shards(folder / "shards")
    return folder


@pytest.fixture(scope="module")
def first(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a finished run that has learnt something."""
    out = tmp_path_factory.mktemp("first") / "run"
    config = replace(small_run(shards, out), epochs=1, lr=1e-3, lr_projection=1e-2)
    assert run(config) == ExitCode.COMPLETE
    return out


def parts_of(out: Path) -> list[dict[str, Any]]:
    """What a run says it has changed."""
    found: list[dict[str, Any]] = json.loads((out / "forgetting.json").read_text())["parts"]
    return found


def test_a_run_that_learns_nothing_leaves_what_it_started_from(
    shards: Path, first: Path, tmp_path: Path
) -> None:
    config = small_run(shards, tmp_path / "b", init_from=str(first))
    assert run(replace(config, lr=0.0, lr_projection=0.0, max_steps=2)) == ExitCode.COMPLETE
    for name in FILES:
        before, after = read_state(first / name), read_state(tmp_path / "b" / name)
        assert before.keys() == after.keys()
        for key in before:
            torch.testing.assert_close(after[key], before[key], rtol=0, atol=0)
    old, new = parts_of(tmp_path / "b")
    for part in (old, new):
        assert part["after"] == pytest.approx(part["before"], abs=1e-5)
        assert part["after"]["drift"] == pytest.approx(0, abs=1e-5)


def test_new_shards_go_on_and_what_was_forgotten_is_measured(
    shards: Path, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_stage2_shards(tmp_path / "T" / "shards", seed=5)
    out = tmp_path / "b"
    config = small_run(tmp_path / "T", out, init_from=str(first), watch_every_steps=5)
    config = replace(config, epochs=1, lr=1e-3, lr_projection=1e-2)
    assert run(config) == ExitCode.COMPLETE
    assert "patches of the run it started from" in capsys.readouterr().out
    old, new = parts_of(out)
    assert (old["size"], new["size"]) == (24, 24)
    for part in (old, new):
        assert part["after"]["drift"] > 1e-4
        assert part["before"]["cosine.targets"] != part["after"]["cosine.targets"]
    metrics = read_facts(out)["metrics"]
    assert metrics["watch.drift"] < 0.9, "measured from the encoder it started with"
    assert "stage 2 holds none out" in (out / "forgetting.md").read_text()
    assert run(config) == ExitCode.COMPLETE, "again: nothing to do"
    with pytest.raises(ConfigError, match="init_from"):
        run(replace(config, init_from=""))


def test_shards_that_are_gone_are_said(first: Path, shards: Path, tmp_path: Path) -> None:
    config = small_run(
        shards, tmp_path / "b", init_from=str(first), old_shards=str(tmp_path / "gone")
    )
    assert run(replace(config, max_steps=1)) == ExitCode.COMPLETE
    old, new = parts_of(tmp_path / "b")
    assert old["size"] == 0
    assert "--old-shards" in old["notes"][0]
    assert new["size"] == 24


def test_a_projection_comes_back_to_standardised_targets(
    shards: Path, first: Path, tmp_path: Path
) -> None:
    weights = prepare_weights("vit_micro", "random:0")
    dim = read_state(first / "projection.safetensors")["proj.bias"].shape[0]
    statistics = TargetStatistics(mean=torch.linspace(-1, 1, dim), std=torch.linspace(0.5, 2, dim))
    student = build_student("vit_micro", weights, target_dim=dim)
    initialise(student, str(first), statistics)
    again = folded_projection(student.proj, statistics)
    for key, value in read_state(first / "projection.safetensors").items():
        torch.testing.assert_close(again[key], value, rtol=1e-5, atol=1e-6)
    other = build_student("vit_micro", weights, target_dim=dim + 1)
    with pytest.raises(WeightsError, match="same length"):
        initialise(other, str(first), None)


def test_what_is_no_finished_run_of_the_encoder_is_refused(
    shards: Path, first: Path, tmp_path: Path
) -> None:
    config = small_run(shards, tmp_path / "b", init_from=str(tmp_path))
    with pytest.raises(ConfigError, match="got nothing"):
        run(config)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (*FILES, "stage2.json"):
        (copy / name).write_bytes((first / name).read_bytes())
    facts = json.loads((copy / "stage2.json").read_text())
    facts["facts"]["encoder"] = "uni"
    (copy / "stage2.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="expected the encoder of the shards, vit_micro, got uni"):
        run(replace(config, init_from=str(copy)))
    with pytest.raises(ConfigError, match="another folder than --out"):
        run(replace(config, init_from=str(first), out=str(first)))
