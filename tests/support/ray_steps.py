"""The small model of `engine_steps` trained under Ray Train, with what can happen to a group."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch

from mstar.errors import CheckpointError, StorageError, TrainingError
from mstar.training.engines import EngineConfig
from mstar.training.loop import Loop, LoopConfig
from mstar.training.sessions import Session, TrainState, read_state
from mstar.training.tracker import NullTracker
from support import engine_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is trained, and what befalls it, once each.

    notes: a local folder for what the ranks have to say.
    dies_at: rank 1 ends without a word before this step. node_goes_at: the node is announced to be
    taken away after this step. fails_with: `nan` or `storage`, of rank 1, every time.
    scratch: where checkpoints are written before they are copied.
    """

    notes: str
    engine: EngineConfig
    dies_at: int = -1
    node_goes_at: int = -1
    fails_with: str = ""
    scratch: str = ""


def train(session: Session, plan: Plan) -> None:
    """What a stage does: read the checkpoint, make the engine, run the loop."""
    notes = Path(plan.notes)
    if plan.scratch:
        tempfile.tempdir = plan.scratch
    with session.latest() as folder:
        start = TrainState(step=0, world_size=session.world_size, fingerprint="f")
        state = start if folder is None else read_state(folder)
        state = TrainState(step=state.step, world_size=session.world_size, fingerprint="f")
        engine = engine_steps.start(plan.engine, resume=folder)
    note(notes, f"rank{session.rank}", f"{state.step} of {session.world_size}")

    def step(number: int) -> dict[str, float]:
        befall(session, plan, number)
        trained = engine_steps.advance(engine, number, number + 1)
        return {"loss": 1.0, "grad_norm": trained.norms[0]}

    Loop(
        config=LoopConfig(num_steps=engine_steps.STEPS, validate_every=0, checkpoint_every=2),
        session=session,
        state=state,
        step=step,
        validate=lambda step: ({}, None),
        write=engine.save,
        on_best=lambda step, metrics: None,
        tracker=NullTracker(),
    ).run()
    parameters = engine_steps.parameters_of(engine.module)
    torch.save(parameters, notes / f"rank{session.rank}.pt")


def befall(session: Session, plan: Plan, step: int) -> None:
    """The mishap planned for this step, if it has not happened yet."""
    notes = Path(plan.notes)
    if step == plan.dies_at and session.rank == 1 and once(notes / "died"):
        os._exit(1)
    if step == plan.node_goes_at and once(notes / f"gone{session.rank}"):
        announced: Any = object()
        ray.train.get_preemption_info = lambda: announced
    if plan.fails_with == "nan" and session.rank == 1:
        raise TrainingError("step 0: expected a finite loss, got nan")
    if plan.fails_with == "storage" and session.rank == 1:
        raise StorageError("the bucket is gone") from CheckpointError("never the cause shown")


def once(marker: Path) -> bool:
    if marker.exists():
        return False
    marker.touch()
    return True


def note(folder: Path, name: str, text: str) -> None:
    with (folder / name).open("a") as file:
        file.write(text + "\n")


def notes_of(folder: Path, name: str) -> list[str]:
    return (folder / name).read_text().splitlines()


def sleepy(session: Session, plan: Plan) -> None:
    """Says that it has begun, and then does nothing for long."""
    (Path(plan.notes) / "started").touch()
    time.sleep(300)
