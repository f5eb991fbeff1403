"""What is said of shards that are broken or laid out otherwise: their own fault alone."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mstar.data.shards.format import ShardIndex, encode_targets, shard_schema
from mstar.data.shards.pieces import Piece
from mstar.data.shards.reader import ShardReader
from mstar.storage import objects
from support.s3 import make_bucket
from support.shard_sets import table_of


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _spoil_the_footer(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-40:-8] = b"\xff" * 32
    path.write_bytes(data)


def _spoil_the_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8] + b"\xff\xff\xff\x7fPAR1")


def _write_other_columns(path: Path) -> None:
    table = pq.read_table(path, columns=["jpeg"])
    pq.write_table(table, path, row_group_size=16, compression="none")


def _write_other_groups(path: Path) -> None:
    pq.write_table(pq.read_table(path), path, row_group_size=30, compression="none")


def _write_compressed(path: Path) -> None:
    pq.write_table(
        pq.read_table(path), path, row_group_size=16, compression="zstd", use_dictionary=False
    )


def _write_dictionaries(path: Path) -> None:
    pq.write_table(pq.read_table(path), path, row_group_size=16, compression="none")


def _allow_none(path: Path) -> None:
    table = pq.read_table(path)
    fields = [field.with_nullable(True) for field in table.schema]
    pq.write_table(table.cast(pa.schema(fields)), path, row_group_size=16, compression="none")


BREAKAGES: dict[str, Callable[[Path], None]] = {
    "bytes, got": _truncate,
    "": _spoil_the_footer,  # in Arrow's words
    "Parquet": _spoil_the_end,
    "got jpeg binary": _write_other_columns,
    "row groups, got": _write_other_groups,
    "not to be compressed, got ZSTD": _write_compressed,
    "plain bytes, as `mstar targets`": _write_dictionaries,
    "a column that allows none": _allow_none,
    "not there": Path.unlink,
}


@pytest.mark.parametrize(("words", "spoil"), BREAKAGES.items())
@pytest.mark.parametrize("remote", [False, True])
def test_a_broken_shard_is_told_and_the_others_are_read(
    words: str,
    spoil: Callable[[Path], None],
    remote: bool,
    disk: tuple[str, ShardIndex],
    request: pytest.FixtureRequest,
) -> None:
    folder, index = disk
    victim = Path(folder) / index.shards[1].name
    spoil(victim)
    if victim.exists() and words != "bytes, got":  # only the size is to be at fault there
        index = _with_size(index, victim)
    if remote:
        folder = _uploaded(folder, request)
    reader, pieces = ShardReader(folder), table_of(index)
    for number in range(len(pieces)):
        found = reader.read(pieces[number])
        is_bad = pieces[number].shard == victim.name
        assert (found.rows is None) == bool(found.fault) == is_bad
        assert not is_bad or words in found.fault


def _with_size(index: ShardIndex, victim: Path) -> ShardIndex:
    shards = [
        replace(shard, num_bytes=victim.stat().st_size) if shard.name == victim.name else shard
        for shard in index.shards
    ]
    return replace(index, shards=tuple(shards))


def _uploaded(folder: str, request: pytest.FixtureRequest) -> str:
    request.getfixturevalue("s3_server")
    remote = f"{make_bucket('shard-reader')}/{secrets.token_hex(4)}"
    for info in objects.list_files(folder):
        objects.put_file(info.uri, objects.join(remote, info.rel))
    return remote


def test_a_flipped_bit_is_found_where_pages_carry_checksums(tmp_path: Path) -> None:
    table = pa.table(
        {
            "jpeg": pa.array([secrets.token_bytes(500) for _ in range(16)], pa.binary()),
            "slide_id": ["a"] * 16,
            "case_id": ["b"] * 16,
            "x_l0": pa.array(range(16), pa.int32()),
            "y_l0": pa.array(range(16), pa.int32()),
            "target": encode_targets(np.zeros((16, 4), np.float16)),
        },
        schema=shard_schema(4),
    )
    path = tmp_path / "shard-00000.parquet"
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)
    piece = Piece(
        number=0,
        shard=path.name,
        shard_bytes=len(data),
        shard_groups=1,
        group=0,
        group_rows=16,
        first=0,
        stop=16,
        target_dim=4,
    )
    assert "checksum" in ShardReader(str(tmp_path)).read(piece).fault.lower()
    unverified = ShardReader(str(tmp_path), verify_checksums=False).read(piece)
    assert unverified.rows is not None
