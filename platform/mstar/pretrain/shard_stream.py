"""The stream of batches that one training worker takes: read ahead, decoded ahead, in our order.

    stream = open_stream("T/shards", order, cursor, Seat(rank=0, world_size=8), StreamConfig())
    for step, batch in stream:
        ...
    stream.close()

Compressed rows come from Ray Data or from threads of this process; both give the same batches to
the last bit, for the order is decided elsewhere (`mstar.data.shards.order`). Decoding happens in
threads beside the trainer, a few batches ahead of it. Nothing that was read ahead counts as
trained: a run that resumes opens a stream at its cursor.
"""

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from mstar.data.shards.augment import AugmentConfig
from mstar.data.shards.batches import BatchMaker, Seat
from mstar.data.shards.buffers import Buffers
from mstar.data.shards.decode import JpegDecoder, PatchBatch
from mstar.data.shards.faults import FaultLedger
from mstar.data.shards.format import ShardIndex, read_index, shards_folder
from mstar.data.shards.order import Cursor, EpochOrder, OrderConfig
from mstar.data.shards.pieces import PieceRows, PieceTable, group_rows
from mstar.data.shards.read_ahead import ReadAhead
from mstar.data.shards.reader import ShardReader
from mstar.errors import ConfigError
from mstar.pretrain.shard_pieces import RayPieces, RayReaders

LOOK_UP_S = 0.1  # how often a waiting thread looks whether the stream was closed
JOIN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """How rows come to a training worker; nothing here but augmentation changes what is trained."""

    via: Literal["ray", "threads"] = "ray"
    """Who reads. ray: tasks anywhere in the cluster. threads: of the training worker itself."""

    decode_threads: int = 2
    """Threads of each training worker that decode JPEGs (one decodes some 3,000 patches/s)."""

    batches_ahead: int = 2
    """Decoded batches that wait for the trainer."""

    ahead_bytes: int = 256_000_000
    """Compressed bytes read ahead for one training worker, beside the windows in use."""

    reader_threads: int = 8
    """Pieces that one training worker reads at once, where it reads itself."""

    readers: RayReaders = field(default_factory=RayReaders)
    """The reading tasks of one training worker, where Ray reads."""

    max_bad_share: float = 0.001
    """Rows that may be left out (broken shards, JPEGs and targets) before the run stops, as a share
    of the rows of the epoch that a worker reads."""

    patience_s: float = 600.0
    """How long storage may be away before the run stops, in seconds."""

    verify_checksums: bool = True
    """Whether pages that carry a checksum are held against it (1 % of the cost of decoding)."""

    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    """What is done to the patches; nothing, as in the paper, by default."""

    def __post_init__(self) -> None:
        """Refuses a stream that cannot move."""
        counts = ("decode_threads", "batches_ahead", "ahead_bytes", "reader_threads")
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        if not 0 <= self.max_bad_share <= 1:
            raise ConfigError(
                f"max_bad_share: expected a share from 0 to 1, got {self.max_bad_share}. Use 0.001."
            )


@runtime_checkable
class PatchStream(Protocol):
    """What the trainer takes its batches from."""

    @property
    def num_steps(self) -> int:
        """Steps of the whole epoch, those before the cursor included."""

    @property
    def waited_s(self) -> float:
        """How long the trainer has waited for batches so far."""

    @property
    def faults(self) -> FaultLedger:
        """The rows left out so far."""

    def __iter__(self) -> Iterator[tuple[int, PatchBatch]]:
        """Steps from the cursor on, and their batches."""

    def close(self) -> None:
        """End reading and decoding."""


@runtime_checkable
class PieceSource(Protocol):
    """Whatever brings the pieces of a plan in its order."""

    def __iter__(self) -> Iterator[PieceRows]:
        """The pieces."""

    def close(self) -> None:
        """Stop reading."""


def open_stream(
    shards: str,
    order: OrderConfig,
    cursor: Cursor,
    seat: Seat,
    config: StreamConfig,
    buffers: Buffers | None = None,
) -> PatchStream:
    """The stream of one worker through the rest of an epoch.

    Args:
        shards: the folder of the shards, or the one above it (`T`).
        order: of the run.
        cursor: the epoch, and the first step to train.
        seat: which worker of how many; every one gets equally many rows at every step.
        config: how rows are read and decoded.
        buffers: for compressed rows and pixels; those of an earlier epoch are used on.
    """
    buffers = buffers or Buffers()
    folder = shards_folder(shards)
    index = read_index(folder)
    plan = EpochOrder(group_rows(index), order, cursor.epoch)
    pieces = plan.pieces(seat.rank, seat.world_size, cursor.step)
    reader = ShardReader(
        folder,
        patience_s=config.patience_s,
        verify_checksums=config.verify_checksums,
        buffers=buffers,
    )
    decoder = JpegDecoder(config.decode_threads, config.augmentation)
    maker = BatchMaker(
        index,
        plan,
        pieces,
        seat,
        first_step=cursor.step,
        decoder=decoder,
        faults=_ledger(folder, index, seat, config),
        augmentation=config.augmentation,
        buffers=buffers,
    )
    source = _source(reader, PieceTable(index, pieces), config, buffers)
    return ShardStream(maker, source, decoder, config.batches_ahead)


def _ledger(folder: str, index: ShardIndex, seat: Seat, config: StreamConfig) -> FaultLedger:
    share = index.num_rows // seat.world_size
    return FaultLedger(folder, num_rows=share, max_share=config.max_bad_share)


def _source(
    reader: ShardReader, pieces: PieceTable, config: StreamConfig, buffers: Buffers
) -> PieceSource:
    ahead = config.ahead_bytes
    if config.via == "ray":
        return RayPieces(reader, pieces, config.readers, ahead_bytes=ahead, buffers=buffers)
    return ReadAhead(reader, pieces, ahead_bytes=ahead, threads=config.reader_threads)


@dataclass(frozen=True, slots=True)
class _Ended:
    """The last thing in the queue: the epoch is over, or an error ended it."""

    error: BaseException | None = None


class ShardStream:
    """A thread that makes batches ahead of the trainer; see `open_stream`."""

    def __init__(
        self, maker: BatchMaker, source: PieceSource, decoder: JpegDecoder, batches_ahead: int
    ) -> None:
        """Start at once."""
        self._maker, self._source, self._decoder = maker, source, decoder
        self._ready: queue.Queue[tuple[int, PatchBatch] | _Ended] = queue.Queue(batches_ahead)
        self._closed = threading.Event()
        self._waited_s = 0.0
        self._thread = threading.Thread(target=self._run, name="shard-stream", daemon=True)
        self._thread.start()

    @property
    def num_steps(self) -> int:
        """Steps of the whole epoch, those before the cursor included."""
        return self._maker.num_steps

    @property
    def waited_s(self) -> float:
        """How long the trainer has waited for batches so far."""
        return self._waited_s

    @property
    def faults(self) -> FaultLedger:
        """The rows left out so far, in batches made ahead too."""
        return self._maker.faults

    def __iter__(self) -> Iterator[tuple[int, PatchBatch]]:
        """Steps from the cursor on, and their batches; once."""
        while True:
            started_s = time.perf_counter()
            item = self._take()
            self._waited_s += time.perf_counter() - started_s
            if not isinstance(item, _Ended):
                yield item
                del item  # its pixels go back to the buffers when the trainer lets go as well
            elif item.error is None:
                return
            else:
                raise item.error

    def close(self) -> None:
        """End reading and decoding; what was made ahead is dropped. Calling it twice is fine."""
        self._closed.set()
        self._source.close()
        self._thread.join(JOIN_S)
        self._decoder.close()
        while not self._ready.empty():
            self._ready.get_nowait()

    def _take(self) -> tuple[int, PatchBatch] | _Ended:
        while not self._closed.is_set():
            try:
                return self._ready.get(timeout=LOOK_UP_S)
            except queue.Empty:
                pass
        return _Ended()

    def _run(self) -> None:
        """Make the batches; an error comes to the trainer behind those made before it."""
        error: BaseException | None = None
        try:
            arriving = iter(self._source)
            while self._maker.next_step < self._maker.num_steps and not self._closed.is_set():
                step = self._maker.next_step
                self._put((step, self._maker.make(arriving)))
        except BaseException as raised:  # handed over as it is, and raised where it matters
            error = raised
        self._put(_Ended(error))

    def _put(self, item: tuple[int, PatchBatch] | _Ended) -> None:
        while not self._closed.is_set():
            try:
                return self._ready.put(item, timeout=LOOK_UP_S)
            except queue.Full:
                pass
