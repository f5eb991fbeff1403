"""The encode job over a small world, and the vectors it left."""

from __future__ import annotations

from typing import Any

import numpy as np

from mstar.downstream.encode_config import EncodeConfig
from mstar.downstream.encode_files import read_parquet, vectors_of
from support.language_world import World


def config_of(world: World, **fields: Any) -> EncodeConfig:
    """The job on this world."""
    given = {
        "features": f"{world.root}/F",
        "aggregator": f"{world.root}/S1",
        "cohort": f"{world.root}/C",
        "out": f"{world.root}/V",
        "device": "cpu",
        "tracking": False,
        "picture": False,
        "umap": "off",  # where it is installed, it compiles for half a minute
    }
    return EncodeConfig(**(given | fields))


def rows(world: World, table: str) -> dict[str, np.ndarray]:
    """Name → vector."""
    found, _ = read_parquet(f"{world.root}/V/{table}.parquet")
    return dict(zip(found.column("name").to_pylist(), vectors_of(found), strict=True))
