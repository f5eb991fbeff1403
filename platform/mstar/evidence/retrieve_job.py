"""`mstar retrieve`: cases that are like a text, or like a case, with their most similar patches.

    mstar retrieve --features mstar=F --cohort C --stage1 A --stage2 B --index I --text "…"
    mstar retrieve … --like TCGA-A2-A0T2 --patches 0

The cases come from an index of the aggregator's slide vectors (built the first time, kept in
--index). The patches of the cases that are shown are held against the text in the space of stage 2.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mstar.downstream.language.case_index import (
    CaseIndex,
    Entry,
    bag_of,
    entries_of,
    open_index,
)
from mstar.downstream.language.encoders import PatchSide, TextSide
from mstar.downstream.tasks_job import parse_features
from mstar.errors import ConfigError
from mstar.evidence.scored import SIMILARITY
from mstar.evidence.scores import PatchScores, SlideScores
from mstar.evidence.views import ViewOptions, write_views
from mstar.features.coordless import require_coords
from mstar.features.store import FeatureStore
from mstar.storage import objects
from mstar.storage.ids import quoted
from mstar.training.exit_codes import ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveConfig:
    """Find cases by a text, or by another case, and show their most similar patches."""

    features: str
    """Feature store, or a label and stores: mstar=F1,F2. Of the encoder that stage 1 was run on."""

    stage1: str
    """Folder that `mstar stage1 --out` wrote."""

    text: str = ""
    """What to look for: a finding, a diagnosis, a whole report."""

    like: str = ""
    """A case of the index to look for others like."""

    stage2: str = ""
    """Folder that `mstar stage2 --out` wrote: patches meet text through its projection. Empty:
    through the aggregator's tokens."""

    cohort: str = ""
    """Cohort folder: entries are its cases. Empty: every slide of the store is an entry."""

    index: str = ""
    """Folder of the index, made when it is not there; empty: made anew and not kept."""

    index_kind: Literal["auto", "exact", "approximate"] = "auto"
    """exact compares everything; approximate looks into cells (package faiss-cpu); auto is exact
    up to a million entries."""

    k: int = 10
    """Cases to show."""

    patches: int = 5
    """Most similar patches of each, with their places on the slide; 0 for none."""

    out: str = ""
    """Folder for retrieved.json, and a heatmap of each slide (PNG and GeoJSON) with a text."""

    heatmaps: int = 3
    """Cases whose slides get a heatmap in --out."""

    window: int = 4096
    """Patches of a case that the aggregator sees, as in stage 1."""

    device: str = "cpu"
    """Where the encoders run: cpu or cuda."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant before a file is read."""
        if bool(self.text.strip()) == bool(self.like):
            raise ConfigError("mstar retrieve: expected --text or --like, one of them.")
        for name, least in (("k", 1), ("patches", 0), ("heatmaps", 0), ("window", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} {getattr(self, name)}: expected {least} or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One case that was found.

    patches: slide, x and y of the upper left corner on level 0, side there, cosine with the text.
    """

    rank: int
    entry: Entry
    score: float
    patches: tuple[tuple[str, int, int, int, float], ...] = ()


def run(config: RetrieveConfig) -> int:
    """Search, print, write."""
    hits, index = retrieve(config)
    how = "exactly" if index.index.is_exact else "approximately"
    print(f"retrieve: {len(hits)} of {len(index.entries):,} entries, searched {how}")
    for hit in hits:
        kind = f"  {hit.entry.cancer_type}" if hit.entry.cancer_type else ""
        print(f"{hit.rank:3d}  {hit.score:+.3f}  {hit.entry.name}{kind}")
        for slide, x, y, side, cosine in hit.patches:
            print(f"       {cosine:+.3f}  {slide}  ({x}, {y}) + {side} px")
    if config.out:
        uri = objects.join(config.out, "retrieved.json")
        objects.write_whole(uri, (json.dumps(_record(config, hits), indent=1) + "\n").encode())
        print(f"  written  {uri}")
    return ExitCode.COMPLETE


def retrieve(config: RetrieveConfig) -> tuple[list[Hit], CaseIndex]:
    """The cases nearest to the question, best first, and the index they are from."""
    stores = _stores(config.features)
    entries = entries_of(stores, config.cohort)
    index = open_index(
        config.index, stores, config.stage1, entries, kind=config.index_kind,
        window=config.window, device=config.device,
    )  # fmt: skip
    own = index.place_of(config.like) if config.like else -1
    question = index.index.vectors[own : own + 1] if config.like else _text_vector(config)
    found = index.index.search(question, config.k + (own >= 0))
    pairs = zip(found.places[0].tolist(), found.scores[0].tolist(), strict=True)
    kept = [(place, score) for place, score in pairs if place not in (own, -1)][: config.k]
    hits = [
        Hit(rank=rank, entry=index.entries[place], score=score)
        for rank, (place, score) in enumerate(kept, 1)
    ]
    return _with_patches(config, stores, hits, question[0]), index


def _stores(features: str) -> list[FeatureStore]:
    (roots,) = parse_features([features]).values()
    return [FeatureStore.open(root) for root in roots]


def _text_vector(config: RetrieveConfig) -> Any:
    side = TextSide(config.stage1, config.device)
    return side.vectors(side.token_ids([config.text], ["--text"]))


def _with_patches(
    config: RetrieveConfig, stores: Sequence[FeatureStore], hits: list[Hit], question: Any
) -> list[Hit]:
    """The hits with their most similar patches; heatmaps of the first ones."""
    if not config.patches and not (config.out and config.heatmaps):
        return hits
    side = PatchSide(config.stage1, config.stage2, window=config.window, device=config.device)
    made = []
    for hit in hits:
        slides = bag_of(stores, hit.entry)
        for slide in slides:
            require_coords(slide.grid, slide.grid.slide_id, "places of patches")
        tokens = side.vectors(np.concatenate([slide.features for slide in slides])).cpu().numpy()
        scores = np.split(tokens @ question, np.cumsum([len(s.features) for s in slides])[:-1])
        if config.out and hit.rank <= config.heatmaps:
            for slide, own in zip(slides, scores, strict=True):
                _write_heatmap(config, hit, slide, own)
        made.append(
            Hit(
                rank=hit.rank, entry=hit.entry, score=hit.score,
                patches=_best_patches(slides, scores, config.patches),
            )
        )  # fmt: skip
    return made


def _write_heatmap(config: RetrieveConfig, hit: Hit, slide: Any, own: Any) -> None:
    """<out>/heatmaps/<rank>-<slide>/, as `mstar heatmap` writes it."""
    asked = config.text or f"like {config.like}"
    layer = PatchScores.of(SIMILARITY, own.astype(np.float32))
    made_by = {"identity": {"text": asked, "case": hit.entry.name, "stage1": config.stage1}}
    scores = SlideScores.on(slide.grid, (layer,), made_by=made_by)
    name = quoted(f"{hit.rank:02d}-{slide.grid.slide_id}")
    folder = objects.join(config.out, "heatmaps", name)
    options = ViewOptions(about=f"“{asked}”", overlay=None, k=0)
    write_views(folder, scores, slide.grid, options, drawn=(layer,))


def _best_patches(
    slides: Sequence[Any], scores: Sequence[Any], count: int
) -> tuple[tuple[str, int, int, int, float], ...]:
    every = [
        (slide.grid.slide_id, int(x), int(y), int(slide.grid.patch_size_l0), float(score))
        for slide, own in zip(slides, scores, strict=True)
        for (x, y), score in zip(slide.grid.coords.tolist(), own.tolist(), strict=True)
    ]
    return tuple(sorted(every, key=lambda patch: -patch[4])[:count])


def _record(config: RetrieveConfig, hits: Sequence[Hit]) -> dict[str, Any]:
    return {
        "text": config.text,
        "like": config.like,
        "hits": [
            {
                "rank": hit.rank,
                "case": hit.entry.name,
                "slides": list(hit.entry.slides),
                "cancer_type": hit.entry.cancer_type,
                "score": round(hit.score, 6),
                "patches": [
                    {"slide": s, "x_l0": x, "y_l0": y, "side_l0": side, "cosine": round(cosine, 6)}
                    for s, x, y, side, cosine in hit.patches
                ],
            }
            for hit in hits
        ],
    }
