"""Which rows of a case's bag are taken: a draw without replacement, or windows that cover all.

Every choice follows from (seed, case, epoch) alone, through sha256 into a Philox counter generator
whose raw words are used as they are: no worker, restart, order of cases or version of numpy changes
it (numpy promises the words of a bit generator, not what its `choice` makes of them).
"""

import hashlib
import json

import numpy as np
from jaxtyping import Int64, UInt64


def sample_rows(
    num_rows: int, size: int, *, seed: int, case_id: str, epoch: int = 0
) -> Int64[np.ndarray, " row"]:
    """`size` rows drawn evenly without replacement, ascending; all of them where there are fewer.

    Ascending keeps the order of the files: reading walks forward, and patches keep their place in
    the row-major order of their slide.
    """
    if num_rows <= size:
        return np.arange(num_rows, dtype=np.int64)
    words = _words(num_rows, "sample", seed, case_id, epoch)
    largest = np.partition(words, size - 1)[size - 1] if size else np.uint64(0)
    # equal words, one in 2^64, could be one too many: the cut keeps the size exact
    return np.flatnonzero(words <= largest)[:size].astype(np.int64, copy=False)


def partition_rows(
    num_rows: int, window: int, *, seed: int, case_id: str, epoch: int = 0
) -> list[Int64[np.ndarray, " row"]]:
    """Random windows that hold every row exactly once, none more than `window`, each ascending.

    There are as few as that allows, and their sizes differ by one at most: 4,097 rows become 2,049
    and 2,048 rather than 4,096 and a single row whose context would be nothing.
    """
    assert window > 0
    if num_rows == 0:
        return []
    order = np.argsort(_words(num_rows, "windows", seed, case_id, epoch), kind="stable")
    num_windows = -(-num_rows // window)
    parts = np.array_split(order, num_windows)
    return [np.sort(part).astype(np.int64, copy=False) for part in parts]


def _words(
    count: int, purpose: str, seed: int, case_id: str, epoch: int
) -> UInt64[np.ndarray, " row"]:
    """One random 64-bit word a row."""
    text = json.dumps([purpose, seed, case_id, epoch])
    key = hashlib.sha256(text.encode()).digest()[:16]
    words = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    return np.asarray(words, dtype=np.uint64)
