"""Slides, features and targets for the shard job in a second: every kind of patch it can meet.

aligned      patches are whole tiles, YCbCr with shared tables: passed through
rgb          the same with RGB in the JPEG and complete tiles: passed through
shifted      the lattice lies between the tiles: encoded
coarse       a finer slide, read larger and resized: encoded
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from mstar.data.target_files import SlideTargets, TargetProvenance
from mstar.data.targets import TargetStore
from mstar.features.files import coords_digest
from mstar.features.store import FeatureStore
from mstar.models.patch_encoders import LoadedEncoder, load_encoder
from mstar.pretrain.shards_config import ShardsConfig, ShardSettings, ShardsRunConfig
from mstar.schema import Grid
from mstar.slides.patches import read_patch
from mstar.slides.reader import open_slide
from support.feature_files import toy_grid, toy_provenance
from support.slides import SlideSpec, write_slide

PATCH_PX, TARGET_DIM = 128, 16
ENCODER = "support.small_encoder:encoder"
WEIGHTS = "random:0"
_SPEC = SlideSpec(width=640, height=512, tile_px=PATCH_PX, levels=1, full=True, quality=90)
KINDS: dict[str, tuple[SlideSpec, int, int]] = {  # spec, first pixel of the lattice, read_px
    "aligned": (_SPEC, 0, PATCH_PX),
    "rgb": (replace(_SPEC, photometric="rgb", jpeg_tables=False, seed=1), 0, PATCH_PX),
    "shifted": (replace(_SPEC, seed=2), 40, PATCH_PX),
    "coarse": (replace(_SPEC, seed=3, mpp=0.4), 0, 160),
}
PASSED = ("aligned", "rgb")


def write_shard_inputs(folder: Path) -> ShardsConfig:
    """Write C, F and T/targets below `folder` and return the config of a job over them."""
    encoder = load_encoder(ENCODER, weights=WEIGHTS, device="cpu", batch_size=4)
    features = FeatureStore.open_or_create(str(folder / "F"), _store_config(encoder))
    identity = {"target_dim": TARGET_DIM, "features": {"fingerprint": features.fingerprint}}
    targets = TargetStore.open_or_create(str(folder / "T"), identity)
    lines = ["path,slide_id,mpp,case_id"]
    for number, kind in enumerate(KINDS):
        path = folder / "C" / "slides" / f"{kind}.svs"
        grid = _write_one(path, kind, features, encoder)
        case_id = f"case-{number % 2}"
        targets.write(_targets(grid, case_id, targets))
        lines.append(f"slides/{kind}.svs,{kind},,{case_id}")
    (folder / "C" / "slides.csv").write_text("\n".join(lines) + "\n")
    return ShardsConfig(
        cohort=str(folder / "C"),
        features=str(folder / "F"),
        out=str(folder / "T"),
        shard=ShardSettings(
            weights=WEIGHTS, rows_per_group=4, shard_mb=1, memory_mb=4, sample_patches=32
        ),
        run=ShardsRunConfig(workers=0, tracking=False, cache_dir=str(folder / "cache")),
    )


def _store_config(encoder: LoadedEncoder) -> dict[str, object]:
    """What a store of `mstar embed` records, as far as the shard job reads it."""
    return {**encoder.describe(), "slides": {"grid": {"patch_px": PATCH_PX}}}


def _write_one(path: Path, kind: str, store: FeatureStore, encoder: LoadedEncoder) -> Grid:
    spec, start, read_px = KINDS[kind]
    write_slide(path, spec)
    slide = open_slide(path)
    axes = (np.arange(start, size - read_px + 1, read_px) for size in (spec.width, spec.height))
    x, y = np.meshgrid(*axes)
    coords = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int64)
    grid = toy_grid(
        kind,
        coords=coords,
        grid_mode="exact",
        patch_px=PATCH_PX,
        patch_size_l0=read_px,
        read_px=read_px,
        output_px=PATCH_PX,
        mpp=spec.mpp,
        width_l0=spec.width,
        height_l0=spec.height,
    )
    pixels = [encoder.prepare(read_patch(slide, grid, row)) for row in range(len(grid))]
    slide.close()
    batches = np.split(np.stack(pixels + pixels[: -len(pixels) % 4]), -(-len(pixels) // 4))
    features = np.concatenate([encoder.encode(batch) for batch in batches])[: len(pixels)]
    provenance = toy_provenance(
        store.fingerprint, encoder=ENCODER, weights_sha256=encoder.weights_sha256
    )
    store.write(kind, grid, features, provenance)
    return grid


def _targets(grid: Grid, case_id: str, store: TargetStore) -> SlideTargets:
    """A target for every patch but the second."""
    rows = np.delete(np.arange(len(grid)), 1)
    rng = np.random.default_rng(len(grid.slide_id))
    return SlideTargets(
        slide_id=grid.slide_id,
        case_id=case_id,
        targets=rng.standard_normal((len(rows), TARGET_DIM)).astype(np.float16),
        rows=rows,
        coords=grid.coords[rows],
        num_patches=len(grid),
        grid_sha256=coords_digest(grid.coords),
        provenance=TargetProvenance(
            fingerprint=store.fingerprint,
            aggregator_sha256="cd" * 32,
            mode="public",
            attention="nystrom",
            precision="float32",
            features_fingerprint="",
            encoder=ENCODER,
            weights_sha256="ab" * 32,
            coverage="all",
            window=4096,
            seed=0,
        ),
    )
