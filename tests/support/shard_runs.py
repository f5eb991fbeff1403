"""Runs of the shard job, each with an output of its own, and how to look at what they left."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mstar.data.shards.format import read_index
from mstar.pretrain import shards_plan
from mstar.pretrain.shards_config import ShardsConfig

Digests = dict[str, str]


@contextmanager
def small_work() -> Iterator[None]:
    """So little data would be one unit and one bucket."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_plan, "_LEAST_UNIT_ROWS", 25)
        patch.setattr(shards_plan, "_SLACK", 8)
        yield


def elsewhere(config: ShardsConfig, folder: Path) -> ShardsConfig:
    """The job with its targets copied to another output."""
    shutil.copytree(Path(config.out) / "targets", folder / "T" / "targets")
    return replace(config, out=str(folder / "T"))


def with_own_slides(config: ShardsConfig, folder: Path) -> ShardsConfig:
    """The job with slides that a test may spoil."""
    shutil.copytree(config.cohort, folder / "C")
    return replace(config, cohort=str(folder / "C"))


def changed(config: ShardsConfig, **settings: Any) -> ShardsConfig:
    return replace(config, shard=replace(config.shard, **settings))


def shards_of(config: ShardsConfig) -> Path:
    return Path(config.out) / "shards"


def digests(config: ShardsConfig) -> Digests:
    """Every file of the output, hidden ones too."""
    root = shards_of(config)
    files = [path for path in root.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def rows_of(config: ShardsConfig) -> list[dict[str, Any]]:
    index = read_index(config.out)
    tables = [pq.read_table(shards_of(config) / shard.name) for shard in index.shards]
    return pa.concat_tables(tables).to_pylist()
