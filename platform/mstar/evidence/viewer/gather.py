"""From a call's files to what the page shows: slide, patches, scores and sentences must fit."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from mstar.errors import FeatureError, SlideError
from mstar.evidence.scores import SlideScores, read_scores
from mstar.evidence.viewer.config import ViewConfig
from mstar.evidence.viewer.content import ViewContent, layers_of
from mstar.evidence.viewer.deepzoom import DeepZoom
from mstar.evidence.viewer.sentences import Nearest, nearest_sentences
from mstar.features.files import SlideFeatures
from mstar.features.store import FeatureStore
from mstar.slides.metadata import choose_mpp
from mstar.slides.reader import Slide
from mstar.storage import objects


def scores_of(config: ViewConfig) -> dict[str, SlideScores]:
    """Address → the scores in it."""
    return {uri: read_scores(uri) for uri in dict.fromkeys(config.scores)}


def slide_path(config: ViewConfig, scores: Mapping[str, SlideScores]) -> Path:
    """The slide's file.

    Raises:
        SlideError: the scores do not name it.
    """
    named = [one.slide_uri for one in scores.values() if one.slide_uri]
    if not config.slide and not named:
        raise SlideError(f"{next(iter(scores))}: does not say where the slide is. Give --slide.")
    return objects.local_path(config.slide or named[0])


def gather(config: ViewConfig, scores: Mapping[str, SlideScores], slide: Slide) -> ViewContent:
    """What the page shows.

    Raises:
        FeatureError: scores or features are of another slide, or of other patches.
        WeightsError: sentences are asked for and the encoders cannot be read.
    """
    first = next(iter(scores.values()), None)
    layers = layers_of(scores)
    stored = _stored(config, first, slide)
    if first is not None:
        _check_size(slide, next(iter(scores)), (first.width_l0, first.height_l0))
        coords, size_l0, slide_id = first.coords_l0, first.patch_size_l0, first.slide_id
    elif stored is not None:
        coords, size_l0 = stored.grid.coords, stored.grid.patch_size_l0
        slide_id = stored.grid.slide_id
    else:
        coords, size_l0 = np.empty((0, 2), np.int64), 0
        slide_id = config.slide_id or Path(slide.uri).stem
    mpp = first.mpp if first is not None else _mpp(config, slide)
    nearest = _nearest(config, stored, coords) if config.reports and stored is not None else None
    down = config.export_downsample if config.export else 1
    return ViewContent(
        slide_id=slide_id,
        mpp=mpp,
        zoom=DeepZoom(width_l0=slide.width_l0, height_l0=slide.height_l0, downsample=down),
        coords_l0=coords,
        patch_size_l0=size_l0,
        layers=layers,
        nearest=nearest,
        facts=_facts(slide, mpp),
    )


def _stored(config: ViewConfig, first: SlideScores | None, slide: Slide) -> SlideFeatures | None:
    """The slide's features, where they are asked for."""
    if not config.features:
        return None
    named = config.slide_id or (first.slide_id if first else Path(slide.uri).stem)
    store = FeatureStore.open(config.features)
    if not store.has(named):
        raise FeatureError(
            f"{config.features}: expected features of the slide {named!r}, got none. "
            "Give its id by --slide-id."
        )
    found = store.read(named)
    if not found.grid.has_coords:
        raise FeatureError(
            f"{config.features}: {named} was imported without coordinates: it is not known where "
            "its patches are"
        )
    _check_size(slide, config.features, (found.grid.width_l0, found.grid.height_l0))
    return found


def _check_size(slide: Slide, source: str, size_l0: tuple[int, int]) -> None:
    if (slide.width_l0, slide.height_l0) != size_l0:
        raise FeatureError(
            f"{source}: expected the slide {slide.uri} of {slide.width_l0} × {slide.height_l0} px, "
            f"got one of {size_l0[0]} × {size_l0[1]}. It is of another slide."
        )


def _mpp(config: ViewConfig, slide: Slide) -> float | None:
    choice = choose_mpp(
        slide.uri, slide.metadata, stated=config.slide_mpp, missing=config.missing_mpp
    )
    return choice.mpp


def _nearest(
    config: ViewConfig, stored: SlideFeatures, coords: Int64[np.ndarray, "patch 2"]
) -> Nearest:
    """The sentences, in the order of the page's patches; -1 where one has no features."""
    found = nearest_sentences(
        stored.features,
        reports=config.reports,
        stage1=config.stage1,
        stage2=config.stage2,
        most=config.max_sentences,
        device=config.device,
    )
    at = {tuple(place): row for row, place in enumerate(stored.grid.coords.tolist())}
    rows = np.array([at.get(tuple(place), -1) for place in coords.tolist()], np.int64)
    if not (rows >= 0).any():
        raise FeatureError(
            f"{config.features}: none of its patches is where the scores' patches are. Give the "
            "store that the scores were made on."
        )
    index, similarity = found.index[rows], found.similarity[rows]
    index[rows < 0], similarity[rows < 0] = -1, 0
    return replace(found, index=index, similarity=similarity)


def _facts(slide: Slide, mpp: float | None) -> tuple[tuple[str, str], ...]:
    """Rows of the page's foot."""
    power = slide.metadata.objective_power
    return (
        ("size at level 0", f"{slide.width_l0:,} × {slide.height_l0:,} px"),
        ("resolution", f"{mpp:.4g} µm per pixel" if mpp else "not known"),
        ("objective", f"{power:g}×" if power else "not stated"),
        ("format", slide.metadata.vendor),
    )
