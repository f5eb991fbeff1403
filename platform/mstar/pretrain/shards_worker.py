"""One worker of the shuffle: slides into files of rows (pass 1), buckets into shards (pass 2).

It knows no Ray: a loop over `run_unit` and `run_bucket` is the job on one process. Either call
finds done what was done before, so a retry costs nothing.
"""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mstar.data.shards.buckets import UnitHeader, put_unit, read_bucket, read_unit
from mstar.data.shards.format import ShardInfo
from mstar.data.shards.pixels import StoredPatch
from mstar.data.shards.rows import RowHeap, SlideRows, make_batch
from mstar.data.shards.writer import TargetSums, write_bucket
from mstar.errors import FeatureError
from mstar.pretrain.shards_pieces import OpenPiece, PieceOpener, ShardsPlan, read_stored
from mstar.pretrain.shards_plan import Piece, Unit, make_cache
from mstar.storage import objects

_PATCH, _SLIDE = "unreadable patch", "unreadable slide"


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketTask:
    """One bucket of pass 2: the numbers of its shards follow from the buckets before it."""

    bucket: int
    num_units: int
    num_rows: int
    first_shard: int
    num_shards: int


@dataclass(slots=True, kw_only=True)
class UnitTally:
    """Counts of one unit, or of a whole pass."""

    rows: int = 0
    passed_through: int = 0
    left_out: int = 0
    slides: int = 0
    jpeg_bytes: int = 0
    read_s: float = 0.0  # of the threads that read and encode, all added up

    def add(self, other: "UnitTally") -> None:
        """Add another tally to this one."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


class ShardsWorker:
    """Does units and buckets in the process that built it."""

    def __init__(self, plan: ShardsPlan) -> None:
        """Open the stores."""
        torch.set_num_threads(1)  # for the resize: the threads here are ours
        self._plan = plan
        sources = plan.sources
        self._opener = PieceOpener(
            sources.targets, sources.features, plan, make_cache(sources.config)
        )
        threads = sources.config.run.threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="shard-reader")
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="shard-open")
        self._headers: dict[int, UnitHeader] = {}

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
        self._ahead.shutdown()

    def run_unit(self, unit: Unit) -> UnitTally:
        """Pass 1: read the patches of a unit and put its file of rows, unless it is there."""
        uri = self._plan.unit_uri(unit.number)
        header = read_unit(uri)
        if header is not None:
            return tally_of(header)
        batches, facts = [], _no_facts()
        for piece in self._opened(unit.pieces):
            with piece.resources:
                rows = self._read(piece, facts)
            if rows is not None:
                batches.append(make_batch(rows, seed=self._plan.sources.config.shard.seed))
        put_unit(
            uri,
            batches,
            num_buckets=self._plan.shape.num_buckets,
            target_dim=self._plan.layout.target_dim,
            facts=facts,
        )
        return _tally_of(facts)

    def run_bucket(self, task: BucketTask) -> int:
        """Pass 2: write a bucket's shards and its record, unless they are there; its rows."""
        uri = self._plan.done_uri(task.bucket)
        if not objects.exists(uri):
            record = self._write_bucket(task)
            objects.write_whole(uri, json.dumps(record, sort_keys=True).encode())
        return task.num_rows

    def _opened(self, pieces: Sequence[Piece]) -> Iterator[OpenPiece]:
        """The pieces in order, the next one opened while one is read."""
        waiting = [self._ahead.submit(self._opener.open, piece) for piece in pieces[:1]]
        try:
            for following in [*pieces[1:], None]:
                piece = waiting.pop().result()
                if following is not None:
                    waiting.append(self._ahead.submit(self._opener.open, following))
                yield piece
        finally:
            for future in waiting:  # an error in between: nothing stays open
                if not future.cancel() and future.exception() is None:
                    future.result().resources.close()

    def _read(self, piece: OpenPiece, facts: dict[str, Any]) -> SlideRows | None:
        """The rows of a piece that can be read; the others are named in `facts`."""
        started = time.monotonic()
        targets, coords = piece.targets, piece.coords
        read = partial(read_stored, piece)
        stored = list(self._pool.map(read, piece.places.tolist()))
        kept = [at for at, patch in enumerate(stored) if isinstance(patch, StoredPatch)]
        for at, patch in enumerate(stored):
            if not isinstance(patch, StoredPatch):
                kind = _SLIDE if piece.problem else _PATCH
                x, y = coords[at].tolist()
                named = [targets.slide_id, targets.case_id, x, y, kind, patch]
                facts["left_out"].append(named)
        patches = [patch for patch in stored if isinstance(patch, StoredPatch)]
        jpegs = [patch.data for patch in patches]
        facts["passed_through"] += sum(patch.passed_through for patch in patches)
        facts["jpeg_bytes"] += sum(map(len, jpegs))
        facts["read_s"] += time.monotonic() - started
        if not kept:
            return None
        facts["slides"].append([targets.slide_id, targets.case_id, len(kept)])
        return SlideRows(
            slide_id=targets.slide_id,
            case_id=targets.case_id,
            coords=coords[kept],
            jpegs=jpegs,
            targets=targets.targets[piece.places[kept]],
        )

    def _write_bucket(self, task: BucketTask) -> dict[str, Any]:
        batches = list(self._pool.map(partial(self._segment, task.bucket), range(task.num_units)))
        heap = RowHeap(
            [batch for batch in batches if batch is not None], self._plan.layout.target_dim
        )
        if len(heap) != task.num_rows:
            raise FeatureError(
                f"{self._plan.sources.buckets}: bucket {task.bucket}: expected {task.num_rows} "
                f"rows, got {len(heap)}. Delete the folder and run the job again."
            )
        twice = heap.duplicate()
        if twice is not None:
            raise FeatureError(
                f"slide {twice[0]}: expected each patch once, got the one at level-0 {twice[1:]} "
                "twice. Make the grid, features and targets of the slide again."
            )
        shards = write_bucket(
            heap,
            self._plan.layout,
            folder=self._plan.sources.folder,
            first_shard=task.first_shard,
            count=task.num_shards,
        )
        written = [(asdict(shard.info), shard.sums) for shard in shards]
        return {
            "shards": [info for info, _ in written],
            "sums": [
                [sums.num_rows, sums.total.tolist(), sums.squares.tolist()] for _, sums in written
            ],
        }

    def _segment(self, bucket: int, unit: int) -> pa.RecordBatch | None:
        if unit not in self._headers:
            header = read_unit(self._plan.unit_uri(unit))
            if header is None:
                raise FeatureError(
                    f"{self._plan.unit_uri(unit)}: expected rows of pass 1, got no such file. Is "
                    "--shard.scratch seen by every worker? Run the job again."
                )
            self._headers[unit] = header
        return read_bucket(self._headers[unit], bucket)


def tally_of(header: UnitHeader) -> UnitTally:
    """The counts of a finished unit."""
    return _tally_of(header.facts)


def read_record(plan: ShardsPlan, bucket: int) -> list[tuple[ShardInfo, TargetSums]]:
    """What the record of a finished bucket says."""
    fields = json.loads(objects.read_bytes(plan.done_uri(bucket)))
    shards = []
    for info, (num_rows, total, squares) in zip(fields["shards"], fields["sums"], strict=True):
        sums = TargetSums(num_rows=num_rows, total=np.array(total), squares=np.array(squares))
        shards.append((ShardInfo(**{**info, "row_groups": tuple(info["row_groups"])}), sums))
    return shards


def _no_facts() -> dict[str, Any]:
    return {"slides": [], "passed_through": 0, "jpeg_bytes": 0, "left_out": [], "read_s": 0.0}


def _tally_of(facts: Any) -> UnitTally:
    return UnitTally(
        rows=sum(rows for _, _, rows in facts["slides"]),
        passed_through=facts["passed_through"],
        left_out=len(facts["left_out"]),
        slides=len(facts["slides"]),
        jpeg_bytes=facts["jpeg_bytes"],
        read_s=facts["read_s"],
    )
