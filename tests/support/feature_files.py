"""Made-up grids, features and provenance for the tests of grid and feature files."""

from __future__ import annotations

from typing import Any

import numpy as np

from mstar.features.files import FeatureProvenance
from mstar.schema import Grid

CONFIG = {"encoder": "vit_tiny", "target_mpp": 0.5, "patch_px": 256, "grid": {"mode": "exact"}}


def toy_grid(slide_id: str = "s1", num: int = 12, **fields: Any) -> Grid:
    """A grid of `num` patches, four in a row, on a 40x slide read at 0.5 mpp."""
    rows = np.arange(num)
    coords = np.stack([rows % 4, rows // 4], axis=1).astype(np.int64) * 512 + np.array([100, 37])
    settings: dict[str, Any] = {
        "slide_id": slide_id,
        "coords": coords,
        "grid_mode": "prepath",
        "patch_px": 256,
        "patch_size_l0": 512,
        "overlap_px": 0,
        "read_level": 0,
        "read_px": 512,
        "output_px": 512,
        "mpp": 0.25,
        "target_mpp": 0.5,
        "effective_mpp": 0.25,
        "level0_magnification": 40.0,
        "target_magnification": 20.0,
        "width_l0": 30_000,
        "height_l0": 20_000,
        "provenance": {"tissue": "tcga", "reader": "vips"},
    }
    return Grid(**(settings | fields))


def toy_features(num: int = 12, dim: int = 8, dtype: str = "float16", seed: int = 0) -> np.ndarray:
    """Features that are all different, so that a swapped row shows."""
    return np.random.default_rng(seed).standard_normal((num, dim)).astype(dtype)


def toy_provenance(fingerprint: str = "0123456789abcdef", **fields: Any) -> FeatureProvenance:
    """Provenance of a made-up encoder."""
    settings: dict[str, Any] = {
        "encoder": "vit_tiny",
        "weights_sha256": "ab" * 32,
        "transform": "resize 224 bilinear, mean 0.485 0.456 0.406",
        "fingerprint": fingerprint,
        "licence": "apache-2.0",
        "precision": "float32",
        "resize_kernel": "bilinear-aa-uint8",
        "extra": {"icc": "ignored"},
    }
    return FeatureProvenance(**(settings | fields))


def assert_same_grid(left: Grid, right: Grid) -> None:
    """Fails on the first field in which two grids differ."""
    for name in Grid.__slots__:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
