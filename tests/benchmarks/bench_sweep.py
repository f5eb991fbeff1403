"""Sweeps of short trials: against separate programs, and populations against single trials.

    PYTHONPATH=tests python tests/benchmarks/bench_sweep.py [--programs 4] [--trials 16] [--quick]

One JSON line per ratio, each with its target. Ray is started before and told apart, and so is the
time until a sweep's first answer (workers start and import torch); rates are of the steady state.

separate    trials a minute of a sweep (Tune, reused actors, bags mapped) against the same study as
            programs of their own, one after another, each of which imports, loads, trains, tests.
population  16 configurations as one Tune trial against 16 Tune trials in actors of their own (Tune
            by itself: each imports torch), starts included. Beside it, 16 trials on reused
            actors, which is what a sweep does with trials that are too long to share one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

sys.path.insert(0, str(Path(__file__).parents[1]))

from mstar.downstream import tune_pool
from mstar.downstream.journal import Journal
from mstar.downstream.piece_worker import WorkerSettings
from mstar.downstream.schedule import Schedule
from mstar.downstream.studies import plan_sweep
from mstar.downstream.sweep_config import SweepConfig
from mstar.training.cluster import cluster_shape
from support.planted_sweep import Planted, plant

SPACE = """from mstar.downstream.spaces import LogUniform, Space
SPACE = Space(
    search={{"lr": LogUniform(1e-4, 1e-3)}}, samples={samples}, population={population}, epochs=(3,)
)
"""
PROGRAM = """import sys
from mstar.downstream.train_config import TrainHeadConfig, TrialChanges
from mstar.downstream.train_job import run
labels, features, own, out, task, lr = sys.argv[1:]
sys.exit(run(TrainHeadConfig(task=task, labels=labels, features=features, own=(own,), out=out,
    head="abmil", trial=TrialChanges(lr=float(lr), epochs=3), threads=1)))
"""


def sweep_rate(settings: dict[str, Any], *, workers: int) -> dict[str, float]:
    """Trials a second after the first answer, and the seconds until then."""
    config = SweepConfig(**settings)
    plan = plan_sweep(config)
    journal = Journal(config.out)
    slots = tune_pool.make_slots(cluster_shape(), 1, "cpu").at_most(workers)
    schedule = Schedule(plan.studies, journal, slots=slots.count)
    moments: list[tuple[float, int]] = []

    def note() -> None:
        fits = {fit["key"] for line in journal.lines for fit in line["fits"]}
        moments.append((time.perf_counter(), len(fits)))

    worker = WorkerSettings(
        out=config.out,
        protocol=config.protocol,
        stores={name: encoder.roots for name, encoder in plan.encoders.items()},
        cache_dir=config.cache_dir,
        figures=False,
    )
    began = time.perf_counter()
    tune_pool.run_pieces(schedule, plan.tasks, worker, slots, on_answer=note)
    journal.close()
    (first, at_first), (last, at_last) = moments[0], moments[-1]
    return {
        "rate": (at_last - at_first) / max(last - first, 1e-9),
        "total_s": last - began,
        "start_s": first - began,
        "trials": float(at_last),
    }


@contextmanager
def own_actors() -> Iterator[None]:
    """Tune as it is by default: an actor a trial."""
    made = tune_pool.tune.TuneConfig
    tune_pool.tune.TuneConfig = lambda **given: made(**given | {"reuse_actors": False})
    try:
        yield
    finally:
        tune_pool.tune.TuneConfig = made


def programs_rate(settings: dict[str, Any], tasks: Sequence[str], number: int) -> float:
    """Trials a second of programs, one after another."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    for at in range(number):
        with tempfile.TemporaryDirectory() as out:
            words = [settings["labels"], settings["features"][0], settings["own"][0], out]
            lr = f"{1e-4 * (at + 1):g}"
            subprocess.run(
                [sys.executable, "-c", PROGRAM, *words, tasks[at % len(tasks)], lr],
                env=environment,
                stdout=subprocess.DEVNULL,
                check=True,
            )
    return number / (time.perf_counter() - began)


def report(row: str, ratio: float, target: float, **details: float) -> None:
    """One line of JSON."""
    rounded = {name: round(value, 2) for name, value in details.items()}
    line = {"bench": "sweep", "row": row, "ratio": round(ratio, 2), "target": target, **rounded}
    print(json.dumps(line), flush=True)


def main() -> None:
    """All rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=4)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--studies", type=int, default=16)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    programs = 2 if args.quick else args.programs
    studies = 4 if args.quick else args.studies
    tasks = [Planted(task_id=f"task{at:02d}") for at in range(studies)]
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = plant(root, tasks) | {"heads": ("abmil",)}
        for population in (1, args.trials):
            text = SPACE.format(samples=args.trials, population=population)
            (root / f"p{population}.py").write_text(text)

        def swept(population: int, out: str, workers: int) -> dict[str, float]:
            space = {"space": str(root / f"p{population}.py"), "out": str(root / out)}
            return sweep_rate(settings | space, workers=workers)

        found = swept(args.trials, "both", 2)
        alone = programs_rate(settings, [task.task_id for task in tasks], programs)
        report(
            "separate",
            found["rate"] / alone,
            5.0,
            sweep_per_min=60 * found["rate"],
            programs_per_min=60 * alone,
            first_answer_s=found["start_s"],
            trials=found["trials"],
        )
        one = {"tasks": (tasks[0].task_id,)}
        settings |= one
        many, reused = swept(args.trials, "many", 2), swept(1, "reused", 2)
        with own_actors():
            single = swept(1, "single", 2)
        report(
            "population",
            single["total_s"] / many["total_s"],
            4.0,
            population_s=many["total_s"],
            own_actors_s=single["total_s"],
            reused_actors_s=reused["total_s"],
        )
    ray.shutdown()


if __name__ == "__main__":
    main()
