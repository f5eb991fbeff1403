"""A slide whose patches are told apart by colour, with scores, features, encoders and reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mstar.data.reports import Report, write_reports
from mstar.evidence.scores import PatchScores, SlideScores, write_scores
from mstar.features.files import write_features
from mstar.features.store import FeatureStore
from support.feature_files import toy_grid, toy_provenance
from support.language_world import DIM, write_stage1, write_stage2
from support.slides import SlideSpec, write_slide

WIDTH, HEIGHT, SIDE, LEFT, TOP = 2101, 1490, 240, 130, 70
COLUMNS, ROWS = 8, 5
SENTENCES = {
    "case1": "Solid gland with dark nucleus. Margin clear of tumour.",
    "case2": "Pale fibrous stroma and oedema. Solid gland with dark nucleus.",
    "case3": "A. Vessel and lymph node clear. Papillary serous duct with cyst",
}


@dataclass(frozen=True, kw_only=True)
class ViewWorld:
    """Where everything lies; `coords` are the patches', `values` the scores of two layers."""

    root: Path
    coords: np.ndarray
    values: np.ndarray

    @property
    def slide(self) -> Path:
        """Its file."""
        return self.root / "a.svs"

    @property
    def scores(self) -> Path:
        """scores.parquet."""
        return self.root / "scores.parquet"

    def colour(self, patch: int) -> np.ndarray:
        """What the middle of a patch looks like, RGB."""
        return patch_colour(patch)


def patch_colour(patch: int) -> np.ndarray:
    """Red says the column, green the row; blue is full: no other pixel is like it."""
    return np.array([30 + 25 * (patch % COLUMNS), 30 + 40 * (patch // COLUMNS), 250], np.uint8)


def write_view_world(root: Path) -> ViewWorld:
    """Write everything; scores rise along the patches in one layer and fall in the other."""
    at = np.arange(COLUMNS * ROWS)
    coords = np.stack([LEFT + at % COLUMNS * SIDE, TOP + at // COLUMNS * SIDE], axis=1)
    values = np.stack([at * 0.01 - 0.1, np.exp(-at / 5.0)]).astype(np.float32)
    world = ViewWorld(root=root, coords=coords.astype(np.int64), values=values)
    write_slide(world.slide, SlideSpec(width=WIDTH, height=HEIGHT, quality=95), _pixels(world))
    scores = SlideScores(
        slide_id="case1-0",
        slide_uri=str(world.slide),
        coords_l0=world.coords,
        patch_size_l0=SIDE,
        width_l0=WIDTH,
        height_l0=HEIGHT,
        mpp=0.5,
        layers=(PatchScores.of("attention", values[0], "yes"), PatchScores.of("gain", values[1])),
        made_by={"model": "R/planted/uni/abmil", "head": "abmil"},
    )
    write_scores(str(world.scores), scores)
    return world


def write_texts(world: ViewWorld, seed: int = 0) -> None:
    """Encoders of stages 1 and 2, reports, and features of the slide's patches."""
    write_stage1(world.root / "S1")
    write_stage2(world.root / "S2")
    texts = {case: Report(text=text) for case, text in SENTENCES.items()}
    write_reports(f"{world.root}/reports.csv", texts)
    grid = toy_grid(
        "case1-0",
        coords=world.coords,
        patch_size_l0=SIDE,
        mpp=0.5,
        width_l0=WIDTH,
        height_l0=HEIGHT,
    )
    store = FeatureStore.open_or_create(f"{world.root}/F", {"encoder": "planted"})
    rows = np.random.default_rng(seed).standard_normal((len(grid), DIM)).astype(np.float32)
    write_features(world.root / "F" / "case1-0.h5", grid, rows, toy_provenance(store.fingerprint))


def _pixels(world: ViewWorld) -> np.ndarray:
    """Grey noise, and on it the patches, each of its colour with a darker frame."""
    rng = np.random.default_rng(0)
    pixels = np.repeat(rng.integers(180, 240, (HEIGHT, WIDTH, 1), np.uint8), 3, axis=2)
    for patch, (x, y) in enumerate(world.coords.tolist()):
        pixels[y : y + SIDE, x : x + SIDE] = patch_colour(patch) // 2
        pixels[y + 8 : y + SIDE - 8, x + 8 : x + SIDE - 8] = patch_colour(patch)
    return pixels
