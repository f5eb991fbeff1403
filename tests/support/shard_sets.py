"""Small sets of patch shards, written by the real writer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import simplejpeg

from mstar.data.shards.format import (
    INDEX,
    ShardCounts,
    ShardEncoder,
    ShardIndex,
    dump_index,
    total_rows,
)
from mstar.data.shards.order import EpochOrder, OrderConfig
from mstar.data.shards.pieces import PieceTable, group_rows
from mstar.data.shards.rows import RowHeap, SlideRows, make_batch
from mstar.data.shards.writer import ShardLayout, mean_and_std, write_bucket
from mstar.models.encoder_spec import IMAGENET_MEAN, IMAGENET_STD
from mstar.storage import objects

ENCODER = ShardEncoder(
    name="vit_tiny",
    weights_sha256="ab" * 32,
    dim=192,
    input_px=32,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    interpolation="bilinear",
    transform="resize 32 bilinear-aa-uint8",
)


def untrained_encoder(name: str = "vit_micro") -> ShardEncoder:
    """The record of an encoder with the weights random:0, which a stage 2 can start from."""
    from mstar.models.patch_encoders import find_encoder, prepare_weights

    spec = find_encoder(name)
    return replace(
        ENCODER,
        name=name,
        weights_sha256=prepare_weights(name, "random:0").sha256,
        dim=spec.dim,
        input_px=spec.input_px,
        interpolation=spec.interpolation,
        transform=spec.transform,
    )


def patch_image(slide: int, row: int, patch_px: int) -> np.ndarray:
    """The pixels of a made-up patch: smooth, and another one for every row."""
    rng = np.random.default_rng((slide, row))
    coarse = rng.integers(40, 216, (4, 4, 3)).astype(np.uint8)
    side = -(-patch_px // 4)
    big = np.kron(coarse, np.ones((side, side, 1), np.uint8))[:patch_px, :patch_px]
    return np.ascontiguousarray(big)


def slide_rows(
    slide: int, num_rows: int, *, target_dim: int = 16, patch_px: int = 32, seed: int = 0
) -> SlideRows:
    """Made-up rows of one slide, on a lattice ten patches wide."""
    index = np.arange(num_rows)
    rng = np.random.default_rng((seed, slide))
    images = (patch_image(slide, int(row), patch_px) for row in index)
    return SlideRows(
        slide_id=f"slide-{slide:02d}",
        case_id=f"case-{slide // 2:02d}",
        coords=np.stack([index % 10, index // 10], axis=1).astype(np.int64) * 256,
        jpegs=[simplejpeg.encode_jpeg(image, quality=95) for image in images],
        targets=rng.standard_normal((num_rows, target_dim)).astype(np.float16),
    )


def write_shard_set(
    folder: str | Path,
    *,
    num_rows: int,
    rows_per_group: int,
    rows_per_shard: int,
    target_dim: int = 16,
    patch_px: int = 32,
    num_slides: int = 5,
    seed: int = 0,
    encoder: ShardEncoder = ENCODER,
    spoil: Callable[[list[SlideRows]], None] | None = None,
) -> ShardIndex:
    """Write shards of made-up rows into `folder` (that is T/shards) and return their index.

    Shards have equally many row groups, so `rows_per_shard` is the most a shard holds, nearly.
    spoil: changes the rows before they are written.
    """
    layout = ShardLayout(target_dim=target_dim, rows_per_group=rows_per_group)
    sizes = [len(part) for part in np.array_split(np.arange(num_rows), num_slides)]
    slides = [
        slide_rows(slide, size, target_dim=target_dim, patch_px=patch_px, seed=seed)
        for slide, size in enumerate(sizes)
    ]
    if spoil is not None:
        spoil(slides)
    heap = RowHeap([make_batch(rows, seed=seed) for rows in slides], target_dim)
    count = -(-num_rows // rows_per_shard)
    where = str(folder)
    written = list(write_bucket(heap, layout, folder=where, first_shard=0, count=count))
    mean, std = mean_and_std([shard.sums for shard in written])
    index = ShardIndex(
        fingerprint=f"{seed:016x}",
        config={"seed": seed, "made_up": True},
        num_rows=total_rows([shard.info for shard in written]),
        target_dim=target_dim,
        patch_px=patch_px,
        encoder=encoder,
        shards=tuple(shard.info for shard in written),
        counts=ShardCounts(
            passed_through=0,
            encoded=num_rows,
            left_out={},
            num_slides=num_slides,
            num_cases=len({rows.case_id for rows in slides}),
            jpeg_bytes=sum(len(jpeg) for rows in slides for jpeg in rows.jpegs),
        ),
        target_mean=tuple(np.nan_to_num(mean).tolist()),  # a spoilt target is the reader's to find
        target_std=tuple(np.nan_to_num(std).tolist()),
    )
    objects.write_whole(objects.join(where, INDEX), dump_index(index))
    return index


def write_three_shards(folder: str) -> ShardIndex:
    """150 rows in row groups of 16."""
    return write_shard_set(folder, num_rows=150, rows_per_group=16, rows_per_shard=60)


def table_of(index: ShardIndex) -> PieceTable:
    """All pieces, in the order of one worker's epoch."""
    order = OrderConfig(batch_size=8, lanes=4)
    return PieceTable(index, EpochOrder(group_rows(index), order, epoch=0).pieces(0, 1))
