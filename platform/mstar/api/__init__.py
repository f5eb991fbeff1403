"""The Python API: what a notebook needs. Nothing here starts Ray.

    import mstar

    slide = mstar.open_slide("a.svs")
    laid = mstar.lay_grid(slide)
    store = mstar.embed_slides("slides/", "F/", encoder="uni", weights="uni.pth")
    bag = mstar.Bag.of(store, "a")
    head = mstar.load_head("R/planted_mutation/uni/abmil")
    said = head.predict(bag)
    found = mstar.evaluate("macro_auc", scores, patients=patients, labels=labels)

`generate_cohort`, `embed_slides` and `train_head` write into the folder that they are given;
nothing else writes. These names stay; everything else of the package may move between minor
versions.
"""

from mstar.api.heads import Bag, Head, Prediction, evaluate, load_head, open_features
from mstar.api.making import draw_grid, embed_slides, generate_cohort, lay_grid, train_head
from mstar.models.patch_encoders import load_encoder
from mstar.slides.reader import open_slide

__all__ = [
    "Bag",
    "Head",
    "Prediction",
    "draw_grid",
    "embed_slides",
    "evaluate",
    "generate_cohort",
    "lay_grid",
    "load_encoder",
    "load_head",
    "open_features",
    "open_slide",
    "train_head",
]
