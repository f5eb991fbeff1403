"""mSTAR platform: pretrain, embed and evaluate pathology foundation models at cluster scale.

`mstar.open_slide`, `mstar.load_head` and the like are those of `mstar.api`, loaded when named: the
command line must not wait for torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mstar.api import (
        Bag,
        Head,
        Prediction,
        evaluate,
        load_encoder,
        load_head,
        open_features,
        open_slide,
    )

__version__ = "0.1.0"
__all__ = [
    "Bag",
    "Head",
    "Prediction",
    "__version__",
    "evaluate",
    "load_encoder",
    "load_head",
    "open_features",
    "open_slide",
]


def __getattr__(name: str) -> Any:
    """A name of the API, from `mstar.api`."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("mstar.api"), name)
    raise AttributeError(f"module 'mstar' has no attribute {name!r}")
