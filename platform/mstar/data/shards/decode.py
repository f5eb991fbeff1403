"""Compressed rows to a batch: JPEGs decoded in threads, into a buffer that is used again.

Pixels stay uint8 with the channels last: they are normalised on the device. A row whose JPEG is
broken or whose target is not finite keeps its place, with weight 0, zeros for pixels and target,
and a line in the ledger.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import pyarrow as pa
import simplejpeg
from jaxtyping import Float16, Float32, Int64, UInt8, UInt64

from mstar.data.shards.augment import AugmentConfig, augment
from mstar.data.shards.format import decode_targets
from mstar.data.shards.order import NO_ROW
from mstar.data.shards.pages import view_spans

ROWS_AT_ONCE = 16  # a thread's next share: small against a batch, large against handing it over


@dataclass(frozen=True, slots=True, kw_only=True)
class RowIdentity:
    """The patch that a row is."""

    slide_id: str
    case_id: str
    x_l0: int
    y_l0: int

    def __str__(self) -> str:
        """As messages name it."""
        return f"slide {self.slide_id} at ({self.x_l0}, {self.y_l0})"


class RowColumns:
    """The rows of a piece, opened for single rows: views of Arrow's memory, nothing copied."""

    def __init__(self, rows: pa.RecordBatch, target_dim: int) -> None:
        """Find where each JPEG and target lies.

        Args:
            rows: of `piece_schema`.
            target_dim: values of a target.
        """
        self._rows = rows
        self._jpegs = view_spans(rows.column("jpeg"))
        self.targets: Float16[np.ndarray, "row dim"]
        self.targets = decode_targets(rows.column("target"), target_dim)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def jpeg(self, row: int) -> memoryview:
        """The bytes of one JPEG, where they lie."""
        memory, start, stop = self._jpegs[row]
        return memory[start:stop]

    def identity(self, row: int) -> RowIdentity:
        """Which patch a row is."""
        names = ("slide_id", "case_id", "x_l0", "y_l0")
        return RowIdentity(**{name: self._rows.column(name)[row].as_py() for name in names})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taken:
    """Rows of a piece, and the places of a batch that they go to."""

    columns: RowColumns
    picked: Int64[np.ndarray, " row"]
    slots: Int64[np.ndarray, " row"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchBatch:
    """The rows that one worker trains in one step; every worker has equally many.

    weights: 1; 0 where there is no row (the end of a lane), or a bad one.
    rows: the row's number through the shards of the index; NO_ROW where there is none.
    num_bad: rows of these that cannot be trained.
    taken: where the rows are from, for those who ask for names.
    """

    pixels: UInt8[np.ndarray, "row px px 3"]
    targets: Float16[np.ndarray, "row dim"]
    weights: Float32[np.ndarray, " row"]
    rows: Int64[np.ndarray, " row"]
    num_bad: int
    taken: Sequence[Taken]

    def __len__(self) -> int:
        """Number of places, padding included."""
        return len(self.weights)

    def identities(self) -> list[RowIdentity | None]:
        """Which patch each row is; None where there is no row, or its shard is broken."""
        found: list[RowIdentity | None] = [None] * len(self)
        for part in self.taken:
            for slot, row in zip(part.slots.tolist(), part.picked.tolist(), strict=True):
                found[slot] = part.columns.identity(row)
        return found


class JpegDecoder:
    """Decodes JPEGs into places of a batch, in threads (the codec works without the GIL)."""

    def __init__(self, threads: int, config: AugmentConfig | None = None) -> None:
        """Start the threads; with one, the caller's does the work."""
        assert threads > 0
        self._config = config if config is not None and config.is_on else None
        self._pool = ThreadPoolExecutor(threads, "decode") if threads > 1 else None

    def decode(
        self,
        jpegs: Sequence[tuple[int, memoryview]],
        out: UInt8[np.ndarray, "row px px 3"],
        words: UInt64[np.ndarray, "row word"] | None = None,
    ) -> list[tuple[int, str]]:
        """Fill places of `out`.

        Args:
            jpegs: the place and the bytes of each.
            out: changed at these places only.
            words: the random words of each place, where there is augmentation.

        Returns:
            The places whose JPEG is broken, ascending, and why; they hold zeros.
        """
        shares = [
            jpegs[first : first + ROWS_AT_ONCE] for first in range(0, len(jpegs), ROWS_AT_ONCE)
        ]
        run = map if self._pool is None else self._pool.map
        broken = run(self._decode_share, shares, repeat(out), repeat(words))
        return sorted(fault for share in broken for fault in share)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _decode_share(
        self,
        jpegs: Sequence[tuple[int, memoryview]],
        out: UInt8[np.ndarray, "row px px 3"],
        words: UInt64[np.ndarray, "row word"] | None,
    ) -> list[tuple[int, str]]:
        broken = []
        for slot, jpeg in jpegs:
            reason = _decode(jpeg, out[slot])
            if reason:
                out[slot] = 0
                broken.append((slot, reason))
            elif self._config is not None and words is not None:
                augment(out[slot], words[slot], self._config)
        return broken


def _decode(jpeg: memoryview, out: UInt8[np.ndarray, "px px 3"]) -> str:
    """Decode one JPEG into its place; what is wrong with it, if anything."""
    try:
        shape = simplejpeg.decode_jpeg(jpeg, "RGB", buffer=out).shape
    except ValueError as error:
        return str(error) or "not a JPEG"
    if shape != out.shape:
        return f"expected {out.shape[1]} × {out.shape[0]} px, got {shape[1]} × {shape[0]}"
    return ""


def no_rows(count: int) -> Int64[np.ndarray, " row"]:
    """Places without rows."""
    return np.full(count, NO_ROW, np.int64)
