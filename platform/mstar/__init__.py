"""mSTAR platform: pretrain, embed and evaluate pathology foundation models at cluster scale.

`mstar.open_slide`, `mstar.load_head` and the like are those of `mstar.api`, `mstar.patch_scores`
and `mstar.draw_heatmap` those of `mstar.evidence`, loaded when named: the command line must not
wait for torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mstar.api import (
        Bag,
        Head,
        Prediction,
        draw_grid,
        embed_slides,
        evaluate,
        generate_cohort,
        lay_grid,
        load_encoder,
        load_head,
        open_features,
        open_slide,
        train_head,
    )
    from mstar.evidence.in_python import draw_heatmap, patch_scores

__version__ = "0.1.0"
__all__ = [
    "Bag",
    "Head",
    "Prediction",
    "__version__",
    "draw_grid",
    "draw_heatmap",
    "embed_slides",
    "evaluate",
    "generate_cohort",
    "lay_grid",
    "load_encoder",
    "load_head",
    "open_features",
    "open_slide",
    "patch_scores",
    "train_head",
]
_OF_EVIDENCE = ("draw_heatmap", "patch_scores")


def __getattr__(name: str) -> Any:
    """A name of the API, from the module that has it."""
    if name in __all__:
        from importlib import import_module

        module = "mstar.evidence.in_python" if name in _OF_EVIDENCE else "mstar.api"
        return getattr(import_module(module), name)
    raise AttributeError(f"module 'mstar' has no attribute {name!r}")
