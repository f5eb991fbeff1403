"""`mstar sweep`: heads over tasks and encoders, every study by itself, as one job.

    settings ─▶ studies ─▶ schedule ─▶ Tune trials on reused actors ─▶ journal, predictions, MLflow

Run it again and it goes on: finished fits and studies are in the journal, what was running is done
again. A trial, study or task that fails is reported and nothing else stops.

    <out>/journal.jsonl     what is finished (see `journal`)
    <out>/left_out.csv      tasks and studies that are not in the table, with the reason
    <out>/sweep.json        the settings of the latest run, and the id of its MLflow run
    <out>/failures/         traceback of each study that failed
    <out>/<task>/…          results (see `study`)
"""

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pyarrow as pa

from mstar import __version__
from mstar.config import to_dict, to_json
from mstar.data.tables import write_table
from mstar.downstream.journal import Journal
from mstar.downstream.nodes import drop_shared_bags
from mstar.downstream.piece_records import fit_uri
from mstar.downstream.piece_worker import WorkerSettings
from mstar.downstream.schedule import Schedule
from mstar.downstream.studies import LeftOut, SweepPlan, plan_sweep
from mstar.downstream.study_run import StudyRun
from mstar.downstream.sweep_config import SweepConfig
from mstar.downstream.sweep_report import SweepProgress, plan_lines, summary_lines
from mstar.downstream.tree import SweepTree
from mstar.downstream.tune_pool import make_slots, run_pieces
from mstar.storage import objects
from mstar.storage.ids import quoted
from mstar.training.cluster import ClusterShape, ray_session
from mstar.training.exit_codes import ExitCode
from mstar.training.interrupts import stop_on_sigterm
from mstar.training.tracker import NullTracker, ended
from mstar.training.tracking import SpoolTracker, start_tracking

__all__ = ["SweepConfig", "run"]

TRACKING_WAIT_S = 600.0  # for the last of thousands of trials; a dead server ends it much sooner
LEFT_OUT, RECORD, FAILURES = "left_out.csv", "sweep.json", "failures"


def run(config: SweepConfig) -> int:
    """Run the sweep.

    Returns:
        FAILED when a study or a trial failed by an error, EXCLUSIONS when a task was refused for
        its labels or features, else COMPLETE (`mstar.training.exit_codes`).
    """
    plan = plan_sweep(config)
    print("\n".join(plan_lines(config, plan)), flush=True)
    if config.dry_run:
        print("dry run: nothing was trained or written")
        return ExitCode.COMPLETE
    with closing(Journal(config.out)) as journal:
        write_left_out(config.out, plan.left_out)
        schedule = _work(config, plan, journal)
    return _exit_code(schedule, plan)


def _work(config: SweepConfig, plan: SweepPlan, journal: Journal) -> Schedule:
    """Everything between the journal's opening and the exit code."""
    with ray_session(config.address) as cluster:
        stop_on_sigterm()  # after ray.init, which takes the handler
        with _tracked(config, cluster) as tracker:
            slots = make_slots(cluster, config.max_trials_per_gpu, config.device)
            if config.max_parallel:
                slots = slots.at_most(config.max_parallel)
            tree = SweepTree(tracker)
            began_s = time.monotonic()

            def on_change(study: StudyRun) -> None:
                _drop_fits(config.out, study)
                if study.failed:
                    _write_failure(config.out, study)
                tree.tell(study)

            schedule = Schedule(plan.studies, journal, slots=slots.count, on_change=on_change)
            for study in schedule.studies.values():
                if study.done or study.search.ended:  # of an earlier run
                    on_change(study)
            progress = SweepProgress(schedule)
            settings = WorkerSettings(
                out=config.out,
                protocol=config.protocol,
                stores={name: encoder.roots for name, encoder in plan.encoders.items()},
                device="cuda" if slots.gpus else "cpu",
                cache_dir=config.cache_dir,
                figures=config.figures,
                sources=config.sources,
                options=config.option,
                seeds=tuple(range(1, config.seeds + 1)),
            )
            with _shared_bags_dropped(config):
                run_pieces(schedule, plan.tasks, settings, slots, on_answer=progress.show)
            write_left_out(config.out, (*plan.left_out, *_failed(schedule)))
            elapsed_s = time.monotonic() - began_s
            text = "\n".join(summary_lines(config, plan, schedule, elapsed_s))
            print(text, flush=True)
            tracker.log_text(text, "summary.txt")
            tracker.log_text(_left_out_text(config.out), LEFT_OUT)
            tracker.log_metrics(progress.metrics(elapsed_s), step=0)
    return schedule


@contextmanager
def _tracked(config: SweepConfig, cluster: ClusterShape) -> Iterator[SpoolTracker | NullTracker]:
    """The sweep's MLflow run, gone on with where the folder names one."""
    uri = objects.join(config.out, RECORD)
    before = json.loads(objects.read_bytes(uri)) if objects.exists(uri) else {}
    tracker: SpoolTracker | NullTracker = NullTracker()
    if config.tracking:
        tracker = start_tracking(
            "sweep",
            config,
            out=config.out,
            num_nodes=cluster.num_nodes,
            run_id=before.get("run_id") or None,
            uri=config.tracking_uri,
            finish_wait_s=TRACKING_WAIT_S,
        )
        tracker.set_tags({"mstar.kind": "sweep", "mstar.out": config.out})
    record = {"run_id": tracker.run_id or before.get("run_id", ""), "config": to_dict(config)}
    objects.write_whole(uri, to_json({**record, "mstar_version": __version__}).encode())
    with ended(tracker):
        yield tracker


@contextmanager
def _shared_bags_dropped(config: SweepConfig) -> Iterator[None]:
    """However the work ends, nodes get their shared memory back."""
    try:
        yield
    finally:
        if config.cache_dir is None:
            drop_shared_bags()


def write_left_out(out: str, left_out: tuple[LeftOut, ...]) -> None:
    """What the table will not hold, for `mstar results`."""
    rows = [[one.task, one.encoder, one.head, one.reason] for one in left_out]
    names = ("task", "encoder", "head", "reason")
    columns = {
        name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(names)
    }
    write_table(objects.join(out, LEFT_OUT), pa.table(columns))


def _failed(schedule: Schedule) -> list[LeftOut]:
    studies = [run.plan.study for run in schedule.studies.values() if run.failed]
    return [
        LeftOut(
            task=study.task_id,
            encoder=study.encoder,
            head=study.head,
            reason=f"failed: {schedule.studies[study].failed}",
        )
        for study in studies
    ]


def _left_out_text(out: str) -> str:
    return objects.read_bytes(objects.join(out, LEFT_OUT)).decode()


def _drop_fits(out: str, study: StudyRun) -> None:
    """Heads that cannot win any more are of no use."""
    for key in study.useless_fits():
        objects.delete(fit_uri(out, study.plan.study, key))


def _write_failure(out: str, study: StudyRun) -> None:
    record = {"study": study.plan.study, "reason": study.failed, "traceback": study.traceback}
    name = quoted(study.plan.study.key.replace("/", "-"))
    objects.write_whole(objects.join(out, FAILURES, f"{name}.json"), to_json(record).encode())


def _exit_code(schedule: Schedule, plan: SweepPlan) -> int:
    if any(study.failed or study.raised for study in schedule.studies.values()):
        return ExitCode.FAILED
    if any(one.refused for one in plan.left_out):
        return ExitCode.EXCLUSIONS
    return ExitCode.COMPLETE
