"""The second half of `mstar targets`: targets and slides in, shuffled patch shards out.

    sample ─▶ record ─▶ pass 1: slides → files of rows ─▶ pass 2: buckets → shards ─▶ index

Run it again and it does only what is missing; kill it anywhere and nothing half-written is seen.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mstar.config import to_json
from mstar.data.shards.format import (
    INDEX,
    ShardIndex,
    dump_index,
    read_index,
)
from mstar.pretrain.shards_assembly import UnitHeaders, assemble, check_left_out, put_preview
from mstar.pretrain.shards_config import ShardsConfig
from mstar.pretrain.shards_pieces import DONE, ShardsPlan
from mstar.pretrain.shards_plan import (
    ShardSources,
    Unit,
    cut_units,
    find_sources,
)
from mstar.pretrain.shards_report import ShardProgress, before, check_room, rooms, summary
from mstar.pretrain.shards_sample import Sample, check_cosine, shape_from, take_sample
from mstar.pretrain.shards_state import (
    ShardRecord,
    claim_record,
    collect_stale,
    find_record,
    only_run,
)
from mstar.pretrain.shards_worker import (
    BucketTask,
    ShardsWorker,
    UnitTally,
)
from mstar.storage import objects
from mstar.training.exit_codes import ExitCode
from mstar.training.tracker import NullTracker, Tracker, ended
from mstar.training.tracking import start_tracking


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Where the work is done: in this process, or on a cluster."""

    units: Callable[[ShardsPlan, Sequence[Unit]], Iterator[UnitTally]]
    buckets: Callable[[ShardsPlan, Sequence[BucketTask]], Iterator[int]]


def write_shards(config: ShardsConfig) -> int:
    """Write the shards that `config` asks for, and return an exit code."""
    config = with_absolute_paths(config)
    sources = find_sources(config)
    record = find_record(sources)
    finished = record is not None and objects.exists(objects.join(sources.folder, INDEX))
    if config.run.dry_run:
        return preview(sources, record)
    if finished:
        collect_stale(sources, finished=True)
        print(summary(sources, read_index(sources.folder), None), flush=True)
        return ExitCode.COMPLETE
    began_s = time.monotonic()
    with _tracked(config) as tracker, only_run(sources, tracker.run_id or uuid.uuid4().hex):
        index = make_shards(sources, record, tracker)
    collect_stale(sources, finished=True)
    print(summary(sources, index, time.monotonic() - began_s), flush=True)
    return ExitCode.COMPLETE


def make_shards(sources: ShardSources, record: ShardRecord | None, tracker: Tracker) -> ShardIndex:
    """Everything between the claim and the finished index."""
    collect_stale(sources, finished=False)
    record, sample = settle(sources, record)
    found = rooms(sources, record.shape)
    print(before(sources, record.shape, sample, found), flush=True)
    check_room(found)
    plan = ShardsPlan(sources=sources, shape=record.shape)
    units = list(cut_units(sources.slides, record.shape.unit_rows))
    with _passes(sources.config) as passes:
        _first_pass(plan, passes, units, tracker)
        headers = UnitHeaders(plan, len(units))
        check_left_out(plan, headers)
        tasks = headers.tasks()
        _second_pass(plan, passes, tasks, tracker, headers.num_rows)
    index = assemble(plan, record, headers, tasks)
    put_preview(sources, index)
    tracker.log_text(to_json(index.counts), "shards.json")
    objects.write_whole(objects.join(sources.folder, INDEX), dump_index(index))
    return index


def settle(sources: ShardSources, record: ShardRecord | None) -> tuple[ShardRecord, Sample | None]:
    """How the shuffle is cut, by a sample; a run that goes on keeps what was settled.

    The features are compared when they were not yet, and the gate asked again when it was moved.
    """
    wanted = sources.config.shard.weights is not None
    if record is not None and (record.cosine is not None or not wanted):
        if record.cosine is not None:
            least = sources.config.shard.least_cosine
            record = replace(record, cosine=replace(record.cosine, least_mean=least))
            assert record.cosine is not None
            check_cosine(record.cosine)
        return record, None
    sample = take_sample(sources, encode=wanted)
    if record is None:
        return claim_record(sources, shape_from(sources, sample), sample.cosine), sample
    return replace(record, cosine=sample.cosine), sample


def preview(sources: ShardSources, record: ShardRecord | None) -> int:
    """The resolved config and what a run would do; nothing is written."""
    print(to_json(sources.config))
    sample = take_sample(sources, encode=False)
    shape = record.shape if record is not None else shape_from(sources, sample)
    print(before(sources, shape, sample, rooms(sources, shape)))
    print("Nothing was written.", flush=True)
    return ExitCode.COMPLETE


def _first_pass(plan: ShardsPlan, passes: Passes, units: Sequence[Unit], tracker: Tracker) -> None:
    sources = plan.sources
    there = {info.rel for info in objects.list_files(sources.buckets)}
    pending = [unit for unit in units if plan.unit_uri(unit.number).rpartition("/")[2] not in there]
    rows = sum(slide.about_rows for slide in sources.slides) * len(pending) // max(1, len(units))
    progress = ShardProgress("shards 1/2", about_rows=rows, folder=sources.bucket_root)
    for tally in passes.units(plan, pending):
        progress.add(tally)
        _log(tracker, progress)
    if pending:
        progress.close()


def _second_pass(
    plan: ShardsPlan, passes: Passes, tasks: Sequence[BucketTask], tracker: Tracker, num_rows: int
) -> None:
    there = {info.rel for info in objects.list_files(objects.join(plan.sources.state, DONE))}
    pending = [task for task in tasks if plan.done_uri(task.bucket).rpartition("/")[2] not in there]
    rows = sum(task.num_rows for task in pending)
    progress = ShardProgress("shards 2/2", about_rows=rows, folder=plan.sources.folder)
    for done in passes.buckets(plan, pending):
        progress.add(UnitTally(rows=done))
        _log(tracker, progress)
    if pending:
        progress.close()


def _log(tracker: Tracker, progress: ShardProgress) -> None:
    total = progress.total
    metrics = {"patches": float(total.rows), "left_out": float(total.left_out)}
    if total.jpeg_bytes:
        metrics["bytes_per_patch"] = total.jpeg_bytes / max(1, total.rows)
        metrics["pass_through_rate"] = total.passed_through / max(1, total.rows)
    tracker.log_metrics(metrics, step=max(1, int(progress.elapsed_s)))


@contextmanager
def _passes(config: ShardsConfig) -> Iterator[Passes]:
    if config.run.workers == 0:
        yield Passes(units=_units_here, buckets=_buckets_here)
        return
    from mstar.pretrain.shards_pool import ray_passes

    with ray_passes(config) as (units, buckets):
        yield Passes(units=units, buckets=buckets)


def _units_here(plan: ShardsPlan, units: Sequence[Unit]) -> Iterator[UnitTally]:
    yield from _here(plan, ShardsWorker.run_unit, units)


def _buckets_here(plan: ShardsPlan, tasks: Sequence[BucketTask]) -> Iterator[int]:
    yield from _here(plan, ShardsWorker.run_bucket, tasks)


def _here(plan: ShardsPlan, do: Callable[[ShardsWorker, Any], Any], items: Sequence[Any]) -> Any:
    if not items:
        return
    worker = ShardsWorker(plan)
    try:
        yield from map(partial(do, worker), items)
    finally:
        worker.close()


@contextmanager
def _tracked(config: ShardsConfig) -> Iterator[Tracker]:
    """The tracked run, ended as FINISHED, FAILED or KILLED."""
    tracker: Tracker = NullTracker()
    if config.run.tracking:
        tracker = start_tracking("shards", config, out=config.out)
    with ended(tracker):
        yield tracker


def with_absolute_paths(config: ShardsConfig) -> ShardsConfig:
    """The config as workers in other folders can use it."""

    def absolute(uri: str) -> str:
        local = objects.is_local(uri) and "://" not in uri
        return str(objects.local_path(uri).absolute()) if local else uri

    scratch = config.shard.scratch
    return replace(
        config,
        cohort=absolute(config.cohort),
        features=absolute(config.features),
        out=absolute(config.out),
        shard=replace(config.shard, scratch=None if scratch is None else absolute(scratch)),
    )
