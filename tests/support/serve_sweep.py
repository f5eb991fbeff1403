"""A sweep in this process, without Ray: what any other way of running it must give."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from mstar.downstream.journal import Journal
from mstar.downstream.model_files import load_fit, model_digest
from mstar.downstream.piece_worker import PieceWorker, WorkerSettings
from mstar.downstream.schedule import Schedule
from mstar.downstream.studies import plan_sweep
from mstar.downstream.sweep_config import SweepConfig


def serve(config: SweepConfig, *, most: int | None = None, slots: int = 1) -> Schedule:
    """Run a sweep in this process, or its first pieces."""
    plan = plan_sweep(config)
    stores = {name: encoder.roots for name, encoder in plan.encoders.items()}
    settings = WorkerSettings(
        out=config.out,
        protocol=config.protocol,
        stores=stores,
        cache_dir=config.cache_dir,
        figures=config.figures,
        sources=config.sources,
        options=config.option,
        seeds=tuple(range(1, config.seeds + 1)),
    )
    worker = PieceWorker(settings, plan.tasks.__getitem__)
    with closing(Journal(config.out)) as journal:
        schedule = Schedule(plan.studies, journal, slots=slots)
        for number in range(10**6):
            if schedule.finished or number == most:
                return schedule
            piece = schedule.next()
            assert piece is not None
            schedule.take(piece, worker.work(piece))
    raise AssertionError("it does not end")


def files(out: str) -> Iterator[tuple[str, str]]:
    """Digests of predictions and of models, whose files also say how long they took."""
    for path in sorted(Path(out).rglob("*")):
        name = str(path.relative_to(out))
        if name.startswith("mlartifacts/"):  # MLflow's copies
            continue
        if path.suffix == ".parquet" or path.name == "few_shot.safetensors":
            yield name, hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix == ".safetensors":
            yield name, model_digest(load_fit(str(path)).fit)
