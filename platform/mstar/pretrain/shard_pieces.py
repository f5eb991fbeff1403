"""Pieces of shards read by Ray Data: tasks anywhere in the cluster, results in the plan's order.

Each worker of a training run has a Dataset of its own, of its own list of pieces; order is kept and
nothing is split or shuffled here. Rows travel compressed, as Arrow's own bytes. The list is cut
into chapters: a Dataset holds a few thousand tasks, not the hundred thousands of an epoch.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ExecutionResources, TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.exceptions import RayError

from mstar.data.shards.buffers import Buffers
from mstar.data.shards.format import piece_schema
from mstar.data.shards.pieces import Piece, PieceRows, PieceTable
from mstar.data.shards.reader import ShardReader
from mstar.errors import StorageError, WorkerError
from mstar.training.code_version import refuse_other_code

CHAPTER_TASKS = 4096
LOOP_REST_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class RayReaders:
    """How a worker's pieces are read by the cluster."""

    tasks: int = 4
    """Tasks that read at once for one training worker."""

    pieces_per_task: int = 4
    """Pieces that one task reads; more spare scheduling, fewer come sooner."""

    task_cpus: float = 0.25
    """CPUs that Ray reserves per task. Reading waits for storage most of the time; whatever the
    training workers reserve, this much must be left."""


class RayPieces:
    """Iterates over pieces in the order of their table; `close` ends the reading."""

    def __init__(
        self,
        reader: ShardReader,
        pieces: PieceTable,
        readers: RayReaders,
        *,
        ahead_bytes: int,
        buffers: Buffers | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            reader: copied to the tasks.
            pieces: what to read.
            readers: how many tasks, and of what size.
            ahead_bytes: how much may lie in the object store, read and not yet taken. Ray Data
                keeps to it as far as whole tasks allow.
            buffers: for the pieces; those of an earlier epoch are used on.
        """
        self._buffers = buffers or Buffers()
        self._reader, self._pieces = reader, pieces
        self._readers, self._ahead_bytes = readers, ahead_bytes
        self._is_closed = False

    def __iter__(self) -> Iterator[PieceRows]:
        """The pieces; once."""
        chapter = CHAPTER_TASKS * self._readers.pieces_per_task
        try:
            for first in range(0, len(self._pieces), chapter):
                stop = min(first + chapter, len(self._pieces))
                dataset = self._dataset(range(first, stop))
                for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                    if self._is_closed:
                        return
                    yield from take_pieces(block, self._pieces, self._buffers)
        except RayError as error:
            raise _failed(error) from error

    def close(self) -> None:
        """Stop reading: Ray ends the tasks of a dataset that nobody iterates over any more."""
        self._is_closed = True

    def _dataset(self, numbers: range) -> ray.data.Dataset:
        """The pieces of a chapter: one block of a few pieces a task, read in order."""
        _quieten()
        size = self._readers.pieces_per_task
        tasks = [numbers[first : first + size] for first in range(0, len(numbers), size)]
        todo = [pa.Table.from_pylist([asdict(self._pieces[at]) for at in task]) for task in tasks]
        dataset = ray.data.from_arrow(todo)
        self._configure(dataset.context)
        return dataset.map_batches(
            partial(read_pieces, reader=self._reader),
            batch_size=None,
            batch_format="pyarrow",
            compute=TaskPoolStrategy(size=self._readers.tasks),
            num_cpus=self._readers.task_cpus,
        )

    def _configure(self, context: ray.data.DataContext) -> None:
        """The settings of one dataset; those of the process stay as they are."""
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources(
            object_store_memory=float(self._ahead_bytes)
        )
        context.custom_execution_callback_classes = [_Unhurried]
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = -1  # a step, or a pause of storage, may be long


class _Unhurried(ExecutionCallback):  # type: ignore[misc]  # Ray does not type it
    """Lets Ray Data's loop rest after every step.

    While blocks wait to be taken it would run through without a pause, in the trainer's process:
    half of the time nobody else could run Python.
    """

    def on_execution_step(self, executor: object) -> None:
        """Rest."""
        time.sleep(LOOP_REST_S)


def take_pieces(block: pa.Table, pieces: PieceTable, buffers: Buffers) -> Iterator[PieceRows]:
    """The pieces that `read_pieces` put in a block, copied: the object store can let go of it.

    Args:
        block: of one task.
        pieces: of the stream.
        buffers: for the copies.

    Raises:
        StorageError: what the reader met, in its own words.
    """
    columns = (block.column(name) for name in ("number", "fault", "trouble", "rows"))
    for number, fault, trouble, rows in zip(*columns, strict=True):
        if trouble.as_py():
            raise StorageError(trouble.as_py())
        piece = pieces[number.as_py()]
        if fault.as_py():
            yield PieceRows(piece=piece, fault=fault.as_py())
        else:
            yield PieceRows(piece=piece, rows=_unpacked(rows.as_buffer(), piece, buffers))


def read_pieces(todo: pa.Table, *, reader: ShardReader) -> Iterator[pa.Table]:
    """Read the pieces of a block, one by one; what is wrong with one travels in its place."""
    refuse_other_code()
    for fields in todo.to_pylist():
        piece, trouble = Piece(**fields), ""
        try:
            found = _held(*reader.arguments).read(piece)
        except StorageError as error:  # Ray would wrap it in its own, and lose what it was
            found, trouble = PieceRows(piece=piece), str(error)
        yield pa.table(
            {
                "number": pa.array([piece.number], pa.int64()),
                "fault": pa.array([found.fault], pa.string()),
                "trouble": pa.array([trouble], pa.string()),
                "rows": _packed(found.rows),
            }
        )


@cache
def _held(folder: str, patience_s: float, verify_checksums: bool) -> ShardReader:
    """The reader of this process: it keeps the footers of remote shards from task to task."""
    return ShardReader(folder, patience_s=patience_s, verify_checksums=verify_checksums)


def _packed(rows: pa.RecordBatch | None) -> pa.Array:
    """Rows as one value of bytes: a slice without what lies around it."""
    if rows is None:
        return pa.array([b""], pa.binary())
    data = rows.serialize()
    ends = pa.py_buffer(np.array([0, data.size], np.int32))
    return pa.Array.from_buffers(pa.binary(), 1, [None, ends, data])


def _unpacked(data: pa.Buffer, piece: Piece, buffers: Buffers) -> pa.RecordBatch:
    """The rows again, in memory of their own."""
    memory = buffers.take((data.size,))
    memory[:] = np.frombuffer(data, np.uint8)
    return pa.ipc.read_record_batch(pa.py_buffer(memory), piece_schema(piece.target_dim))


def _failed(error: RayError) -> WorkerError:
    last = "\n".join(str(error).rstrip().splitlines()[-12:])
    return WorkerError(
        "reading shards through Ray cannot go on; resume the run from its last checkpoint. What "
        f"the readers said last:\n{last}"
    )


def _quieten() -> None:
    logging.getLogger("ray.data").setLevel(logging.ERROR)
