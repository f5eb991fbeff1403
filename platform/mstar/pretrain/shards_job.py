"""The second half of `mstar targets`: targets and slides in, shuffled patch shards out.

    sample ─▶ record ─▶ pass 1: slides → files of rows ─▶ pass 2: buckets → shards ─▶ index

Run it again and it does only what is missing; kill it anywhere and nothing half-written is seen.
"""

import csv
import io
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mstar import __version__
from mstar.config import to_json
from mstar.data.shards.buckets import UnitHeader, read_unit
from mstar.data.shards.format import (
    INDEX,
    LEFT_OUT,
    PREVIEW,
    ShardCounts,
    ShardIndex,
    ShardInfo,
    dump_index,
    read_index,
    total_rows,
)
from mstar.data.shards.preview import draw_sheet, to_jpeg
from mstar.data.shards.writer import mean_and_std, num_shards
from mstar.errors import FeatureError, InterruptedRunError, SlideError
from mstar.pretrain.shards_config import ShardsConfig
from mstar.pretrain.shards_plan import (
    ShardSources,
    Unit,
    cut_units,
    encoder_record,
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
    ShardsPlan,
    ShardsWorker,
    UnitTally,
    read_record,
    tally_of,
)
from mstar.storage import objects
from mstar.training.exit_codes import ExitCode, allowed_failures
from mstar.training.tracking import NullTracker, Tracker, start_tracking

_PREVIEW_ROWS = 64


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
        headers = _Headers(plan, len(units))
        _check_left_out(plan, headers)
        tasks = headers.tasks()
        _second_pass(plan, passes, tasks, tracker, headers.num_rows)
    index = assemble(plan, record, headers, tasks)
    _put_preview(sources, index)
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


def assemble(
    plan: ShardsPlan, record: ShardRecord, headers: "_Headers", tasks: Sequence[BucketTask]
) -> ShardIndex:
    """The index, from the records of all buckets."""
    sources = plan.sources
    done = [pair for task in tasks for pair in read_record(plan, task.bucket)]
    shards = tuple(info for info, _ in done)
    mean, std = mean_and_std([sums for _, sums in done])
    _check_shards(sources, shards, headers.num_rows)
    return ShardIndex(
        fingerprint=sources.fingerprint,
        config=sources.identity,
        num_rows=total_rows(shards),
        target_dim=sources.targets.dim,
        patch_px=sources.side_px,
        encoder=encoder_record(sources.spec, sources.provenance),
        shards=shards,
        counts=headers.counts(),
        target_mean=tuple(mean.tolist()),
        target_std=tuple(std.tolist()),
        cosine=record.cosine,
        mstar_version=__version__,
    )


class _Headers:
    """What the files of pass 1 say together; numbers only, one file in memory at a time."""

    def __init__(self, plan: ShardsPlan, num_units: int) -> None:
        self._plan, self._num_units = plan, num_units
        num_buckets = plan.shape.num_buckets
        self._rows, self._bytes = (np.zeros(num_buckets, np.int64) for _ in range(2))
        self._slides: set[str] = set()
        self._cases: set[str] = set()
        self._reasons: dict[str, int] = {}
        self.total = UnitTally()
        for _, header in self:
            self.total.add(tally_of(header))
            self._rows += header.rows
            self._bytes += np.diff(header.starts)
            for slide_id, case_id, _ in header.facts["slides"]:
                self._slides.add(slide_id)
                self._cases.add(case_id)
            for *_, reason, _ in header.facts["left_out"]:
                self._reasons[reason] = self._reasons.get(reason, 0) + 1

    def __iter__(self) -> Iterator[tuple[str, UnitHeader]]:
        for number in range(self._num_units):
            uri = self._plan.unit_uri(number)
            header = read_unit(uri)
            if header is None:
                raise FeatureError(f"{uri}: expected rows of pass 1, got no such file. Run again.")
            yield uri, header

    @property
    def num_rows(self) -> int:
        """Rows of all units."""
        return int(self._rows.sum())

    def tasks(self) -> list[BucketTask]:
        """Pass 2, with the numbers of all shards."""
        tasks: list[BucketTask] = []
        first = 0
        for bucket in np.flatnonzero(self._rows).tolist():
            num_rows = int(self._rows[bucket])
            count = num_shards(int(self._bytes[bucket]), num_rows, self._plan.layout)
            task = BucketTask(
                bucket=bucket,
                num_units=self._num_units,
                num_rows=num_rows,
                first_shard=first,
                num_shards=count,
            )
            tasks.append(task)
            first += count
        return tasks

    def counts(self) -> ShardCounts:
        """What became of the patches."""
        return ShardCounts(
            passed_through=self.total.passed_through,
            encoded=self.total.rows - self.total.passed_through,
            left_out=dict(sorted(self._reasons.items())),
            num_slides=len(self._slides),
            num_cases=len(self._cases),
            jpeg_bytes=self.total.jpeg_bytes,
        )


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
    there = {info.rel for info in objects.list_files(objects.join(plan.sources.state, "done"))}
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


def _check_left_out(plan: ShardsPlan, headers: _Headers) -> None:
    """Name every patch left out; too many are an error, and what lacks them is done anew."""
    sources, left_out = plan.sources, headers.total.left_out
    uri = objects.join(sources.folder, LEFT_OUT)
    if not left_out:
        objects.delete(uri)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("slide_id", "case_id", "x_l0", "y_l0", "reason", "message"))
    for _, header in headers:
        writer.writerows(header.facts["left_out"])
    objects.write_whole(uri, text.getvalue().encode())
    total = headers.num_rows + left_out
    if left_out <= allowed_failures(sources.config.shard.max_left_out, total):
        return
    for unit_uri, header in headers:
        if header.facts["left_out"]:
            objects.delete(unit_uri)
    raise SlideError(
        f"{left_out:,} of {total:,} patches cannot be read, more than --shard.max-left-out "
        f"{sources.config.shard.max_left_out} allows. {uri} names them. Restore their slides and "
        "run again: only the affected slides are read anew."
    )


def _check_shards(sources: ShardSources, shards: Sequence[ShardInfo], num_rows: int) -> None:
    """What the records say must be there."""
    sizes = {info.rel: info.size_bytes for info in objects.list_files(sources.folder)}
    for shard in shards:
        if sizes.get(shard.name) != shard.num_bytes:
            raise FeatureError(
                f"{sources.folder}/{shard.name}: expected {shard.num_bytes} bytes, got "
                f"{sizes.get(shard.name)}. Delete {sources.state}/done and run again."
            )
    assert total_rows(shards) == num_rows, (total_rows(shards), num_rows)


def _put_preview(sources: ShardSources, index: ShardIndex) -> None:
    """The first rows are random ones: that is what the shuffle is for."""
    rows = list(islice(_first_rows(sources, index), _PREVIEW_ROWS))
    sheet = draw_sheet([row["jpeg"] for row in rows], [row["slide_id"] for row in rows])
    objects.write_whole(objects.join(sources.folder, PREVIEW), to_jpeg(sheet))


def _first_rows(sources: ShardSources, index: ShardIndex) -> Iterator[dict[str, Any]]:
    for shard in index.shards:
        data = objects.read_bytes(objects.join(sources.folder, shard.name))
        file = pq.ParquetFile(pa.BufferReader(data))
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=["jpeg", "slide_id"]).to_pylist()


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
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except (KeyboardInterrupt, InterruptedRunError):
        status = "KILLED"
        raise
    finally:
        print(f"  tracking  {tracker.finish(status)}", flush=True)


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
