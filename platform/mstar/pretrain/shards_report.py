"""What the shard job says: before it starts, as it goes, and at its end."""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mstar.data.shards.format import ShardIndex
from mstar.errors import StorageError
from mstar.pretrain.shards_plan import ShardSources, ShuffleShape
from mstar.pretrain.shards_sample import Sample
from mstar.pretrain.shards_worker import UnitTally
from mstar.storage import objects
from mstar.training.progress import LINE_INTERVAL_S, RecentRate, format_duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A folder that the job fills, and what its disk has; free is None in an object store."""

    folder: str
    need_bytes: int
    free_bytes: int | None

    def text(self) -> str:
        """One line."""
        free = "in an object store" if self.free_bytes is None else f"{_gb(self.free_bytes)} free"
        return f"{self.folder}: about {_gb(self.need_bytes)} to be written, {free}"


def rooms(sources: ShardSources, shape: ShuffleShape) -> list[Room]:
    """What buckets and shards take, less what earlier runs wrote, folder by folder."""
    total = sources.about_rows * shape.row_bytes
    needs = {sources.folder: total}
    needs[sources.bucket_root] = needs.get(sources.bucket_root, 0) + total
    if sources.config.shard.scratch is None:  # one disk
        needs = {sources.folder: 2 * total}
    found = []
    for folder, need in needs.items():
        there = sum(info.size_bytes for info in objects.list_files(folder))
        free = free_bytes(folder)
        found.append(Room(folder=folder, need_bytes=max(0, need - there), free_bytes=free))
    return found


def free_bytes(folder: str) -> int | None:
    """Free bytes of the disk that a folder is or will be on; None for an object store."""
    if not objects.is_local(folder):
        return None
    path = objects.local_path(folder).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def check_room(found: Sequence[Room]) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        StorageError: there is less room than the sample says is needed.
    """
    by_disk: dict[int, list[Room]] = {}
    for room in found:
        if room.free_bytes is not None:
            by_disk.setdefault(_disk(room.folder), []).append(room)
    for together in by_disk.values():
        need, free = sum(room.need_bytes for room in together), together[0].free_bytes
        assert free is not None
        if need > free:
            raise StorageError(
                f"{together[0].folder}: expected about {_gb(need)} of free disk for buckets and "
                f"shards, got {_gb(free)}. Free some, or put buckets elsewhere (--shard.scratch)."
            )


def before(
    sources: ShardSources, shape: ShuffleShape, sample: Sample | None, found: Sequence[Room]
) -> str:
    """What is to be done, and what the sample says of it."""
    settings = sources.config.shard
    lines = [
        f"shards: about {sources.about_rows:,} patches of {len(sources.slides):,} slides, stored "
        f"at {sources.side_px} px, about {shape.row_bytes:,} bytes each with target",
        f"  shuffle   {shape.num_buckets:,} buckets, units of {shape.unit_rows:,} patches",
    ]
    if sample is not None:
        lines += [
            f"  sample    {sample.num_patches:,} patches of {sample.num_slides:,} slides: "
            f"{sample.jpeg_bytes:,.0f} bytes of JPEG, {sample.pass_rate:.0%} raw tiles, "
            f"{sample.unreadable:,} unreadable, {1 / sample.patch_s:,.0f} patches/s of one thread",
            f"  features  {_cosine_text(sample)}",
        ]
    if settings.weights is None:
        lines.append(
            "  WARNING: the features of stored pixels are NOT compared with the original ones, "
            "since no weights are given (--shard.weights)"
        )
    return "\n".join([*lines, *(f"  room      {room.text()}" for room in found)])


def summary(sources: ShardSources, index: ShardIndex, elapsed_s: float | None) -> str:
    """The end of the job on one screen."""
    counts = index.counts
    rows, jpeg = max(1, index.num_rows), counts.jpeg_bytes / max(1, index.num_rows)
    size = sum(shard.num_bytes for shard in index.shards)
    took = "there already" if elapsed_s is None else f"complete in {format_duration(elapsed_s)}"
    rate = "" if not elapsed_s else f", {index.num_rows / elapsed_s:,.0f} patches/s"
    lines = [
        f"shards: {took}",
        f"  patches   {index.num_rows:,} of {counts.num_slides:,} slides and "
        f"{counts.num_cases:,} cases{rate}",
        f"  images    {index.patch_px} px, {jpeg:,.0f} bytes of JPEG on average, "
        f"{counts.passed_through / rows:.1%} raw tiles",
        f"  shards    {len(index.shards):,} of {_gb(size)} together",
        f"  left out  {_left_out_text(sources, counts.left_out)}",
    ]
    if index.cosine is None:
        lines.append("  features  NOT compared: no weights were given (--shard.weights)")
    else:
        lines.append(
            f"  features  cosine of stored to original pixels {index.cosine.mean:.4f} on average, "
            f"{index.cosine.smallest:.4f} at least, {index.cosine.num_rows:,} patches"
        )
    lines += [f"  output    {sources.folder}", f"  preview   {sources.folder}/preview.jpg"]
    return "\n".join(lines)


class ShardProgress:
    """A line every few seconds: patches, rate, bytes per patch, pass-through rate, free space.

    say: takes a line; the clock is an argument, so that tests need not wait.
    """

    def __init__(
        self,
        name: str,
        *,
        about_rows: int,
        folder: str,
        say: Callable[[str], None] | None = None,
        line_interval_s: float = LINE_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._about_rows, self._folder = name, about_rows, folder
        self._say, self._interval_s, self._clock = say or _to_stderr, line_interval_s, clock
        self._start_s = self._line_at_s = clock()
        self._rate = RecentRate()
        self._rate.add(self._start_s, 0)
        self.total = UnitTally()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start_s

    def add(self, tally: UnitTally) -> None:
        """Take what a unit or bucket did."""
        self.total.add(tally)
        now_s = self._clock()
        self._rate.add(now_s, self.total.rows)
        if now_s - self._line_at_s >= self._interval_s:
            self._line_at_s = now_s
            self._say(self.line())

    def line(self) -> str:
        """The state in one plain line."""
        total, per_s = self.total, self._rate.per_s()
        left = max(0, self._about_rows - total.rows)
        to_go = format_duration(left / per_s) if per_s > 0 else "?"
        parts = [
            f"{self._name}: {total.rows:,} of about {self._about_rows:,} patches",
            f"{per_s:,.0f} patches/s",
        ]
        if total.jpeg_bytes:
            rows = max(1, total.rows)
            parts += [
                f"{total.jpeg_bytes / rows:,.0f} bytes/patch",
                f"{total.passed_through / rows:.0%} raw tiles",
                f"{total.left_out:,} left out",
            ]
        free = free_bytes(self._folder)
        parts += [] if free is None else [f"{_gb(free)} free"]
        return " · ".join([*parts, f"{format_duration(self.elapsed_s)} elapsed", f"{to_go} to go"])

    def close(self) -> None:
        """Leave the last state as a line."""
        self._say(self.line())


def _left_out_text(sources: ShardSources, left_out: object) -> str:
    counts: dict[str, int] = dict(left_out)  # type: ignore[call-overload]
    if not counts:
        return "none"
    said = ", ".join(f"{count:,} × {reason}" for reason, count in sorted(counts.items()))
    return f"{said}; named in {sources.folder}/left_out.csv"


def _cosine_text(sample: Sample) -> str:
    if sample.cosine is None:
        return "not compared"
    cosine = sample.cosine
    return (
        f"cosine of stored to original pixels {cosine.mean:.4f} on average (at least "
        f"{cosine.least_mean:g} is asked for), smallest {cosine.smallest:.4f}"
    )


def _disk(folder: str) -> int:
    path = Path(objects.local_path(folder)).absolute()
    while not path.exists():
        path = path.parent
    return path.stat().st_dev


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
