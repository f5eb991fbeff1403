"""How far apart the features of `exact` and `prepath` are, on the same patches.

The real slide is read twice: at its own 20x, and with its pixels taken for a 40x scan (half the
µm per pixel), so that both modes shrink. Two encoders with seeded random weights. Random networks
map everything close together, so features are centred (the mean over the patches is subtracted)
before the cosine is taken; the cosine between neighbouring patches is the scale to read it on.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from mstar.cli.real_slide import fetch_real_slide
from mstar.models.encoder_spec import PatchEncoder
from mstar.models.patch_encoders import load_encoder
from mstar.schema import Grid
from mstar.slides.grid import GridConfig, make_grid
from mstar.slides.patches import read_patch
from mstar.slides.reader import Slide, open_slide
from mstar.slides.tissue import find_tissue

BATCH = 16


def features(encoder: PatchEncoder, slide: Slide, grid: Grid) -> np.ndarray:
    """Features [N, D] of a grid's patches, in whole batches."""
    patches = [encoder.prepare(read_patch(slide, grid, row)) for row in range(len(grid))]
    rows = []
    for first in range(0, len(patches), BATCH):
        batch = np.stack(patches[first : first + BATCH])
        padded = np.zeros((BATCH, *batch.shape[1:]), np.uint8)
        padded[: len(batch)] = batch
        rows.append(encoder.encode(padded)[: len(batch)])
    return np.concatenate(rows)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / lengths)


def compare(path: Path, mpp: float, name: str) -> dict[str, object]:
    """One row: both modes on the coordinates of `exact`."""
    slide = open_slide(path)
    tissue = find_tissue(slide, mpp=mpp)
    exact = make_grid("slide", slide, mpp, tissue, GridConfig())
    other = make_grid("slide", slide, mpp, tissue, GridConfig(grid_mode="prepath"))
    prepath = replace(other, coords=exact.coords)
    encoder = load_encoder(name, weights="random:0", device="cpu", batch_size=BATCH, threads=1)
    left, right = features(encoder, slide, exact), features(encoder, slide, prepath)
    mean = left.mean(axis=0)
    pairs = cosine(left - mean, right - mean)
    neighbours = cosine((left - mean)[:-1], (left - mean)[1:])
    slide.close()
    return {
        "bench": "modes",
        "encoder": name,
        "mpp": mpp,
        "patches": len(exact),
        "read_px": [exact.read_px, prepath.read_px],
        "output_px": [exact.output_px, prepath.output_px],
        "centred_cosine_mean": round(float(pairs.mean()), 5),
        "centred_cosine_min": round(float(pairs.min()), 5),
        "raw_cosine_min": round(float(cosine(left, right).min()), 6),
        "neighbouring_patches_mean": round(float(neighbours.mean()), 3),
    }


def main() -> None:
    """Print a row per encoder and resolution."""
    with tempfile.TemporaryDirectory() as folder:
        path = fetch_real_slide(Path(folder))
        assert path is not None, "the real slide could not be fetched"
        for mpp in (0.499, 0.2495):
            for name in ("vit_tiny", "resnet50_clam"):
                print(json.dumps(compare(path, mpp, name)), flush=True)


if __name__ == "__main__":
    main()
