"""The order of all rows: by a hash of (seed, slide, x, y), so that it needs nothing but the row.

Whoever reads a slide, in whatever order and on however many workers, gives its rows the same
places. 64-bit hashes of 116 million rows meet once in 2,700 data sets; slide and position decide
then.
"""

import hashlib

import numpy as np
from jaxtyping import Int64, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = np.uint64(31)
_HALF = np.uint64(32)
MAX_BUCKETS = 1 << 20


def row_hashes(
    seed: int, slide_id: str, coords: Int64[np.ndarray, "row 2"]
) -> UInt64[np.ndarray, " row"]:
    """The hash of each row of one slide, evenly spread over 64 bits."""
    digest = hashlib.sha256(f"{seed}/{slide_id}".encode()).digest()
    slide = np.frombuffer(digest[:8], "<u8").astype(np.uint64)
    x, y = (coords[:, axis].astype(np.uint64) for axis in (0, 1))
    hashes: UInt64[np.ndarray, " row"] = _mixed(_mixed(slide + x) ^ _mixed(y))
    return hashes


def buckets_of(hashes: UInt64[np.ndarray, " row"], num_buckets: int) -> Int64[np.ndarray, " row"]:
    """The bucket of each row: equal parts of the hash's range, so that buckets are in order too."""
    assert 0 < num_buckets <= MAX_BUCKETS, num_buckets
    buckets: Int64[np.ndarray, " row"]
    buckets = ((hashes >> _HALF) * np.uint64(num_buckets) >> _HALF).astype(np.int64)
    return buckets


def _mixed(values: UInt64[np.ndarray, " row"]) -> UInt64[np.ndarray, " row"]:
    """The finaliser of splitmix64: every bit of the input moves every bit of the output."""
    values = values + _GOLDEN
    for shift, factor in _MIX:
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    mixed: UInt64[np.ndarray, " row"] = values ^ (values >> _LAST_SHIFT)
    return mixed
