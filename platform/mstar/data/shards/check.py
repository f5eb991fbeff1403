"""What can be wrong with finished shards, and how a good shuffle is told from a bad one.

Two statistics of the shuffle, both compared with a random order of the same rows:

    slides in windows   distinct slides among consecutive `WINDOW_ROWS` rows; expected, of slide s
                        with n of N rows: sum over s of 1 - C(N - n, w) / C(N, w)
    neighbours          consecutive rows of one slide; expected: (N - 1) sum n (n - 1) / (N (N - 1))

A difference counts in standard deviations (of independent slides, and of independent pairs, which
are larger than the true ones); beyond `MOST_DEVIATIONS` it is a problem. Besides, rows must lie in
the order of their hash, which also shows every patch that comes twice.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, UInt64

from mstar.data.shards.format import ShardIndex, ShardInfo, decode_targets, shard_schema
from mstar.data.shards.hashing import row_hashes
from mstar.slides.raw_tiles import decode
from mstar.storage import objects

WINDOW_ROWS = 10_000
MOST_DEVIATIONS = 6.0
_LEAST_STD = 1e-4  # of a target's value over all rows; all below it say nothing
_TOLERANCE = 1e-3  # of target statistics, in standard deviations

Identity = tuple[str, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong, and where."""

    where: str
    what: str


@dataclass(slots=True, kw_only=True)
class Findings:
    """What was found so far; problems of one kind are kept up to a bound, and counted."""

    problems: list[Problem] = field(default_factory=list)
    num_problems: int = 0
    rows: int = 0
    decoded: int = 0
    distinct: list[tuple[int, int]] = field(default_factory=list)  # (rows, slides) of each window
    neighbours: int = 0
    slides: Counter[Any] = field(default_factory=Counter)
    total: Float64[np.ndarray, " dim"] | None = None
    squares: Float64[np.ndarray, " dim"] | None = None

    def add(self, where: str, what: str, *, most: int = 100) -> None:
        """Note a problem."""
        self.num_problems += 1
        if len(self.problems) < most:
            self.problems.append(Problem(where=where, what=what))


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """A number, what chance would give, and how far off that is in standard deviations."""

    name: str
    found: float
    expected: float
    deviations: float


class ShardChecker:
    """Goes through shards in order and keeps what it finds."""

    def __init__(
        self, folder: str, index: ShardIndex, *, sample_every: int, window_rows: int = WINDOW_ROWS
    ) -> None:
        """Check the shards of `index` in `folder`; every `sample_every`-th image is decoded."""
        self._folder, self._index, self._every = folder, index, max(1, sample_every)
        self._window_rows = window_rows
        self._window: set[str] = set()
        self._in_window = 0
        self._last: tuple[int, Identity] | None = None
        self.found = Findings()

    def check(self, shard: ShardInfo) -> None:
        """One shard: size, checksum, layout, order, images, targets."""
        try:
            data = objects.read_bytes(objects.join(self._folder, shard.name))
        except (FileNotFoundError, NotADirectoryError):
            self.found.add(shard.name, f"expected {shard.num_bytes:,} bytes, got no such file")
            return
        if len(data) != shard.num_bytes:
            self.found.add(shard.name, f"expected {shard.num_bytes:,} bytes, got {len(data):,}")
        elif hashlib.sha256(data).hexdigest() != shard.sha256:
            self.found.add(shard.name, "its sha256 is not that of the index: it was changed")
        try:
            for batch in self._groups(shard, data):
                self._check_rows(shard, batch)
        except (pa.ArrowException, OSError, ValueError) as error:
            self.found.add(shard.name, f"cannot be read: {error}")

    def finish(self) -> list[Statistic]:
        """What can be said once all shards were seen."""
        found, index = self.found, self._index
        self._close_window()
        if found.rows != index.num_rows:
            found.add("index.json", f"expected {index.num_rows:,} rows, got {found.rows:,}")
        if len(found.slides) != index.counts.num_slides:
            expected = index.counts.num_slides
            found.add("index.json", f"expected {expected:,} slides, got {len(found.slides):,}")
        statistics = shuffle_statistics(found) if found.rows > 1 else []
        for one in statistics:
            if abs(one.deviations) > MOST_DEVIATIONS:
                found.add(
                    "shuffle",
                    f"{one.name}: expected about {one.expected:,.1f}, got {one.found:,.1f}, "
                    f"{one.deviations:+.1f} standard deviations",
                )
        self._check_statistics()
        return statistics

    def _groups(self, shard: ShardInfo, data: bytes) -> Iterator[pa.Table]:
        file = pq.ParquetFile(pa.BufferReader(data))
        expected = shard_schema(self._index.target_dim)
        if not file.schema_arrow.equals(expected):
            self.found.add(shard.name, f"expected the columns {expected.names}, got others")
            return
        groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        if tuple(groups) != shard.row_groups:
            self.found.add(shard.name, f"expected row groups {shard.row_groups}, got {groups}")
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)

    def _check_rows(self, shard: ShardInfo, rows: pa.Table) -> None:
        slides = rows.column("slide_id").to_pylist()
        x, y = (rows.column(name).to_numpy() for name in ("x_l0", "y_l0"))
        self._check_order(shard, slides, x, y)
        self._check_images(shard, rows, slides)
        self._check_targets(shard, rows)
        for slide_id in slides:
            self._window.add(slide_id)
            self._in_window += 1
            if self._in_window == self._window_rows:
                self._close_window()
        self.found.slides.update(slides)
        self.found.rows += len(slides)

    def _check_order(
        self, shard: ShardInfo, slides: list[str], x: np.ndarray, y: np.ndarray
    ) -> None:
        hashes = hashes_of(int(self._index.config.get("seed", 0)), slides, x, y)
        rows = zip(hashes.tolist(), slides, x.tolist(), y.tolist(), strict=True)
        for at, (value, *identity) in enumerate(rows):
            this = value, (identity[0], identity[1], identity[2])
            if self._last is not None:
                self.found.neighbours += self._last[1][0] == identity[0]
                if self._last == this:
                    self.found.add(shard.name, f"patch {this[1]} comes twice")
                elif self._last > this:
                    place = self.found.rows + at
                    self.found.add(shard.name, f"row {place} is not in the order of its hash")
            self._last = this

    def _check_images(self, shard: ShardInfo, rows: pa.Table, slides: list[str]) -> None:
        side = self._index.patch_px
        first = -self.found.rows % self._every
        for at in range(first, rows.num_rows, self._every):
            self.found.decoded += 1
            where = f"{shard.name}, row {self.found.rows + at} of slide {slides[at]}"
            try:
                shape = decode(rows.column("jpeg")[at].as_py()).shape
            except ValueError as error:
                self.found.add(where, f"its image cannot be decoded: {error}")
                continue
            if shape != (side, side, 3):
                self.found.add(where, f"expected an image of {side} × {side} px, got {shape}")

    def _check_targets(self, shard: ShardInfo, rows: pa.Table) -> None:
        column = rows.column("target").combine_chunks()
        targets = decode_targets(column, self._index.target_dim).astype(np.float64)
        broken = np.flatnonzero(~np.isfinite(targets).all(axis=1))
        for at in broken.tolist():
            self.found.add(f"{shard.name}, row {self.found.rows + at}", "its target is not finite")
        targets = np.delete(targets, broken, axis=0)
        found = self.found
        total, squares = targets.sum(axis=0), (targets**2).sum(axis=0)
        found.total = total if found.total is None else found.total + total
        found.squares = squares if found.squares is None else found.squares + squares

    def _check_statistics(self) -> None:
        found, index = self.found, self._index
        if found.total is None or found.squares is None or not found.rows:
            return
        mean = found.total / found.rows
        std = np.sqrt(np.maximum(found.squares / found.rows - mean**2, 0))
        scale = max(float(np.mean(index.target_std)), 1e-12)
        off = max(
            float(np.abs(mean - index.target_mean).max()),
            float(np.abs(std - index.target_std).max()),
        )
        if not off <= _TOLERANCE * scale:
            found.add("index.json", f"mean or deviation of targets is off by up to {off:.3g}")
        if (std < _LEAST_STD).all():
            found.add("targets", "all rows have the same target: the aggregator says nothing")

    def _close_window(self) -> None:
        if self._in_window:
            self.found.distinct.append((self._in_window, len(self._window)))
        self._window, self._in_window = set(), 0


def hashes_of(
    seed: int, slides: list[str], x: np.ndarray, y: np.ndarray
) -> UInt64[np.ndarray, " row"]:
    """The hash of each row, by its identity."""
    hashes = np.empty(len(slides), np.uint64)
    names, codes = np.unique(np.array(slides, dtype=object).astype(str), return_inverse=True)
    coords = np.stack([x, y], axis=1).astype(np.int64)
    for code, name in enumerate(names.tolist()):
        chosen = codes == code
        hashes[chosen] = row_hashes(seed, name, coords[chosen])
    return hashes


def shuffle_statistics(found: Findings) -> list[Statistic]:
    """Both statistics, the windows by the one that is furthest off."""
    counts = np.array(sorted(found.slides.values()), np.float64)
    chances = {rows: chance_present(rows, counts) for rows in {rows for rows, _ in found.distinct}}
    windows = [_window_statistic(rows, slides, chances[rows]) for rows, slides in found.distinct]
    worst = max(windows, key=lambda one: abs(one.deviations))
    return [worst, _neighbour_statistic(found.neighbours, counts)]


def chance_present(
    rows: int, counts: Float64[np.ndarray, " slide"]
) -> Float64[np.ndarray, " slide"]:
    """How likely a slide of n rows is among `rows` drawn of all: 1 - C(N - n, w) / C(N, w)."""
    total = int(counts.sum())
    sizes, codes = np.unique(counts.astype(np.int64), return_inverse=True)
    absent = [
        math.exp(_log_choose(total - size, rows) - _log_choose(total, rows))
        if size <= total - rows
        else 0.0
        for size in sizes.tolist()
    ]
    present: Float64[np.ndarray, " slide"] = 1 - np.minimum(np.array(absent), 1.0)[codes]
    return present


def _log_choose(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)


def _window_statistic(rows: int, slides: int, present: Float64[np.ndarray, " slide"]) -> Statistic:
    expected = float(present.sum())
    deviation = float(np.sqrt((present * (1 - present)).sum()))
    # Where every slide is all but certain to be there, one missing slide is no bad shuffle.
    return Statistic(
        name=f"slides among {rows:,} consecutive rows",
        found=float(slides),
        expected=expected,
        deviations=(slides - expected) / max(deviation, 0.5),
    )


def _neighbour_statistic(neighbours: int, counts: Float64[np.ndarray, " slide"]) -> Statistic:
    total = counts.sum()
    share = float((counts * (counts - 1)).sum() / (total * (total - 1)))
    expected = (total - 1) * share
    deviation = float(np.sqrt((total - 1) * share * (1 - share)))
    return Statistic(
        name="neighbours of one slide",
        found=float(neighbours),
        expected=float(expected),
        deviations=float((neighbours - expected) / max(deviation, 0.5)),
    )
