"""A rank's batches over all epochs of a run, from any step on.

The step alone decides what is trained (`mstar.data.shards.order`), so this opens the stream of the
epoch that the step falls into, and the next one's when that ends.
"""

import time
from collections.abc import Iterator

import numpy as np
import torch

from mstar.data.shards.batches import Seat
from mstar.data.shards.buffers import Buffers
from mstar.data.shards.decode import PatchBatch
from mstar.data.shards.faults import FaultLedger
from mstar.data.shards.format import ShardIndex
from mstar.data.shards.order import Cursor, EpochOrder, OrderConfig
from mstar.data.shards.pieces import group_rows
from mstar.pretrain.shard_stream import PatchStream, StreamConfig, open_stream
from mstar.pretrain.stage2_step import StepBatch

PROBE_SEED = 20_251_212  # of the probe's patches: the same in every run over the same shards


class StepBatches:
    """Gives the batch of each step in turn."""

    def __init__(
        self,
        shards: str,
        index: ShardIndex,
        order: OrderConfig,
        seat: Seat,
        config: StreamConfig,
    ) -> None:
        """Nothing is read before the first `get`."""
        self._shards, self._order, self._seat, self._config = shards, order, seat, config
        self._buffers = Buffers()  # for all epochs
        self._first_epoch = EpochOrder(group_rows(index), order, 0)
        self.per_epoch = self._first_epoch.num_steps
        self._stream: PatchStream | None = None
        self._batches: Iterator[tuple[int, PatchBatch]] = iter(())
        self._next = -1
        self.waited_s = 0.0

    def get(self, step: int) -> StepBatch:
        """The batch of a step of the run; cheapest when steps come one after the other."""
        epoch, place = divmod(step, self.per_epoch)
        if step != self._next or place == 0:
            self._open(epoch, place)
        began_s = time.perf_counter()
        found, batch = next(self._batches)
        self.waited_s += time.perf_counter() - began_s
        assert found == place, (found, place)
        self._next = step + 1
        return StepBatch.of(batch)

    def rows_of(self, step: int) -> int:
        """Rows that a step of the run has over all ranks: the same places of every epoch."""
        place = step % self.per_epoch
        order = self._first_epoch
        return order.rows_trained(place + 1) - order.rows_trained(place)

    @property
    def faults(self) -> FaultLedger | None:
        """Rows left out in the epoch that is being read."""
        return self._stream.faults if self._stream is not None else None

    def close(self) -> None:
        """Stop reading."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __enter__(self) -> "StepBatches":
        """Nothing to start."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop reading."""
        self.close()

    def _open(self, epoch: int, place: int) -> None:
        self.close()
        cursor = Cursor(epoch=epoch, step=place)
        self._stream = open_stream(
            self._shards, self._order, cursor, self._seat, self._config, self._buffers
        )
        self._batches = iter(self._stream)


def probe_images(shards: str, index: ShardIndex, count: int) -> torch.Tensor:
    """Some patches of the shards, the same for every run over them: [patch, px, px, 3], uint8."""
    wanted = min(count, index.num_rows)
    order = OrderConfig(batch_size=min(64, wanted), lanes=1, seed=PROBE_SEED)
    config = StreamConfig(via="threads", max_bad_share=1.0)  # the training counts what is broken
    stream = open_stream(shards, order, Cursor(), Seat(), config)
    found: list[np.ndarray] = []
    try:
        for _, batch in stream:
            found.append(np.array(batch.pixels[batch.weights > 0]))
            if sum(map(len, found)) >= wanted:
                break
    finally:
        stream.close()
    return torch.from_numpy(np.concatenate(found)[:wanted])
