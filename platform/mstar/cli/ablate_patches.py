"""What the ablation's cohorts give: pixels, once for all arms, and features, without Ray."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from mstar.data.tables import Column, read_table
from mstar.embed.assembly import EmbedPlan, make_local_source
from mstar.embed.config import EmbedConfig, RunConfig
from mstar.embed.here import embed_here
from mstar.errors import MstarError
from mstar.features.store import FeatureStore
from mstar.models.patch_encoders import load_encoder, prepare_weights
from mstar.schema import SlideRef
from mstar.slides.grid import GridConfig
from mstar.storage import objects
from mstar.storage.manifest import BadRow, read_slides

ENCODER = "vit_micro"
BATCH = 64

Pixels = Mapping[str, UInt8[np.ndarray, "patch side side 3"]]
Features = dict[str, Float32[np.ndarray, "patch dim"]]
Shown = Callable[[str, int], Int64[np.ndarray, " shown"]]
"""(slide, patches of its grid) → the places of those that are wanted, in order."""


def _all(_: str, num_patches: int) -> Int64[np.ndarray, " shown"]:
    return np.arange(num_patches, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthRow:
    """What is true of one case, as `mstar cohort generate` planted it."""

    case_id: str
    site: str
    cancer_type: str
    grade: int
    mutation: bool
    pathway: float

    def has(self, factor: str) -> bool:
        """Whether the case is mutated, or its pathway's activity above one half."""
        return self.mutation if factor == "mutation" else self.pathway > 0.5


def read_truth(cohort: str) -> dict[str, TruthRow]:
    """Case → its factors."""
    columns = (
        *(Column(name=name) for name in ("case_id", "site", "cancer_type")),
        *(Column(name=name, kind="integer") for name in ("grade", "mutation")),
        Column(name="pathway", kind="number"),
    )
    table = read_table(objects.join(cohort, "truth", "cases.csv"), columns)
    rows = (TruthRow(**{**row, "mutation": bool(row["mutation"])}) for row in table.to_pylist())
    return {row.case_id: row for row in rows}


def plan_of(cohort: str, out: str, *, weights: str, patch_px: int, threads: int) -> EmbedPlan:
    """How the ablation embeds: in this process, on CPU, in float32."""
    config = EmbedConfig(
        slides=objects.join(cohort, "slides.csv"),
        out=out,
        encoder=ENCODER,
        weights=weights,
        device="cpu",
        dtype="float32",
        batch_size=BATCH,
        grid=GridConfig(patch_px=patch_px),
        run=RunConfig(tracking=False),
    )
    return EmbedPlan(
        config=config,
        run_id="ablate",
        weights=prepare_weights(ENCODER, weights),
        device="cpu",
        precision="float32",
        batch_size=BATCH,
        torch_threads=threads,
        reader_threads=threads,
    )


def slides_of(cohort: str) -> list[SlideRef]:
    """The slides of a cohort."""
    rows = list(read_slides(objects.join(cohort, "slides.csv")))
    assert not any(isinstance(row, BadRow) for row in rows), "a generated manifest is sound"
    return [row for row in rows if isinstance(row, SlideRef)]


def embed_all(plan: EmbedPlan, slides: Sequence[SlideRef]) -> FeatureStore:
    """Embed the slides that are missing from the plan's store; all of them must succeed."""
    store, tally = embed_here(plan, slides)
    if tally.failed or tally.elsewhere:
        raise MstarError(
            f"{plan.config.out}: expected every slide embedded, got {tally.failed:,} failed and "
            f"{tally.elsewhere:,} held by another run. The folder failures/ says why."
        )
    return store


def read_pixels(plan: EmbedPlan, slides: Sequence[SlideRef], *, shown: Shown = _all) -> Pixels:
    """Slide → some of its patches at the encoder's input size; by default all, in grid order."""
    source = make_local_source(plan)
    found = {}
    for slide in slides:
        grid = source.open(slide)
        try:
            places = shown(slide.slide_id, len(grid)) if len(grid) else np.empty(0, np.int64)
            kept, back = np.unique(places, return_inverse=True)
            rows = source.read(slide, kept.tolist()).result() if len(grid) else None
        finally:
            source.close(slide.slide_id)
        if rows is not None:
            assert not rows.unreadable, f"{slide.slide_id}: a generated patch cannot be read"
            found[slide.slide_id] = rows.pixels[back]
    return found


def encode(weights: str, pixels: Pixels, *, threads: int) -> Features:
    """Slide → features of its patches by an encoder's weights, as `mstar embed` computes them."""
    encoder = load_encoder(
        ENCODER, weights=weights, device="cpu", batch_size=BATCH, threads=threads
    )
    stacked = np.concatenate(list(pixels.values()))
    padded = np.concatenate(
        [stacked, np.zeros((-len(stacked) % BATCH, *stacked.shape[1:]), np.uint8)]
    )
    rows = np.concatenate(
        [encoder.encode(padded[n : n + BATCH]) for n in range(0, len(padded), BATCH)]
    )
    cuts = np.cumsum([len(patches) for patches in pixels.values()])[:-1]
    return dict(zip(pixels, np.split(rows[: len(stacked)], cuts), strict=True))
