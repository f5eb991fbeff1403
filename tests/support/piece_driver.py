"""Sweeps of studies that train nothing: a stand-in does the pieces' work."""

from __future__ import annotations

import random
from collections.abc import Callable

from mstar.downstream.config import HONEST, Study
from mstar.downstream.pieces import Answer, Concluded, FitRecord, Piece
from mstar.downstream.schedule import Schedule
from mstar.downstream.spaces import LogUniform, Space
from mstar.downstream.study_run import StudyPlan

SPACE = Space(
    search={"lr": LogUniform(1e-5, 1e-2)}, samples=10, population=4, epochs=(2, 8), keep=2
)
FULL = 5  # full-length configurations of SPACE: 2 + 2 + 1


def make_plan(task: str, **fields: object) -> StudyPlan:
    """A study of two folds and two seeds."""
    given_fields: dict[str, object] = {
        "study": Study(task_id=task, encoder="e", head="abmil"),
        "data_key": f"{task}/e",
        "settings": "s",
        "folds": ("a", "b"),
        "seeds": (1, 2),
        "size": 1e6,
        "protocol": HONEST,
        "space": SPACE,
        "budgets": SPACE.epochs,
    }
    return StudyPlan(**(given_fields | fields))  # type: ignore[arg-type]


def work(piece: Piece, quality: float = 1.0) -> Answer:
    """Scores that depend on the fit's name alone, higher in an easy task."""
    fits = []
    for at, trial in enumerate(piece.trials if piece.work == "fit" else ()):
        for (fold, seed), key in zip(piece.runs, piece.keys[at], strict=True):
            score = quality * random.Random(key).random()
            fits.append(FitRecord(key=key, trial=trial, fold=fold, seed=seed, score=score))
    done = Concluded(folder="f", trial=0, config={}, mean_score=0.5, predictions={})
    return Answer(fits=tuple(fits), concluded=done if piece.work != "fit" else None)


def drive(
    schedule: Schedule,
    do: Callable[[Piece], Answer] = work,
    *,
    slots: int = 3,
    seed: int = 0,
    most: int | None = None,
) -> list[Piece]:
    """Work like so many workers that end in any order; stop after `most` answers."""
    order = random.Random(seed)
    running: list[Piece] = []
    done: list[Piece] = []
    while not schedule.finished and (most is None or len(done) < most):
        while len(running) < slots and (piece := schedule.next()) is not None:
            running.append(piece)
        piece = running.pop(order.randrange(len(running)))
        schedule.take(piece, do(piece))
        done.append(piece)
    return done


def full_lengths(schedule: Schedule) -> dict[str, int]:
    """Task → configurations trained to the end."""
    return {
        study.task_id: sum(end.full for end in run.search.ended.values())
        for study, run in schedule.studies.items()
    }


def winners(schedule: Schedule) -> dict[str, object]:
    """Study → its winner and every trial's score."""
    return {
        study.key: (run.search.best, sorted((e.trial, e.score) for e in run.search.ended.values()))
        for study, run in schedule.studies.items()
    }
