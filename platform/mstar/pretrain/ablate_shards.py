"""Shards of another arm: the same pixels in the same order, with other targets."""

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16

from mstar.data.shards.format import (
    INDEX,
    ShardIndex,
    ShardInfo,
    decode_targets,
    dump_index,
    encode_targets,
    read_index,
    shard_schema,
    shards_folder,
)
from mstar.data.shards.writer import open_parquet
from mstar.data.targets import TargetStore
from mstar.storage import objects

Targets = Float16[np.ndarray, "row dim"]
Choose = Callable[[pa.RecordBatch], Targets]


def with_targets_of(shards: str, targets: str, out: str, *, why: str) -> None:
    """Copy shards with the targets that `mstar targets` made in the output `targets`."""
    store = TargetStore.open(targets)
    known: dict[tuple[str, int, int], np.ndarray] = {}
    for slide_id in store.slide_ids():
        found = store.read(slide_id)
        for (x, y), row in zip(found.coords.tolist(), found.targets, strict=True):
            known[slide_id, x, y] = row

    def choose(rows: pa.RecordBatch) -> Targets:
        keys = zip(*(rows.column(name).to_pylist() for name in ("slide_id", "x_l0", "y_l0")),
                   strict=True)  # fmt: skip
        return np.stack([known[key] for key in keys])

    retarget(shards, out, choose, why=why)


def with_shuffled_targets(shards: str, out: str, *, seed: int) -> None:
    """Copy shards with their targets permuted over all rows."""
    index = read_index(shards_folder(shards))
    found = [decode_targets(rows.column("target"), index.target_dim) for rows in batches(shards)]
    everything = np.concatenate(found)
    shuffled = everything[np.random.default_rng(seed).permutation(len(everything))]
    given = iter(np.split(shuffled, np.cumsum([len(rows) for rows in found])[:-1]))
    retarget(shards, out, lambda rows: next(given), why=f"targets shuffled with seed {seed}")


def retarget(shards: str, out: str, choose: Choose, *, why: str) -> None:
    """Copy shards row group by row group, each with the targets that `choose` gives for it."""
    folder = shards_folder(shards)
    index = read_index(folder)
    infos, seen = [], []
    for info in index.shards:
        sink = io.BytesIO()
        with open_parquet(sink, index.target_dim) as writer:
            for rows in _groups(folder, info):
                targets = choose(rows)
                seen.append(targets.astype(np.float64))
                writer.write_batch(_replaced(rows, targets), row_group_size=len(rows))
        infos.append(_put(objects.join(out, info.name), info, sink.getvalue()))
    objects.write_whole(objects.join(out, INDEX), dump_index(_index(index, infos, seen, why)))


def batches(shards: str) -> Iterator[pa.RecordBatch]:
    """The row groups of all shards in order."""
    folder = shards_folder(shards)
    for info in read_index(folder).shards:
        yield from _groups(folder, info)


def _groups(folder: str, info: ShardInfo) -> Iterator[pa.RecordBatch]:
    file = pq.ParquetFile(io.BytesIO(objects.read_bytes(objects.join(folder, info.name))))
    for group in range(file.num_row_groups):
        (rows,) = file.read_row_group(group).combine_chunks().to_batches()
        yield rows


def _replaced(rows: pa.RecordBatch, targets: Targets) -> pa.RecordBatch:
    schema = shard_schema(targets.shape[1])
    columns = {name: rows.column(name) for name in schema.names} | {
        "target": encode_targets(targets)
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _put(uri: str, info: ShardInfo, data: bytes) -> ShardInfo:
    objects.write_whole(uri, data)
    return replace(info, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _index(
    index: ShardIndex, infos: list[ShardInfo], seen: list[np.ndarray], why: str
) -> ShardIndex:
    targets = np.concatenate(seen)
    config = {**index.config, "retargeted": why}
    return replace(
        index,
        fingerprint=hashlib.sha256(f"{index.fingerprint} {why}".encode()).hexdigest()[:16],
        config=config,
        shards=tuple(infos),
        target_mean=tuple(targets.mean(0).tolist()),
        target_std=tuple(targets.std(0).tolist()),
    )
