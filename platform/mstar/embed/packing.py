"""Rows of many slides packed into encoder batches of one fixed size, without losing whose is whose.

Every batch has the full size: the last one of a call is padded with zeros whose outputs are
dropped. At a fixed
batch shape a row's output does not depend on its neighbours, so packing changes no feature.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np
from jaxtyping import Float32, UInt8

NUM_BUFFERS = 4  # one being filled, one waiting, two with the encoder


@dataclass(slots=True, kw_only=True)
class ChunkRows:
    """Features of one chunk (rows `start:stop` of a slide's grid) while they come in."""

    slide_id: str
    start: int
    stop: int
    features: Float32[np.ndarray, "rows dim"]
    waiting: int  # rows not yet encoded or given up
    unreadable: dict[int, str] = field(default_factory=dict)  # grid row → reason

    @property
    def complete(self) -> bool:
        """Every row is encoded or recorded as unreadable."""
        return self.waiting == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchBlock:
    """Pixels of some rows of one chunk, as a reader hands them on."""

    chunk: ChunkRows
    rows: list[int]  # grid rows of `pixels`
    pixels: UInt8[np.ndarray, "rows height width 3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A full encoder batch: pixels, and for the first `len(owners)` rows where the output goes."""

    pixels: UInt8[np.ndarray, "batch height width 3"]
    owners: list[tuple[ChunkRows, int]]


def pack(blocks: Iterable[PatchBlock], *, batch_size: int, input_px: int) -> Iterator[Batch]:
    """Cut a stream of blocks into batches of `batch_size` rows, padding only the last.

    Batches share NUM_BUFFERS buffers in turn (fresh pages cost more than the copy): at most
    NUM_BUFFERS - 1 batches may be in use at a time.
    """
    shape = (batch_size, input_px, input_px, 3)
    buffers = cycle([np.empty(shape, np.uint8) for _ in range(NUM_BUFFERS)])
    pixels = next(buffers)
    owners: list[tuple[ChunkRows, int]] = []
    for block in blocks:
        taken = 0
        while taken < len(block.rows):
            room = min(batch_size - len(owners), len(block.rows) - taken)
            first = len(owners)
            pixels[first : first + room] = block.pixels[taken : taken + room]
            owners += [(block.chunk, row) for row in block.rows[taken : taken + room]]
            taken += room
            if len(owners) == batch_size:
                yield Batch(pixels=pixels, owners=owners)
                pixels, owners = next(buffers), []
    if owners:
        pixels[len(owners) :] = 0
        yield Batch(pixels=pixels, owners=owners)


def scatter(batch: Batch, outputs: Float32[np.ndarray, "batch dim"]) -> list[ChunkRows]:
    """Put a batch's outputs where they belong; returns the chunks that became complete."""
    touched: dict[int, ChunkRows] = {}
    for (chunk, row), output in zip(batch.owners, outputs, strict=False):
        chunk.features[row - chunk.start] = output
        chunk.waiting -= 1
        touched[id(chunk)] = chunk
    return [chunk for chunk in touched.values() if chunk.complete]
