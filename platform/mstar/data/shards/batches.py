"""Puts the batches of one worker together from pieces that come in the order of its plan.

Which rows a step trains is decided by `order` alone; here they are taken from the windows of the
worker's lanes, decoded, and laid out lane by lane. Between steps only the windows that are begun
are held, compressed: one per lane.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Float32, Int64, UInt8

from mstar.data.shards.augment import AugmentConfig, row_words
from mstar.data.shards.buffers import Buffers
from mstar.data.shards.decode import JpegDecoder, PatchBatch, RowColumns, Taken, no_rows
from mstar.data.shards.faults import FaultKind, FaultLedger, RowFault
from mstar.data.shards.format import ShardIndex
from mstar.data.shards.order import NO_ROW, EpochOrder, Pieces, rank_lanes
from mstar.data.shards.pieces import PieceRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Which worker of how many."""

    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Window:
    """Rows of a lane that are permuted together, in the order in which they are trained.

    start: its first position in the lane.
    part, row: which of `parts`, and which row of it; a broken piece is no part (None).
    """

    start: int
    parts: tuple[RowColumns | None, ...]
    part: Int64[np.ndarray, " row"]
    row: Int64[np.ndarray, " row"]
    rows: Int64[np.ndarray, " row"]

    @property
    def stop(self) -> int:
        """The position behind its last."""
        return self.start + len(self.rows)


class BatchMaker:
    """Makes the batches of one worker from a step on, one after another."""

    def __init__(
        self,
        index: ShardIndex,
        order: EpochOrder,
        pieces: Pieces,
        seat: Seat,
        *,
        first_step: int,
        decoder: JpegDecoder,
        faults: FaultLedger,
        augmentation: AugmentConfig | None = None,
        buffers: Buffers | None = None,
    ) -> None:
        """Take the plan; nothing is read yet.

        Args:
            index: of the shards.
            order: of the epoch.
            pieces: what the worker reads from `first_step` on.
            seat: which worker.
            first_step: the first batch made.
            decoder: its threads.
            faults: where bad rows are counted.
            augmentation: what the decoder does to a patch.
            buffers: for pixels; those of an earlier epoch are used on.
        """
        self._index, self._order, self._pieces = index, order, pieces
        self._decoder, self.faults = decoder, faults
        self._augmentation = augmentation or AugmentConfig()
        self._lanes = rank_lanes(order.config.lanes, seat.rank, seat.world_size)
        most_lanes = len(rank_lanes(order.config.lanes, 0, seat.world_size))
        self._num_rows = most_lanes * order.config.rows_per_lane
        self._shape = (self._num_rows, index.patch_px, index.patch_px, 3)
        self._buffers = buffers or Buffers()
        self._windows: dict[int, deque[_Window]] = {lane: deque() for lane in self._lanes}
        self._opening: list[PieceRows] = []  # of the window whose pieces are coming in
        self._next_piece, self.next_step = 0, first_step

    @property
    def num_steps(self) -> int:
        """Steps of the whole epoch."""
        return self._order.num_steps

    def make(self, arriving: Iterator[PieceRows]) -> PatchBatch:
        """The next batch; takes the pieces that it is the first to need."""
        step, self.next_step = self.next_step, self.next_step + 1
        while self._is_needed(self._next_piece, step):
            self._add(next(arriving))
        rows, taken = no_rows(self._num_rows), []
        for place, lane in enumerate(self._lanes):
            taken += self._take(lane, step, place * self._order.config.rows_per_lane, rows)
        return self._fill(rows, taken)

    def _is_needed(self, piece: int, step: int) -> bool:
        return piece < len(self._pieces) and int(self._pieces.first_step[piece]) <= step

    def _add(self, found: PieceRows) -> None:
        """Keep a piece; the last of a window completes it."""
        assert found.piece.number == self._next_piece, "pieces come in the order of the plan"
        if found.fault:
            count = found.piece.stop - found.piece.first
            self.faults.add(
                RowFault(kind="shard", name=found.piece.name, reason=found.fault, num_rows=count)
            )
        self._opening.append(found)
        self._next_piece += 1
        at = self._next_piece
        if at == len(self._pieces) or self._window_of(at) != self._window_of(at - 1):
            lane, window = self._window_of(at - 1)
            self._windows[lane].append(self._open_window(lane, window))
            self._opening = []

    def _window_of(self, piece: int) -> tuple[int, int]:
        return int(self._pieces.lane[piece]), int(self._pieces.window[piece])

    def _open_window(self, lane: int, window: int) -> _Window:
        """The window of the pieces collected, its rows permuted."""
        pieces = [found.piece for found in self._opening]
        counts = [piece.stop - piece.first for piece in pieces]
        rows = [self._order.piece_rows(self._pieces, piece.number) for piece in pieces]
        in_order = self._order.window_order(lane, window, sum(counts))
        dim = self._index.target_dim
        return _Window(
            start=int(self._pieces.window_start[pieces[0].number]),
            parts=tuple(
                None if found.rows is None else RowColumns(found.rows, dim)
                for found in self._opening
            ),
            part=np.repeat(np.arange(len(counts)), counts)[in_order],
            row=np.concatenate([np.arange(count) for count in counts])[in_order],
            rows=np.concatenate(rows)[in_order],
        )

    def _take(
        self, lane: int, step: int, slot: int, rows: Int64[np.ndarray, " slot"]
    ) -> list[Taken]:
        """The rows of a lane that a step trains; windows that are used up are let go."""
        windows, taken = self._windows[lane], []
        count = self._order.config.rows_per_lane
        start, stop = step * count, (step + 1) * count
        while windows and windows[0].start < stop:
            window = windows[0]
            low = max(start, window.start) - window.start
            high = min(stop, window.stop) - window.start
            first = slot + window.start + low - start
            rows[first : first + high - low] = window.rows[low:high]
            taken += _parts_taken(window, low, high, first)
            if window.stop > stop:
                break
            windows.popleft()
        return taken

    def _fill(self, rows: Int64[np.ndarray, " slot"], taken: list[Taken]) -> PatchBatch:
        """The batch of the rows chosen; bad ones are told, and lose weight, target and pixels."""
        pixels = self._buffers.take(self._shape)
        targets = np.zeros((self._num_rows, self._index.target_dim), np.float16)
        weights = np.zeros(self._num_rows, np.float32)
        for part in taken:
            targets[part.slots], weights[part.slots] = part.columns.targets[part.picked], 1
        for slot in _not_finite(targets).tolist():
            self._tell("target", slot, "its target is not finite", taken)
            weights[slot] = 0
        for slot, reason in self._decode(pixels, weights, rows, taken):
            self._tell("jpeg", slot, reason, taken)
            weights[slot] = 0
        left_out = weights == 0
        pixels[left_out], targets[left_out] = 0, 0  # what a buffer held before is there else
        return PatchBatch(
            pixels=pixels,
            targets=targets,
            weights=weights,
            rows=rows,
            num_bad=int(np.count_nonzero(left_out & (rows != NO_ROW))),
            taken=taken,
        )

    def _decode(
        self,
        pixels: UInt8[np.ndarray, "slot px px 3"],
        weights: Float32[np.ndarray, " slot"],
        rows: Int64[np.ndarray, " slot"],
        taken: list[Taken],
    ) -> list[tuple[int, str]]:
        """Decode the rows that have a weight; which of them are broken, and why."""
        is_wanted = weights.tolist()
        jpegs = [
            (slot, part.columns.jpeg(row))
            for part in taken
            for slot, row in zip(part.slots.tolist(), part.picked.tolist(), strict=True)
            if is_wanted[slot]
        ]
        if not self._augmentation.is_on:
            return self._decoder.decode(jpegs, pixels)
        words = row_words(self._augmentation, self._order.epoch, rows)
        return self._decoder.decode(jpegs, pixels, words)

    def _tell(self, kind: FaultKind, slot: int, reason: str, taken: list[Taken]) -> None:
        """Count a bad row under its own name."""
        part = next(part for part in taken if slot in part.slots)
        row = int(part.picked[part.slots == slot][0])
        name = str(part.columns.identity(row))
        self.faults.add(RowFault(kind=kind, name=name, reason=reason))


def _parts_taken(window: _Window, low: int, high: int, first_slot: int) -> list[Taken]:
    """The rows [low, high) of a window, by the piece that they are in."""
    part, row = window.part[low:high], window.row[low:high]
    slots = np.arange(first_slot, first_slot + high - low)
    if len(window.parts) == 1 and window.parts[0] is not None:
        return [Taken(columns=window.parts[0], picked=row, slots=slots)]
    taken = []
    for number, columns in enumerate(window.parts):
        mine = np.flatnonzero(part == number)
        if columns is not None and len(mine):
            taken.append(Taken(columns=columns, picked=row[mine], slots=slots[mine]))
    return taken


def _not_finite(targets: Float16[np.ndarray, "slot dim"]) -> Int64[np.ndarray, " bad"]:
    """Rows with a NaN or an infinity, by their exponents: six times as fast as isfinite."""
    exponents = targets.view(np.uint16) & 0x7C00
    return np.flatnonzero(exponents.max(axis=1) == 0x7C00)
