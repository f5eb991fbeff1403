"""A small sweep to run: a feature store or more, label tables and own task rows on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mstar.downstream.sweep_config import SweepConfig
from support.planted_tasks import DIM, planted_rows, write_store

PARTS = ("train", "train", "train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A task to plant.

    strength: of the signal; 0 cannot be learnt. cases: their number.
    """

    task_id: str
    kind: str = "classification"
    strength: float = 1.0
    cases: int = 40
    trained_on: str = ""


EASY = Planted(task_id="easy")
HARD = Planted(task_id="hard", strength=0.1)
RISK = Planted(task_id="risk", kind="survival")


def plant(
    root: Path, tasks: Sequence[Planted] = (EASY, RISK), *, encoders: Sequence[str] = ("enc",)
) -> dict[str, Any]:
    """Write everything; returns the settings of a sweep over it, to be changed at will."""
    labels = root / "labels"
    labels.mkdir(parents=True)
    for task in tasks:
        (labels / f"{task.task_id}.csv").write_text(_table(task))
    rows = ["task_id,kind,metric,classes,trained_on,split_policy"]
    rows += [_row(task) for task in tasks]
    (root / "tasks.csv").write_text("\n".join(rows) + "\n")
    for number, name in enumerate(encoders):
        write_store(root / name, _slides(tasks, number))
    return {
        "labels": str(labels),
        "features": tuple(f"{name}={root / name}" for name in encoders),
        "own": (str(root / "tasks.csv"),),
        "tasks": tuple(task.task_id for task in tasks),
        "heads": ("linear", "abmil"),
        "space": "quick",
        "cache_dir": str(root / "cache"),
        "out": str(root / "out"),
        "tracking": False,
        "figures": False,
    }


def sweep_config(settings: dict[str, Any], **changes: Any) -> SweepConfig:
    """The settings with changes."""
    return SweepConfig(**(settings | changes))


def _slides(tasks: Sequence[Planted], seed: int) -> dict[str, np.ndarray]:
    slides = {}
    for number, task in enumerate(tasks):
        rng = np.random.default_rng([seed, number])
        for at in range(task.cases):
            size = int(rng.integers(4, 12))
            slides[f"{task.task_id}-{at:03d}"] = planted_rows(rng, task.strength * (at % 2), size)
    assert all(rows.shape[1] == DIM for rows in slides.values())
    return slides


def _table(task: Planted) -> str:
    rng = np.random.default_rng(0)
    names = "time_months,event" if task.kind == "survival" else "label"
    lines = [f"case_id,slides,{names},split,data_source"]
    for at in range(task.cases):
        own = "no" if at % 2 == 0 else "yes"
        if task.kind == "survival":
            own = f"{rng.exponential(20.0) * np.exp(-2.0 * (at % 2)) + 0.1:.3f},{int(at % 5 != 0)}"
        part = "test" if task.trained_on else PARTS[at // 2 % 5]
        lines.append(f"{task.task_id}c{at:03d},{task.task_id}-{at:03d},{own},{part},generated")
    return "\n".join(lines) + "\n"


def _row(task: Planted) -> str:
    metric = "c_index" if task.kind == "survival" else "macro_auc"
    classes = "" if task.kind == "survival" else "no|yes"
    policy = "test_only" if task.trained_on else "own"
    return f"{task.task_id},{task.kind},{metric},{classes},{task.trained_on},{policy}"
