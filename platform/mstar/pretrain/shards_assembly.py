"""What both passes left, put together: names of patches left out, the preview, the index."""

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mstar import __version__
from mstar.data.shards.buckets import UnitHeader, read_unit
from mstar.data.shards.format import (
    LEFT_OUT,
    PREVIEW,
    ShardCounts,
    ShardIndex,
    ShardInfo,
    total_rows,
)
from mstar.data.shards.preview import draw_sheet, to_jpeg
from mstar.data.shards.writer import mean_and_std, num_shards
from mstar.errors import FeatureError, SlideError
from mstar.pretrain.shards_pieces import ShardsPlan
from mstar.pretrain.shards_plan import ShardSources, encoder_record
from mstar.pretrain.shards_state import ShardRecord
from mstar.pretrain.shards_worker import BucketTask, UnitTally, read_record, tally_of
from mstar.storage import objects
from mstar.training.exit_codes import allowed_failures

_PREVIEW_ROWS = 64


class UnitHeaders:
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


def check_left_out(plan: ShardsPlan, headers: UnitHeaders) -> None:
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


def assemble(
    plan: ShardsPlan, record: ShardRecord, headers: UnitHeaders, tasks: Sequence[BucketTask]
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


def put_preview(sources: ShardSources, index: ShardIndex) -> None:
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
