"""A set of shards on a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from mstar.data.shards.format import ShardIndex
from support.shard_sets import write_three_shards


@pytest.fixture
def disk(tmp_path: Path) -> tuple[str, ShardIndex]:
    """150 rows in three shards of row groups of 16."""
    return str(tmp_path), write_three_shards(str(tmp_path))
