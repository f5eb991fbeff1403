"""The job of one study: from tables and features to a line with an interval."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstar.data.splits.registry import write_registry
from mstar.downstream import bag_files
from mstar.downstream.predictions import read_predictions
from mstar.downstream.train_config import TrainHeadConfig, TrialChanges
from mstar.downstream.train_job import run
from mstar.errors import ConfigError, SplitError, TableError
from support.label_tables import some_registry, write_lines
from support.planted_tasks import planted_rows, write_store

TASKS = (
    "task_id,kind,metric,classes,trained_on,split_policy,regime",
    "ours,classification,macro_auc,no|yes,,registry,held_out",
    "theirs,classification,macro_auc,no|yes,ours,test_only,external",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A cohort with a registry, a store, two label tables and two task rows."""
    root = tmp_path_factory.mktemp("job")
    rng = np.random.default_rng(0)
    names = [f"case-{at:02d}" for at in range(50)]
    slides = {name: planted_rows(rng, float(at % 2), 12) for at, name in enumerate(names)}
    write_store(root / "F", slides)
    parts = {name: ("train", "train", "val", "test")[at // 2 % 4] for at, name in enumerate(names)}
    ours, theirs = names[:40], names[40:]
    (root / "C").mkdir()
    write_registry(str(root / "C"), some_registry({name: parts[name] for name in ours}))
    head = "case_id,slides,label"
    lines = [f"{name},{name},{('no', 'yes')[at % 2]}" for at, name in enumerate(names)]
    write_lines(root / "L", "ours.csv", head, *lines[:40])
    write_lines(root / "L", "theirs.csv", head, *lines[40:])
    assert theirs
    return {
        "labels": str(root / "L"),
        "features": f"toy={root / 'F'}",
        "cohort": str(root / "C"),
        "own": (write_lines(root, "tasks.csv", *TASKS),),
        "option": ("hidden=8", "attention_dim=4"),
        "trial": TrialChanges(epochs=3, lr=1e-2),
        "cache_dir": str(root / "cache"),
        "resamples": 100,
        "device": "cpu",
    }


def test_a_study_and_its_external_task(inputs, tmp_path: Path, capsys) -> None:
    ours = TrainHeadConfig(task="ours", out=str(tmp_path), seeds=2, **inputs)
    assert run(ours) == 0
    told = capsys.readouterr().out
    for words in (
        "ours/toy/abmil",
        "40 of 40 slides found (100.0%), by rule: 40 exact",
        "fold 0: 20 train, 10 validation, 10 test",
        "epochs 3",
        "fold 0, seed 2: validation",
        "test: macro_auc",
        "2 of 2 classes present, 2 seeds, spread",
        "fewer than 30 patients: no claim",
    ):
        assert words in told
    found = read_predictions(str(tmp_path / "ours/toy/abmil/predictions-test.parquet"))
    assert sorted(set(found.seed.tolist())) == [1, 2]
    assert run(dataclasses.replace(ours)) == 0
    assert "finished already" in capsys.readouterr().out
    theirs = TrainHeadConfig(task="theirs", out=str(tmp_path), **inputs)
    assert run(theirs) == 0
    assert "external: macro_auc" in capsys.readouterr().out
    outside = read_predictions(str(tmp_path / "theirs/toy/abmil/predictions-external.parquet"))
    assert len(outside) == 20
    assert outside.facts.trained_on == "ours"


def test_bags_in_shared_memory_go_with_the_job(inputs, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(bag_files, "SHARED_MEMORY", tmp_path / "shm")
    config = TrainHeadConfig(
        task="ours", out=str(tmp_path / "R"), head="prototype", **inputs | {"option": ()}
    )
    assert run(dataclasses.replace(config, cache_dir=None)) == 0
    left = [path.name for path in (tmp_path / "shm").rglob("*") if path.is_file()]
    assert left
    assert not [name for name in left if name.endswith(".bags")]


def test_a_dry_run_writes_nothing(inputs, tmp_path: Path, capsys) -> None:
    assert run(TrainHeadConfig(task="ours", out=str(tmp_path), dry_run=True, **inputs)) == 0
    assert "dry run" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_compat_says_why_it_reads_high(inputs, tmp_path: Path, capsys) -> None:
    config = TrainHeadConfig(
        task="ours", out=str(tmp_path), dry_run=True, protocol="paper-compat", **inputs
    )
    run(config)
    told = capsys.readouterr().out
    assert "reads high" in told
    assert "epochs 50, patience 10" in told.replace("lr 0.01, ", "")


def test_wrong_inputs_are_errors_with_a_way_out(inputs, tmp_path: Path) -> None:
    base = {"task": "ours", "out": str(tmp_path), **inputs}
    with pytest.raises(ConfigError, match="Run that task into the same --out first"):
        run(TrainHeadConfig(**base | {"task": "theirs"}))
    with pytest.raises(TableError, match=r"expected a label table ours\.csv"):
        run(TrainHeadConfig(**base | {"labels": str(tmp_path)}))
    with pytest.raises(SplitError):
        run(TrainHeadConfig(**base | {"cohort": "", "own": inputs["own"]}))
    for change, words in (
        ({"head": "abmill"}, "Did you mean abmil"),
        ({"option": ("hidden",)}, "expected name=value"),
        ({"option": ("hidden=x",)}, "of type int"),
        ({"option": ("depth=2",)}, "no option 'depth'"),
        ({"seeds": 0}, "at least 1"),
        ({"split": "s", "cohort": ""}, "expected --cohort"),
    ):
        with pytest.raises(ConfigError, match=words):
            TrainHeadConfig(**base | change)
