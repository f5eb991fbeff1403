"""The job `mstar targets`: cases through the frozen aggregator, then patch shards.

    survey ─▶ store opened ─▶ rounds of bundles, on Ray or here ─▶ summary ─▶ shards

Run it again and it does only what is missing; kill it anywhere and nothing half-written is seen.
"""

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from mstar.config import to_json
from mstar.data.targets import TargetStore
from mstar.errors import ConfigError, InterruptedRunError
from mstar.pretrain.shards_job import write_shards
from mstar.pretrain.targets_config import TargetsConfig
from mstar.pretrain.targets_plan import (
    TargetsActor,
    TargetsPlan,
    bundles,
    make_worker,
    pool_shape,
    tally_from,
    to_table,
)
from mstar.pretrain.targets_report import failure_table, final_metrics, summary
from mstar.pretrain.targets_survey import Standing, Survey, check_room, describe, stand, survey
from mstar.pretrain.targets_tally import TargetsTally
from mstar.storage import objects
from mstar.training.actor_pool import PoolShape, run_pool
from mstar.training.cluster import ClusterShape, ray_session
from mstar.training.exit_codes import ExitCode, exit_code
from mstar.training.interrupts import stop_on_sigterm
from mstar.training.progress import ProgressReporter
from mstar.training.tracker import NullTracker, Tracker, ended
from mstar.training.tracking import start_tracking

STALE_S = 24 * 3600.0  # a temporary file this old belongs to no one any more
BUNDLES_PER_WORKER = 4  # at least, so that the last ones do not leave the others idle
WAIT_FOR_OTHERS_S, LONGEST_WAIT_S = 2.0, 60.0

Bundles = Callable[[Standing], Iterator[TargetsTally]]


def run(config: TargetsConfig) -> int:
    """Run `mstar targets` and return its exit code."""
    config = with_absolute_paths(config)
    if config.run.dry_run:
        return preview(config)
    found = survey(config)
    with _cluster(config) as cluster:
        code = teacher_pass(found, cluster)
        if not config.shards:
            return code
        if code != ExitCode.COMPLETE:
            print("targets: no shards: more cases failed than --max-failures allows", flush=True)
            return code
        return write_shards(config.shards_config)


def teacher_pass(found: Survey, cluster: ClusterShape | None) -> int:
    """Make the targets that are missing, on a cluster or in this process; returns an exit code."""
    config = found.config
    with _tracked(config, cluster) as tracker:
        device = settle_device(config, None if cluster is None else cluster.num_gpus)
        plan = found.plan(device=device, run_id=tracker.run_id or uuid.uuid4().hex)
        store = TargetStore.open_or_create(config.out, plan.identity)
        objects.collect_stale_temps(config.out, older_than_s=STALE_S)
        tracker.set_tags(_tags(plan, store))
        if cluster is None:
            return _go(found, plan, tracker, partial(_run_here, plan))
        return _go(found, plan, tracker, partial(_run_on_ray, plan, pool_shape(plan, cluster)))


@contextmanager
def _cluster(config: TargetsConfig) -> Iterator[ClusterShape | None]:
    """The Ray that the workers run on; None for a run in this process."""
    if config.run.workers == 0:
        yield None
        return
    with ray_session(config.run.address) as cluster:
        stop_on_sigterm()  # ray.init has taken the signal for itself
        yield cluster


@contextmanager
def _tracked(config: TargetsConfig, cluster: ClusterShape | None) -> Iterator[Tracker]:
    """The tracked run, ended as FINISHED, FAILED or KILLED."""
    tracker: Tracker = NullTracker()
    if config.run.tracking:
        num_nodes = 1 if cluster is None else cluster.num_nodes
        tracker = start_tracking("targets", config, out=config.out, num_nodes=num_nodes)
    with ended(tracker):
        yield tracker


def settle_device(config: TargetsConfig, num_gpus: float | None) -> str:
    """Where the aggregator runs; `num_gpus` of the cluster, None for this process alone."""
    there = torch.cuda.is_available() if num_gpus is None else num_gpus >= 1
    if config.device == "cuda" and not there:
        raise ConfigError("--device cuda: expected a GPU, got none. Use --device cpu.")
    return "cuda" if there and config.device != "cpu" else "cpu"


def with_absolute_paths(config: TargetsConfig) -> TargetsConfig:
    """The config as workers in other folders can use it."""

    def absolute(uri: str) -> str:
        local = objects.is_local(uri) and "://" not in uri
        return str(objects.local_path(uri).absolute()) if local else uri

    return replace(
        config,
        cohort=absolute(config.cohort),
        features=absolute(config.features),
        aggregator=absolute(config.aggregator),
        out=absolute(config.out),
    )


def preview(config: TargetsConfig) -> int:
    """The resolved config and what a run would do; nothing is written."""
    found = survey(config)
    print(to_json(config))
    print(describe(found, stand(found, "dry-run")))
    after = "Patch shards would follow. " if config.shards else ""
    print(f"{after}Nothing was written.", flush=True)
    return ExitCode.COMPLETE


def _go(found: Survey, plan: TargetsPlan, tracker: Tracker, run_bundles: Bundles) -> int:
    """Run rounds until nothing is pending; print the summary, and say how it ended."""
    standing, total = stand(found, plan.run_id), TargetsTally()
    print(describe(found, standing), file=sys.stderr, flush=True)
    check_room(found, standing)
    stopped: BaseException | None = None
    with ProgressReporter("targets", num_slides=standing.total_slides, tracker=tracker) as progress:
        try:
            _rounds(found, plan.run_id, run_bundles, progress, total)
        except (KeyboardInterrupt, InterruptedRunError) as error:
            stopped = error
        standing = stand(found, plan.run_id)
        elapsed_s = progress.elapsed_s
        failed = standing.slides_failed
        progress.update(slides_done=standing.slides_done, slides_failed=failed)
    metrics = final_metrics(standing, total, elapsed_s=elapsed_s)
    tracker.log_metrics(metrics, step=max(1, int(elapsed_s)))
    tracker.log_text(failure_table(plan.config.out), "failures.tsv")
    text = summary(plan.config, standing, total, elapsed_s=elapsed_s)
    tracker.log_text(text, "summary.txt")
    print(text, flush=True)
    if stopped is not None:
        raise stopped
    return exit_code(standing.failed, standing.total, plan.config.run.max_failures)


def _rounds(
    found: Survey,
    run_id: str,
    run_bundles: Bundles,
    progress: ProgressReporter,
    total: TargetsTally,
) -> None:
    """A round ends with cases left over only when another run holds them, or a worker died."""
    idle = 0
    while (standing := stand(found, run_id)).pending:
        this = TargetsTally()
        for tally in run_bundles(standing):
            this.add(tally)
            total.add(tally)
            progress.update(
                slides_done=standing.slides_done + this.slides,
                slides_failed=standing.slides_failed,
                patches_done=total.patches,
            )
        assert this.settled or this.elsewhere, f"{found.config.out}: a round settled nothing"
        idle = 0 if this.settled else idle + 1
        if idle:  # others have all that is left: look again, ever less often
            time.sleep(min(WAIT_FOR_OTHERS_S * 2 ** (idle - 1), LONGEST_WAIT_S))


def _run_here(plan: TargetsPlan, standing: Standing) -> Iterator[TargetsTally]:
    """The bundles of a round in this process."""
    worker = make_worker(plan)
    most = plan.config.run.bundle_windows * plan.teacher.window
    try:
        for bundle in bundles(standing.pending, target_patches=most):
            yield worker.run(bundle)
    finally:
        worker.close()


def _run_on_ray(plan: TargetsPlan, shape: PoolShape, standing: Standing) -> Iterator[TargetsTally]:
    """The bundles of a round on a pool of actors; of little work, smaller ones on fewer actors."""
    most = plan.config.run.bundle_windows * plan.teacher.window
    share = sum(case.num_patches for case in standing.pending) // (
        shape.workers * BUNDLES_PER_WORKER
    )
    table = to_table(bundles(standing.pending, target_patches=min(most, share)))
    shape = replace(shape, workers=min(shape.workers, table.num_rows))
    for row in run_pool(table, TargetsActor, (plan,), shape):
        yield tally_from(row)


def _tags(plan: TargetsPlan, store: TargetStore) -> dict[str, str]:
    return {
        "aggregator_sha256": plan.teacher.sha256,
        "encoder": plan.features.provenance.encoder,
        "weights_sha256": plan.features.provenance.weights_sha256,
        "features_fingerprint": plan.features_fingerprint,
        "targets_fingerprint": store.fingerprint,
        "device": plan.teacher.device,
    }
