"""The one place that makes `import torchvision`, and so `import timm`, work beside any torch.

The trap: the torchvision wheel of most package indexes is built against a CUDA build of torch.
Beside a CPU-only torch its C++ library does not load, torchvision's operators do not exist, and
`import torchvision` dies with "operator torchvision::nms does not exist", because its own Python
code attaches shape rules to two of them, `nms` and `qnms`. timm imports torchvision and dies too.

The way out: declare the *schemas* of these two operators before the import. Nothing here computes
boxes; a call of `nms` would still fail, loudly. When torchvision's library does load (any matching
pair, such as CUDA torch on a GPU node) nothing is declared and its real operators stay in place.

Everything in this package gets timm through `import_timm()`, in the driver and in every worker.
"""

import importlib
import importlib.util
import sys
import threading
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_lock = threading.Lock()
_declared: list[torch.library.Library] = []  # a collected Library takes its schemas with it


def declare_missing_ops() -> bool:
    """Declare the operators that torchvision's import needs, only when its own are not to be had.

    May be called any number of times, from any thread, before or after a failed import.

    Returns:
        True when the schemas had to be declared, now or earlier in this process.
    """
    with _lock:
        if not _declared and not _torchvision_has_ops():
            library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
            for schema in SCHEMAS:
                library.define(schema)  # type: ignore[no-untyped-call]
            _declared.append(library)
        return bool(_declared)


def import_timm() -> Any:
    """The timm module; use this and never `import timm`."""
    declare_missing_ops()
    return importlib.import_module("timm")


def _torchvision_has_ops() -> bool:
    """Whether torchvision's own operators exist, after trying to load its library."""
    if "torchvision" in sys.modules or hasattr(torch.ops.torchvision, "nms"):
        return True
    library = _torchvision_library()
    if library is None:
        return False
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError:  # built against another torch
        return False
    return hasattr(torch.ops.torchvision, "nms")


def _torchvision_library() -> Path | None:
    """Path of torchvision's C++ library, found without importing torchvision."""
    spec = importlib.util.find_spec("torchvision")
    folders = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    names = [f"_C{suffix}" for suffix in EXTENSION_SUFFIXES]
    return next((f / n for f in folders for n in names if (f / n).is_file()), None)
