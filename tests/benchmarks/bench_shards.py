"""What reading patch shards costs beside decoding, and against other formats: ratios in one run.

    PYTHONPATH=tests python tests/benchmarks/bench_shards.py [--rows 8192] [--rounds 5] [--no-ray]

Generated patches of 256 px (quality 80, 4:2:0), page cache warm, one codec (simplejpeg) everywhere,
targets of 512 values delivered with the pixels. CPU seconds of the whole process count, so that
threads hide nothing; the ways take turns, and the median of the rounds counts. All decode into
buffers that are used again; with fewer rows than the default their first use (page faults) weighs
in. The whole stream is what training takes: threads, queue and batches ahead included.
Ray is compared by the clock, in the steady state, its start apart.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from mstar.data.shards.batches import BatchMaker, Seat
from mstar.data.shards.buffers import Buffers
from mstar.data.shards.decode import JpegDecoder, PatchBatch
from mstar.data.shards.faults import FaultLedger
from mstar.data.shards.format import INDEX, ShardCounts, ShardIndex, dump_index, read_index
from mstar.data.shards.order import Cursor, EpochOrder, OrderConfig
from mstar.data.shards.pieces import PieceTable, group_rows
from mstar.data.shards.reader import ShardReader
from mstar.data.shards.rows import RowHeap, SlideRows, make_batch
from mstar.data.shards.writer import ShardLayout, write_bucket
from mstar.pretrain.shard_pieces import RayReaders
from mstar.pretrain.shard_stream import StreamConfig, open_stream
from mstar.storage import objects
from mstar.training.cluster import ray_session
from support.shard_sets import ENCODER

PX, DIM, BATCH = 256, 512, 128
ORDER = OrderConfig(batch_size=BATCH, lanes=8)
PIXELS = np.zeros((BATCH, PX, PX, 3), np.uint8)
BUFFERS = Buffers()
Way = Callable[[], int]


def make_jpegs(count: int) -> list[bytes]:
    """Patches with the noise and the smooth parts of tissue: about 17 KB each."""
    rng = np.random.default_rng(0)
    jpegs = []
    for _ in range(count):
        coarse = rng.integers(60, 230, (24, 24, 3)).astype(np.uint8)
        smooth = cv2.resize(coarse, (PX, PX), interpolation=cv2.INTER_CUBIC)
        noisy = smooth.astype(np.int16) + rng.integers(-12, 13, smooth.shape)
        pixels = np.clip(noisy, 0, 255).astype(np.uint8)
        jpegs.append(simplejpeg.encode_jpeg(pixels, quality=80, colorsubsampling="420"))
    return jpegs


def write_shards(folder: Path, jpegs: list[bytes], targets: np.ndarray) -> None:
    """The shards that `mstar targets` writes, of these rows."""
    count = len(jpegs)
    coords = np.stack([np.arange(count) % 100, np.arange(count) // 100], axis=1) * PX
    rows = SlideRows(slide_id="bench", case_id="bench", coords=coords, jpegs=jpegs, targets=targets)
    heap = RowHeap([make_batch(rows, seed=0)], DIM)
    layout = ShardLayout(target_dim=DIM, rows_per_group=256)
    shards = max(1, count // 4096)
    written = list(write_bucket(heap, layout, folder=str(folder), first_shard=0, count=shards))
    index = ShardIndex(
        fingerprint="bench",
        config={},
        num_rows=count,
        target_dim=DIM,
        patch_px=PX,
        encoder=ENCODER,
        shards=tuple(shard.info for shard in written),
        counts=ShardCounts(
            passed_through=0,
            encoded=count,
            left_out={},
            num_slides=1,
            num_cases=1,
            jpeg_bytes=sum(map(len, jpegs)),
        ),
        target_mean=(0.0,) * DIM,
        target_std=(1.0,) * DIM,
    )
    objects.write_whole(str(folder / INDEX), dump_index(index))


def write_tar(path: Path, jpegs: list[bytes], targets: np.ndarray) -> None:
    """The same rows as a WebDataset shard."""
    import webdataset

    with webdataset.TarWriter(str(path)) as tar:
        for number, jpeg in enumerate(jpegs):
            name = {"slide_id": "bench", "x_l0": number % 100 * PX, "y_l0": number // 100 * PX}
            sample = {"__key__": f"{number:06d}", "jpg": jpeg, "json": name}
            tar.write(sample | {"target.npy": targets[number]})


def write_folder(folder: Path, jpegs: list[bytes]) -> None:
    """The same patches as files; targets lie in one array beside them."""
    folder.mkdir()
    for number, jpeg in enumerate(jpegs):
        (folder / f"{number:06d}.jpg").write_bytes(jpeg)


def in_batches(samples: Iterable[tuple[bytes, np.ndarray]]) -> int:
    """Decode samples into one buffer, used again; returns how many there were."""
    pixels, targets, count = PIXELS, np.empty((BATCH, DIM), np.float16), 0
    for jpeg, target in samples:
        simplejpeg.decode_jpeg(jpeg, "RGB", buffer=pixels[count % BATCH])
        targets[count % BATCH] = target
        count += 1
    return count


def from_tar(path: Path) -> Iterator[tuple[bytes, np.ndarray]]:
    """Samples as WebDataset gives them; its own decoder does only the target."""
    import webdataset

    data = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    for sample in data:
        yield sample["jpg"], np.load(io.BytesIO(sample["target.npy"]))


def from_folder(folder: Path, targets: np.ndarray) -> Iterator[tuple[bytes, np.ndarray]]:
    """Samples from one file each."""
    for number, path in enumerate(sorted(folder.iterdir())):
        yield path.read_bytes(), targets[number]


def shard_batches(folder: Path, buffers: Buffers) -> Iterator[PatchBatch]:
    """An epoch read, put in order and decoded in this thread alone."""
    index = read_index(str(folder))
    order = EpochOrder(group_rows(index), ORDER, epoch=0)
    pieces = order.pieces(0, 1)
    table, reader = PieceTable(index, pieces), ShardReader(str(folder), buffers=buffers)
    maker = BatchMaker(
        index,
        order,
        pieces,
        Seat(),
        first_step=0,
        decoder=JpegDecoder(1),
        faults=FaultLedger(str(folder), num_rows=index.num_rows, max_share=0.0),
        buffers=buffers,
    )
    arriving = (reader.read(table[number]) for number in range(len(table)))
    for _ in range(order.num_steps):
        yield maker.make(arriving)


def turn_about(folder: Path, jpegs: list[bytes], targets: np.ndarray) -> float:
    """CPU of decoding from memory / of reading and decoding, a batch of each in turn.

    Side by side within some milliseconds: a machine that others use too moves both alike.
    """
    memory_s = shards_s = 0.0
    batches = shard_batches(folder, BUFFERS)
    for first in range(0, len(jpegs), BATCH):
        part = slice(first, first + BATCH)
        started_s = time.process_time()
        batch = next(batches)
        between_s = time.process_time()
        in_batches(zip(jpegs[part], targets[part], strict=True))
        memory_s += time.process_time() - between_s
        shards_s += between_s - started_s
        assert batch.weights.all()
    return memory_s / shards_s


def stream_rows(folder: Path, config: StreamConfig) -> int:
    """A whole epoch through the stream that training uses."""
    stream = open_stream(str(folder), ORDER, Cursor(), Seat(), config, BUFFERS)
    count = sum(int(batch.weights.sum()) for _, batch in stream)
    stream.close()
    return count


def cpu_rates(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Rows per CPU second of every way, in turn."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started_s = time.process_time()
            count = way()
            rates[name].append(count / (time.process_time() - started_s))
    return rates


def wall_rate(folder: Path, config: StreamConfig) -> tuple[float, float]:
    """Rows per second from the second batch on, and seconds until the first."""
    started_s, count, first_s = time.perf_counter(), 0, 0.0
    stream = open_stream(str(folder), ORDER, Cursor(), Seat(), config, BUFFERS)
    for step, batch in stream:
        if step == 0:
            first_s = time.perf_counter() - started_s
        else:
            count += int(batch.weights.sum())
    rate = count / (time.perf_counter() - started_s - first_s)
    stream.close()
    return rate, first_s


def report(row: str, above: list[float], below: list[float], target: float | None) -> None:
    """Print the median ratio of the rounds, and how far they were apart."""
    pairs = sorted(a / b for a, b in zip(above, below, strict=True))
    line = {"bench": "shards", "row": row, "ratio": round(statistics.median(pairs), 3)}
    line |= {"target": target, "min": round(pairs[0], 3), "max": round(pairs[-1], 3)}
    print(json.dumps(line), flush=True)


def measure(folder: Path, given: argparse.Namespace) -> None:
    """Write the formats, run every way, print the ratios."""
    jpegs = make_jpegs(given.rows)
    targets = np.random.default_rng(1).standard_normal((given.rows, DIM)).astype(np.float16)
    write_shards(folder / "shards", jpegs, targets)
    write_tar(folder / "patches.tar", jpegs, targets)
    write_folder(folder / "jpegs", jpegs)
    alone = StreamConfig(via="threads", decode_threads=1, reader_threads=1)
    ways: dict[str, Way] = {
        "memory": lambda: in_batches(zip(jpegs, targets, strict=True)),
        "stream": lambda: stream_rows(folder / "shards", alone),
        "webdataset": lambda: in_batches(from_tar(folder / "patches.tar")),
        "folder": lambda: in_batches(from_folder(folder / "jpegs", targets)),
    }
    rates = cpu_rates(ways, given.rounds)
    turn_about(folder / "shards", jpegs[: 4 * BATCH], targets)  # the first use of the buffers
    turns = [turn_about(folder / "shards", jpegs, targets) for _ in range(given.rounds)]
    report("read + decode / decode from memory", turns, [1.0] * len(turns), 0.90)
    report("whole stream / decode from memory", rates["stream"], rates["memory"], None)
    report("whole stream / WebDataset", rates["stream"], rates["webdataset"], 1.7)
    report("whole stream / folder of JPEGs", rates["stream"], rates["folder"], None)
    print_scale(folder, jpegs, rates)
    if not given.no_ray:
        compare_ray(folder / "shards", given.rounds)


def print_scale(folder: Path, jpegs: list[bytes], rates: dict[str, list[float]]) -> None:
    """Absolute figures, for a scale only."""
    on_disk = {
        "shards": sum(path.stat().st_size for path in (folder / "shards").glob("*.parquet")),
        "webdataset": (folder / "patches.tar").stat().st_size,
        "jpegs alone": sum(map(len, jpegs)),
    }
    line: dict[str, object] = {"bench": "shards", "row": "rows/CPU-s", "rows": len(jpegs)}
    line |= {name: round(max(values)) for name, values in rates.items()}
    line |= {"bytes_per_row": {name: size // len(jpegs) for name, size in on_disk.items()}}
    print(json.dumps(line), flush=True)


def compare_ray(shards: Path, rounds: int) -> None:
    """Ray Data against threads, by the clock."""
    threads = StreamConfig(via="threads", decode_threads=2)
    through = StreamConfig(via="ray", decode_threads=2, readers=RayReaders(tasks=2))
    rates: dict[str, list[float]] = {"ray": [], "threads": []}
    starts = []
    with ray_session():
        for _ in range(rounds):
            rates["threads"].append(wall_rate(shards, threads)[0])
            rate, first_s = wall_rate(shards, through)
            rates["ray"].append(rate)
            starts.append(first_s)
    report("stream through Ray Data / through threads, wall", rates["ray"], rates["threads"], 0.85)
    line = {"bench": "shards", "row": "rows/s", "first_batch_ray_s": statistics.median(starts)}
    print(json.dumps(line | {name: round(max(v)) for name, v in rates.items()}), flush=True)


def main() -> None:
    """Parse the size of the measurement and run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-ray", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        measure(Path(folder), given)


if __name__ == "__main__":
    main()
