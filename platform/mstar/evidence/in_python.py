"""Evidence in a notebook: scores of a slide's patches by a trained head, and their picture."""

import io

import numpy as np
from jaxtyping import Float32
from PIL import Image

from mstar.api import Bag, Head
from mstar.evidence.draw import Opened, picture
from mstar.evidence.explain import Method, explain, ways_of
from mstar.evidence.model_scorer import asked_models
from mstar.evidence.scores import PatchScores, SlideScores
from mstar.features.store import FeatureStore
from mstar.predict.models import stamp
from mstar.slides.reader import Slide

PASSES = 256


def patch_scores(
    head: Head,
    store: FeatureStore,
    slide: str,
    *,
    method: Method = "auto",
    genes: Float32[np.ndarray, " gene"] | None = None,
) -> SlideScores:
    """A number per patch of a slide: `.layers[0].values`, its places `.coords_l0`.

    The mean over the head's models. What the numbers are depends on the head (`.layers[0].kind`):
    attention, an instance score, gradient × input or occlusion (`platform/docs/heatmaps.md`).

    Args:
        head: of `load_head` or `train_head`.
        store: the features.
        slide: its id there.
        method: auto, or gradient or occlusion of any head.
        genes: of heads that read gene expression, as for `Head.predict`.

    Raises:
        ConfigError: the head does not look at patches.
        FeatureError: no patches, or features of another length.
    """
    bag, grid = Bag.of(store, slide), store.read(slide).grid
    head.predict(bag, genes)  # refuses what does not fit
    fit = head.models[0].fit
    ways = ways_of(fit.config.head, method)
    own = None if head.genes is None or genes is None else head.genes.grouped(genes)
    asked = asked_models(head, bag, own, passes=PASSES)
    layers = tuple(
        PatchScores.of(layer.kind, layer.values, layer.class_name) for layer in explain(asked, ways)
    )
    made_by = {"model": stamp(head), "methods": {way.kind: way.source for way in ways}}
    return SlideScores.on(grid, layers, made_by=made_by)


def draw_heatmap(
    scores: SlideScores,
    slide: Slide | None = None,
    *,
    store: FeatureStore | None = None,
    layer: int = 0,
) -> Image.Image:
    """A picture of a layer: percentiles over the slide, or on white without it.

    Args:
        scores: of `patch_scores`.
        slide: the slide, opened; with the store that its features are in.
        store: needed beside a slide: its grid says how the patches lie.
        layer: position among the layers.
    """
    opened = None
    if slide is not None and store is not None:
        opened = Opened(slide=slide, grid=store.read(scores.slide_id).grid)
    model = scores.made_by["model"]
    about = f"{model['task']}, {model['head']} on {model['encoder']}"
    png = picture(scores, scores.layers[layer], opened, about)
    return Image.open(io.BytesIO(png))
