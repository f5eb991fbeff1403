"""What storage gives: the wait for a small read, and one stream of large ones."""

import secrets
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import numpy as np

from mstar.cli.measure_clock import Rate, calls_per_s, seconds_of
from mstar.storage import objects

PROBE_BYTES = 32 << 20
BLOCK_BYTES = 8 << 20  # of a request of the slide cache
SMALL_BYTES = 4096
SMALL_READS = 40


def storage(root: str, seconds: float) -> Iterator[Rate]:
    """Latency of small reads, and bytes a second of one stream of large ones."""
    uri = objects.join(root, f"mstar-measure-{secrets.token_hex(4)}.bin")
    objects.write_whole(uri, secrets.token_bytes(PROBE_BYTES))
    try:
        info = objects.stat(uri)
        assert info is not None
        read = partial(objects.read_range, uri, tag=info.tag)
        waits_s = np.array([seconds_of(lambda: read(0, SMALL_BYTES)) for _ in range(SMALL_READS)])
        median_s = float(np.median(waits_s))
        yield Rate(
            name="storage_latency_s",
            value=median_s,
            note=f"median of {SMALL_READS} reads of {SMALL_BYTES} bytes, one after the other",
        )
        tail = max(1.0, float(np.quantile(waits_s, 0.99)) / median_s)
        yield Rate(name="storage_tail", value=tail, note=f"of {SMALL_READS} reads: a rough figure")
        blocks = PROBE_BYTES // BLOCK_BYTES
        starts = cycle(range(0, blocks * BLOCK_BYTES, BLOCK_BYTES))
        per_s = calls_per_s(lambda: _read_block(read, next(starts)), seconds)
        carrying_s = max(1 / per_s - median_s, 1e-6)  # the latency is a rate of its own
        note = f"one stream of reads of {BLOCK_BYTES >> 20} MiB, the latency taken off"
        yield Rate(name="storage_stream_bytes_per_s", value=BLOCK_BYTES / carrying_s, note=note)
    finally:
        objects.delete(uri)


def _read_block(read: Callable[..., bytes], start: int) -> None:
    read(start, start + BLOCK_BYTES)
