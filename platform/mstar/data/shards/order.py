"""The order in which the rows of a shard set are trained: pure functions, the same for any workers.

    order = EpochOrder(group_rows, OrderConfig(batch_size=1024), epoch=0)
    pieces = order.pieces(rank=3, world_size=8, first_step=120)     # what rank 3 reads, in order
    order.lane_rows(7)                                              # rows of a lane as trained

Row groups are permuted by (seed, epoch) and laid end to end; these positions are cut into `lanes`
equal stretches, and within a lane the rows are permuted inside windows of a row group or some. A
step takes the next `batch_size / lanes` rows of every lane, and rank r of W owns the lanes
r, r + W, … So the rows of a step follow from (seed, epoch, step, batch size, lanes) alone: a
cursor of (epoch, step) is the whole position of a run, at any number of workers. What lanes lack at
their ends, and ranks where W does not divide the lanes, is padding without weight.

See ADR 9. 116 million rows in 453,000 row groups take a second and some 60 MB.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt64

from mstar.errors import ConfigError

NO_ROW = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderConfig:
    """What the order of a run follows from, beside the shards; part of its fingerprint."""

    batch_size: int = 1024
    """Rows of one step of all workers together; a multiple of `lanes`."""

    lanes: int = 64
    """Places of the epoch that every step takes rows from: the most workers there can be."""

    window_groups: int = 1
    """Row groups whose rows are permuted together; as many per lane are held in memory."""

    seed: int = 0
    """Seed of the order; the epoch is mixed in."""

    def __post_init__(self) -> None:
        """Refuses what cannot be cut evenly."""
        if self.lanes < 1 or self.window_groups < 1:
            raise ConfigError(
                f"lanes and window_groups: expected at least 1, got {self.lanes} and "
                f"{self.window_groups}. Use 64 and 1."
            )
        if self.batch_size < 1 or self.batch_size % self.lanes:
            raise ConfigError(
                f"batch_size: expected a multiple of the {self.lanes} lanes, got "
                f"{self.batch_size}. Take another of the two: every step takes equally many rows "
                "from every lane."
            )

    @property
    def rows_per_lane(self) -> int:
        """Rows that a step takes from one lane."""
        return self.batch_size // self.lanes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """How far a run has trained: the step to train next. Nothing prefetched counts."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pieces:
    """Stretches of row groups, as columns; a piece lies in one lane.

    group, first, stop: rows [first, stop) of a row group.
    lane, window: whose rows they are; windows count from 0 in their lane.
    window_start: the window's first position in its lane.
    first_step: the first step that needs them, never before the cursor.
    """

    group: Int64[np.ndarray, " piece"]
    first: Int64[np.ndarray, " piece"]
    stop: Int64[np.ndarray, " piece"]
    lane: Int64[np.ndarray, " piece"]
    window: Int64[np.ndarray, " piece"]
    window_start: Int64[np.ndarray, " piece"]
    first_step: Int64[np.ndarray, " piece"]

    def __len__(self) -> int:
        """Number of pieces."""
        return len(self.group)


class EpochOrder:
    """The order of one epoch."""

    def __init__(
        self, group_rows: Int64[np.ndarray, " group"], config: OrderConfig, epoch: int
    ) -> None:
        """Lay the row groups out.

        Args:
            group_rows: rows of each row group, in the order of the index.
            config: the run's.
            epoch: counts from 0.
        """
        self.config, self.epoch = config, epoch
        self._group_starts = _starts(group_rows)
        self._groups = permutation(len(group_rows), config.seed, epoch)
        self._positions = _starts(group_rows[self._groups])
        self.num_rows = int(self._group_starts[-1])
        lanes = np.arange(config.lanes + 1, dtype=np.int64)
        self.lane_starts: Int64[np.ndarray, " lane_plus_1"] = lanes * self.num_rows // config.lanes
        self._pieces = self._cut()

    @property
    def num_steps(self) -> int:
        """Steps of the epoch; in the last ones lanes may have ended."""
        return -(-int(np.diff(self.lane_starts).max()) // self.config.rows_per_lane)

    def rows_trained(self, step: int) -> int:
        """Rows of the epoch that the steps before this one have trained."""
        done = np.minimum(np.diff(self.lane_starts), step * self.config.rows_per_lane)
        return int(done.sum())

    def padding_share(self, world_size: int) -> float:
        """Share of the epoch's places that hold no row, of all ranks together."""
        slots = len(rank_lanes(self.config.lanes, 0, world_size)) * world_size
        places = slots * self.config.rows_per_lane * self.num_steps
        return 1 - self.num_rows / places if places else 0.0

    def pieces(self, rank: int, world_size: int, first_step: int = 0) -> Pieces:
        """What a rank reads from a step on, in the order in which it is needed.

        Windows that an earlier step began come whole: their order is a draw over all their rows.
        """
        offset = first_step * self.config.rows_per_lane
        every, is_left = self._pieces, self._window_stops > offset
        if world_size > 1 or first_step:
            rank_lanes(self.config.lanes, rank, world_size)
            chosen = np.flatnonzero((every.lane % world_size == rank) & is_left)
            every = _take(every, chosen)
        needed = np.maximum(every.first_step, first_step)
        in_order = np.argsort(needed, kind="stable")  # lanes ascending within a step
        pieces = _take(every, in_order)
        pieces.first_step[:] = needed[in_order]
        return pieces

    def lane_rows(self, lane: int) -> Int64[np.ndarray, " row"]:
        """The rows of a lane as they are trained, numbered through the shards of the index."""
        low, high = np.searchsorted(self._pieces.lane, [lane, lane + 1])
        pieces = _take(self._pieces, np.arange(low, high))
        windows = []
        for window in range(int(pieces.window[-1]) + 1 if len(pieces) else 0):
            inside = np.flatnonzero(pieces.window == window)
            rows = np.concatenate([self.piece_rows(pieces, int(piece)) for piece in inside])
            windows.append(rows[self.window_order(lane, window, len(rows))])
        return np.concatenate(windows) if windows else np.empty(0, np.int64)

    def step_rows(self, step: int, lane: int) -> Int64[np.ndarray, " row"]:
        """The rows that a step trains of a lane; fewer, or none, where the lane ends."""
        count = self.config.rows_per_lane
        return self.lane_rows(lane)[step * count : (step + 1) * count]

    def piece_rows(self, pieces: Pieces, piece: int) -> Int64[np.ndarray, " row"]:
        """The rows of a piece as they lie in the file, numbered through the shards of the index."""
        start = self._group_starts[pieces.group[piece]]
        return np.arange(start + pieces.first[piece], start + pieces.stop[piece], dtype=np.int64)

    def window_order(self, lane: int, window: int, num_rows: int) -> Int64[np.ndarray, " row"]:
        """In which order the rows of a window are trained."""
        names = ("rows of a window", self.config.seed, self.epoch, lane, window)
        return _argsort(random_words(num_rows, *names))

    def _cut(self) -> Pieces:
        """All pieces, by lane and in the order of their positions."""
        cuts = np.union1d(self._positions, self.lane_starts)
        starts, stops = cuts[:-1], cuts[1:]
        # the last of several that begin at one position: those before it are empty
        at = np.searchsorted(self._positions, starts, side="right") - 1
        lane = np.searchsorted(self.lane_starts, starts, side="right") - 1
        lane_first = np.searchsorted(lane, np.arange(self.config.lanes))
        window = (np.arange(len(starts)) - lane_first[lane]) // self.config.window_groups
        begins = lane_first[lane] + window * self.config.window_groups
        ends = _last_of_runs(begins)
        window_start = starts[begins] - self.lane_starts[lane]
        self._window_stops = stops[ends] - self.lane_starts[lane]
        return Pieces(
            group=self._groups[at],
            first=starts - self._positions[at],
            stop=stops - self._positions[at],
            lane=lane.astype(np.int64, copy=False),
            window=window.astype(np.int64, copy=False),
            window_start=window_start,
            first_step=window_start // self.config.rows_per_lane,
        )


def permutation(num_groups: int, seed: int, epoch: int) -> Int64[np.ndarray, " group"]:
    """The row groups in the order of an epoch."""
    return _argsort(random_words(num_groups, "row groups", seed, epoch))


def rank_lanes(lanes: int, rank: int, world_size: int) -> Sequence[int]:
    """The lanes of a rank; others may have one more, but none has more than rank 0.

    Raises:
        ConfigError: there are more workers than lanes, so that some would never have a row.
    """
    assert 0 <= rank < world_size
    if world_size > lanes:
        raise ConfigError(
            f"{world_size} workers: expected no more than the {lanes} lanes of the order, since a "
            "lane is one worker's. Use more lanes (a divisor of batch_size)."
        )
    return range(rank, lanes, world_size)


def random_words(count: int, *names: int | str) -> UInt64[np.ndarray, " word"]:
    """Random 64-bit words that follow from the names alone, whatever the version of numpy."""
    key = hashlib.sha256(json.dumps(names).encode()).digest()[:16]
    words = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    return np.asarray(words, dtype=np.uint64)


def _argsort(words: UInt64[np.ndarray, " word"]) -> Int64[np.ndarray, " word"]:
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def _starts(counts: Int64[np.ndarray, " item"]) -> Int64[np.ndarray, " item_plus_1"]:
    """Where each item begins when they lie end to end; the last entry is the total."""
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def _last_of_runs(values: Int64[np.ndarray, " item"]) -> Int64[np.ndarray, " item"]:
    """For each item the index of the last that has its value; equal values lie together."""
    return np.searchsorted(values, values, side="right").astype(np.int64, copy=False) - 1


def _take(pieces: Pieces, index: Int64[np.ndarray, " chosen"]) -> Pieces:
    columns = {name: getattr(pieces, name)[index] for name in Pieces.__dataclass_fields__}
    return Pieces(**columns)
