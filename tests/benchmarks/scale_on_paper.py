"""Scale on paper made runnable: the driver's part of runs that nobody can afford to test.

With PYTHONPATH=tests:

    python tests/benchmarks/scale_on_paper.py listing     30,000 slides, 12,000 done, on S3
    python tests/benchmarks/scale_on_paper.py manifest    1,000,000 slides in a manifest
    python tests/benchmarks/scale_on_paper.py shards      shards of 116 M patches planned
    python tests/benchmarks/scale_on_paper.py stage2      stage 2 over 116 M patches resumed
    python tests/benchmarks/scale_on_paper.py schedule    10,000 trials scheduled, without Tune
    python tests/benchmarks/scale_on_paper.py tune        10,000 trials through Ray Tune
    python tests/benchmarks/scale_on_paper.py curve       embed on 1 to 512 GPUs, simulated

One JSON line each: what there was, CPU seconds, and the most memory of the process, which is one of
its own (`all` runs the first five so). `tune` takes --trials and --studies; `curve` draws
platform/docs/scaling.png and prints the tables of scaling.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import paper_scale

DOCS = Path(__file__).parents[2] / "platform" / "docs"
PARTS = ("listing", "manifest", "shards", "stage2", "schedule")
COUNTS = (1, 8, 32, 64, 128, 256, 512)


def run_part(name: str, folder: Path) -> dict[str, float]:
    """One part, in this process."""
    if name == "listing":
        return paper_scale.plan_embedding(folder, 30_000, 12_000)
    if name == "manifest":
        return paper_scale.plan_manifest(folder, 1_000_000, 400_000)
    if name == "shards":
        return paper_scale.cut_shards(paper_scale.SLIDES, paper_scale.PATCHES)
    if name == "stage2":
        return paper_scale.resume_stage2(folder)
    return paper_scale.run_schedule(folder, num_studies=1_250, trials=8)


def tune_trials(folder: Path, *, num_studies: int, trials: int) -> dict[str, float]:
    """The sweep's own search, schedule, journal and Tune pool; only the training is left out."""
    import ray
    from ray import tune

    from mstar.downstream import tune_pool
    from mstar.downstream.piece_worker import WorkerSettings

    class Trivial(tune.Trainable):  # type: ignore[misc]
        """In the place of the pool's trainable: it answers at once."""

        def setup(self, config: dict, settings: object = None, tasks: object = None) -> None:
            self._piece = config["piece"].piece

        def step(self) -> dict[str, object]:
            answer = tune_pool._packed(paper_scale.trivial_answer(self._piece))
            return {"number": 0, "answer": answer, tune.result.DONE: True}

        def reset_config(self, new_config: dict) -> bool:
            self._piece = new_config["piece"].piece
            return True

    tune_pool._Trial = Trivial  # type: ignore[misc, assignment]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200_000_000,
        log_to_driver=False,
        runtime_env={"env_vars": environment},
    )
    schedule, journal = paper_scale.make_schedule(
        str(folder), num_studies=num_studies, trials=trials
    )
    cpu_marks, wall_marks = [time.process_time()], [time.perf_counter()]

    def note() -> None:
        cpu_marks.append(time.process_time())
        wall_marks.append(time.perf_counter())

    settings = WorkerSettings(
        out=str(folder), protocol="honest", stores={}, cache_dir=None, figures=False
    )
    slots = tune_pool.Slots(count=2, cpus=1.0)
    tune_pool.run_pieces(schedule, {}, settings, slots, on_answer=note)
    journal.close()
    ray.shutdown()
    wall = paper_scale.tenths(wall_marks)
    return {
        "studies": num_studies,
        "trials": num_studies * trials,
        **{f"driver_{name}": value for name, value in paper_scale.tenths(cpu_marks).items()},
        **{f"wall_{name}": wall[name] for name in ("ms_a_piece_early", "ms_a_piece_late")},
        "wall_s": wall_marks[-1] - wall_marks[0],
    }


def curves() -> None:
    """The scaling curves of scaling.md; draws the figure, prints the tables."""
    from mstar.planning.cluster import Cluster
    from mstar.planning.curve import bend, curve_table, draw_curve, scaling_curve
    from mstar.planning.rates import built_in
    from mstar.planning.settings import PlanSettings
    from mstar.planning.stages import Job
    from mstar.planning.workload import PAPER

    rates = built_in("h200")
    base = Job(work=PAPER, cluster=Cluster(), rates=rates, settings=PlanSettings())
    unlimited = replace(base.cluster, storage_reads_per_s=0.0)
    spot = replace(unlimited, spot_share=1.0, spot_losses_per_node_hour=1.0)
    local = replace(rates, storage_latency_s=0.001, storage_stream_bytes_per_s=500e6)
    jobs = {
        "as built in: 30 ms, 5,500 requests/s": base,
        "no limit of requests": replace(base, cluster=unlimited),
        "no limit, 100 ms": replace(
            base, cluster=unlimited, rates=replace(rates, storage_latency_s=0.1)
        ),
        "no limit, 1 ms and 500 MB/s a stream": replace(base, cluster=unlimited, rates=local),
        "no limit, all spot, a loss per node and hour": replace(base, cluster=spot),
    }
    lines = {label: scaling_curve(job, COUNTS) for label, job in jobs.items()}
    title = "embed, 116 M patches of 11,727 slides, H200 (simulated)"
    draw_curve(str(DOCS / "scaling.png"), lines, title=title)
    for label, points in lines.items():
        print(f"**{label}**: bends at {bend(points) or 'no number'} GPUs\n")
        print(curve_table(points))


def main() -> None:
    """One part, or several in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=(*PARTS, "tune", "curve", "all"))
    parser.add_argument("--studies", type=int, default=1_250)
    parser.add_argument("--trials", type=int, default=8)
    args = parser.parse_args()
    if args.part == "all":
        for part in PARTS:
            subprocess.run([sys.executable, __file__, part], check=True)
        return
    if args.part == "curve":
        curves()
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.part == "stage2":  # made by a process of its own, whose memory does not count
            code = f"from support.paper_scale import *; write_index(Path({name!r}), PATCHES)"
            tests = str(Path(__file__).parents[1])
            subprocess.run([sys.executable, "-c", code], check=True, cwd=tests)
        if args.part == "tune":
            found = tune_trials(folder, num_studies=args.studies, trials=args.trials)
        else:
            found = run_part(args.part, folder)
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = {"part": args.part, **found, "most_memory_mb": memory_mb}
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()}))


if __name__ == "__main__":
    main()
