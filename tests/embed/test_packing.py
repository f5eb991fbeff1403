"""Packing keeps every row's identity, whatever the blocks, and always hands on full batches."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.embed.packing import ChunkRows, PatchBlock, pack, scatter

PX, DIM = 4, 3


def chunk_of(slide_id: str, start: int, stop: int) -> ChunkRows:
    features = np.full((stop - start, DIM), -1, np.float32)
    return ChunkRows(
        slide_id=slide_id, start=start, stop=stop, features=features, waiting=stop - start
    )


def pixels_of(chunk: ChunkRows, rows: list[int]) -> np.ndarray:
    """Each patch is filled with a value that names its row."""
    values = np.array([(hash((chunk.slide_id, row))) % 251 for row in rows], np.uint8)
    return np.broadcast_to(values[:, None, None, None], (len(rows), PX, PX, 3)).copy()


def encode(pixels: np.ndarray) -> np.ndarray:
    return pixels[:, 0, 0, :].astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 23), min_size=1, max_size=6),
    block=st.integers(1, 9),
    batch_size=st.integers(1, 11),
)
def test_every_row_gets_its_own_output(sizes: list[int], block: int, batch_size: int) -> None:
    chunks = [chunk_of(f"s{i}", 5 * i, 5 * i + size) for i, size in enumerate(sizes)]
    blocks = [
        PatchBlock(chunk=chunk, rows=rows, pixels=pixels_of(chunk, rows))
        for chunk in chunks
        for first in range(chunk.start, chunk.stop, block)
        if (rows := list(range(first, min(first + block, chunk.stop))))
    ]
    completed = []
    num_batches = 0
    for batch in pack(blocks, batch_size=batch_size, input_px=PX):
        num_batches += 1
        assert batch.pixels.shape == (batch_size, PX, PX, 3)
        completed += [chunk.slide_id for chunk in scatter(batch, encode(batch.pixels))]
    assert num_batches == -(-sum(sizes) // batch_size)  # only the last one is padded
    assert completed == [chunk.slide_id for chunk in chunks]
    for chunk in chunks:
        expected = encode(pixels_of(chunk, list(range(chunk.start, chunk.stop))))
        np.testing.assert_array_equal(chunk.features, expected)


def test_a_chunk_with_rows_given_up_is_complete_without_them() -> None:
    chunk = chunk_of("s", 0, 4)
    chunk.unreadable[2] = "undecodable"
    chunk.waiting -= 1
    block = PatchBlock(chunk=chunk, rows=[0, 1, 3], pixels=pixels_of(chunk, [0, 1, 3]))
    (batch,) = pack([block], batch_size=8, input_px=PX)
    assert scatter(batch, encode(batch.pixels)) == [chunk]
    assert (chunk.features[2] == -1).all()


def test_padding_is_zero_and_goes_nowhere() -> None:
    chunk = chunk_of("s", 0, 1)
    (batch,) = pack(
        [PatchBlock(chunk=chunk, rows=[0], pixels=pixels_of(chunk, [0]))],
        batch_size=3,
        input_px=PX,
    )
    assert not batch.pixels[1:].any()
    assert len(batch.owners) == 1
