"""The format of patch shards: the schema of a row, and the index of all files.

    T/shards/index.json             what there is; written last, so that it says "finished"
    T/shards/shard-00000.parquet    rows in shuffled order, in row groups of 256
    T/shards/left_out.csv           patches that could not be read, by name and reason
    T/shards/preview.jpg            a sheet of random rows

A row: `jpeg` (side `patch_px`, RGB when decoded), `slide_id`, `case_id`, `x_l0`, `y_l0` (level-0
top-left), `target` (float16, little endian, as bytes). Pages are not compressed, so that a reader
can take the bytes where they lie. Rows are in the order of their hash, from the first shard to the
last.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Float16

from mstar import config as configs
from mstar.errors import FeatureError
from mstar.storage import objects

SCHEMA_VERSION = 1
INDEX = "index.json"
LEFT_OUT = "left_out.csv"
PREVIEW = "preview.jpg"
FOLDER = "shards"  # below T
STATE = "_state"  # below it, work in progress only
COLUMNS = ("jpeg", "slide_id", "case_id", "x_l0", "y_l0", "target")
ROWS_PER_GROUP = 256
TARGET_DTYPE = np.dtype("<f2")

Part = TypeVar("Part")


def shard_schema(target_dim: int) -> pa.Schema:
    """The columns of every shard whose targets have `target_dim` values."""
    return pa.schema(
        [
            pa.field("jpeg", pa.binary(), nullable=False),
            pa.field("slide_id", pa.string(), nullable=False),
            pa.field("case_id", pa.string(), nullable=False),
            pa.field("x_l0", pa.int32(), nullable=False),
            pa.field("y_l0", pa.int32(), nullable=False),
            pa.field("target", pa.binary(TARGET_DTYPE.itemsize * target_dim), nullable=False),
        ]
    )


def piece_schema(target_dim: int) -> pa.Schema:
    """The columns of rows that were read: those of a shard, its JPEGs as views of what was read."""
    schema = shard_schema(target_dim)
    place = schema.get_field_index("jpeg")
    return schema.set(place, schema.field(place).with_type(pa.binary_view()))


def decode_targets(column: pa.Array, target_dim: int) -> Float16[np.ndarray, "row dim"]:
    """The column `target` as an array, a view of the column's own memory (read-only)."""
    assert column.type == pa.binary(TARGET_DTYPE.itemsize * target_dim), column.type
    values = np.frombuffer(column.buffers()[1], TARGET_DTYPE)
    rows: Float16[np.ndarray, "row dim"]
    rows = values.reshape(-1, target_dim)[column.offset : column.offset + len(column)]
    return rows


def encode_targets(targets: Float16[np.ndarray, "row dim"]) -> pa.Array:
    """Targets as the column `target`."""
    data = np.ascontiguousarray(targets, TARGET_DTYPE)
    kind = pa.binary(TARGET_DTYPE.itemsize * targets.shape[1])
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(data), [None, pa.py_buffer(data)])


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardInfo:
    """One shard.

    sha256: of the whole file.
    row_groups: rows of each row group, in order.
    """

    name: str
    num_rows: int
    num_bytes: int
    sha256: str
    row_groups: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEncoder:
    """The encoder that made the features the targets come from: the student starts as it.

    mean, std: RGB normalisation on the 0…1 scale. interpolation: of the resize to `input_px`.
    """

    name: str
    weights_sha256: str
    dim: int
    input_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    transform: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCounts:
    """What became of the patches that have a target.

    passed_through: stored as the slide's own JPEG tile.
    encoded: read, resized where need be, and encoded once.
    left_out: by reason; `left_out.csv` names each.
    num_slides, num_cases: with at least one row.
    jpeg_bytes: of all rows.
    """

    passed_through: int
    encoded: int
    left_out: Mapping[str, int]
    num_slides: int
    num_cases: int
    jpeg_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCosine:
    """Cosine between the features of the stored and of the original pixels, on a sample."""

    num_rows: int
    mean: float
    smallest: float
    least_mean: float  # the gate


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIndex:
    """The content of `index.json`.

    fingerprint: of `config`, which holds whatever decides a byte of the shards.
    config: settings, and what made the targets.
    patch_px: side of the stored images, all of them.
    target_mean, target_std: of each of the `target_dim` values, over all rows.
    cosine: None when it was not measured.
    """

    fingerprint: str
    config: Mapping[str, Any]
    num_rows: int
    target_dim: int
    patch_px: int
    encoder: ShardEncoder
    shards: tuple[ShardInfo, ...]
    counts: ShardCounts
    target_mean: tuple[float, ...]
    target_std: tuple[float, ...]
    cosine: StoredCosine | None = None
    mstar_version: str = ""
    schema_version: int = SCHEMA_VERSION

    def row_groups(self) -> list["RowGroup"]:
        """Every row group of the data set; the place in the list is its global id."""
        counts = [(s, g, n) for s, i in enumerate(self.shards) for g, n in enumerate(i.row_groups)]
        starts = accumulate((count for _, _, count in counts), initial=0)
        return [
            RowGroup(shard=shard, group=group, first=first, num_rows=count)
            for (shard, group, count), first in zip(counts, starts, strict=False)
        ]

    def locate(self, row: int) -> tuple[int, int]:
        """The shard of a global row, and the row's place in it."""
        assert 0 <= row < self.num_rows, row
        starts = list(accumulate((shard.num_rows for shard in self.shards), initial=0))
        shard = bisect_right(starts, row) - 1
        return shard, row - starts[shard]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """A row group by its global id's parts: which shard, which group in it, its first row."""

    shard: int
    group: int
    first: int
    num_rows: int


def shard_name(number: int) -> str:
    """The name of a shard."""
    return f"shard-{number:05d}.parquet"


def shards_folder(uri: str) -> str:
    """The folder that holds `index.json`, given it or the folder above it (`T`)."""
    below = objects.join(uri, FOLDER)
    if not objects.exists(objects.join(uri, INDEX)) and objects.exists(objects.join(below, INDEX)):
        return below
    return uri


def read_index(uri: str) -> ShardIndex:
    """The index of the shards in a folder (`T/shards`, or `T`).

    Raises:
        FeatureError: there is none, or it is not one.
    """
    place = objects.join(shards_folder(uri), INDEX)
    try:
        content = json.loads(objects.read_bytes(place))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _wrong(place, "file", "an index of finished shards", "no such file") from error
    except ValueError as error:
        raise _wrong(place, "content", "JSON", error) from error
    return parse_index(content, place)


def parse_index(content: Any, name: str) -> ShardIndex:
    """An index from its JSON values; `name` is what errors call it."""
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise _wrong(name, "schema_version", SCHEMA_VERSION, version)
    try:
        index = ShardIndex(
            **_parts(ShardIndex, content)
            | {
                "encoder": _part(ShardEncoder, content["encoder"]),
                "shards": tuple(_part(ShardInfo, shard) for shard in content["shards"]),
                "counts": _part(ShardCounts, content["counts"]),
                "cosine": _part(StoredCosine, content["cosine"]) if content["cosine"] else None,
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _wrong(name, "content", "the fields of ShardIndex", repr(error)) from error
    _check_sums(index, name)
    return index


def dump_index(index: ShardIndex) -> bytes:
    """An index as the bytes of `index.json`."""
    return (configs.to_json(index) + "\n").encode()


def _check_sums(index: ShardIndex, name: str) -> None:
    """Refuses an index that contradicts itself."""
    rows = [shard.num_rows for shard in index.shards]
    groups = [sum(shard.row_groups) for shard in index.shards]
    if rows != groups or sum(rows) != index.num_rows:
        raise _wrong(name, "num_rows", f"{index.num_rows} in all shards and groups", rows[:8])
    stored = index.counts.passed_through + index.counts.encoded
    if stored != index.num_rows:
        raise _wrong(name, "counts", f"{index.num_rows} rows passed through or encoded", stored)


def _parts(kind: type[Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass from JSON, lists as tuples; unknown ones are left alone."""
    known = {item.name for item in fields(kind)}
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in content.items()
        if key in known
    }


def _part(kind: type[Part], content: Mapping[str, Any]) -> Part:
    return kind(**_parts(kind, content))


def _wrong(name: str, field: str, expected: object, got: object) -> FeatureError:
    way_out = "Run `mstar targets` again: it writes what is missing."
    return FeatureError(f"{name}: {field}: expected {expected}, got {got}. {way_out}")


def total_rows(shards: Sequence[ShardInfo]) -> int:
    """Rows of some shards together."""
    return sum(shard.num_rows for shard in shards)
