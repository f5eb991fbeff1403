"""The torchvision trap: solved in a fresh process, once, and only when it is there."""

from __future__ import annotations

import subprocess
import sys

TRAPPED = "import torch\ntry:\n    import timm\nexcept RuntimeError:\n    pass\n"
BUILD = (
    "from mstar.models.encoder_table import find_encoder\n"
    "print(sum(p.numel() for p in find_encoder('vit_tiny').build().parameters()))"
)


def run_fresh(code: str) -> str:
    """Standard output of a Python process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_fresh_process_builds_a_model() -> None:
    code = "import mstar.models.patch_encoders\n" + BUILD
    assert run_fresh(code) == "5524416"  # ViT-Ti/16 without its classifier


def test_an_import_that_failed_before_does_no_harm() -> None:
    assert run_fresh(TRAPPED + BUILD) == "5524416"


def test_declaring_twice_and_from_threads_declares_once() -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from mstar.models import torchvision_ops as t\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    said = set(pool.map(lambda _: t.declare_missing_ops(), range(8)))\n"
        "t.import_timm(); t.declare_missing_ops()\n"
        "print(len(said), len(t._declared) <= 1)"
    )
    assert run_fresh(code) == "1 True"


def test_ops_that_are_there_are_left_alone() -> None:
    """An nms that somebody registered, as a matching torchvision does, stays the one that runs."""
    code = (
        "import torch\n"
        "lib = torch.library.Library('torchvision', 'FRAGMENT')\n"
        "for name in ('nms', 'qnms'):\n"
        "    lib.define(name + '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "lib.impl('nms', lambda dets, scores, iou: scores.argsort(), 'CPU')\n"
        "from mstar.models.torchvision_ops import declare_missing_ops, import_timm\n"
        "declared = declare_missing_ops(); import_timm()\n"
        "kept = torch.ops.torchvision.nms(torch.zeros(2, 4), torch.tensor([1.0, 0.5]), 0.5)\n"
        "print(declared, kept.tolist())"
    )
    assert run_fresh(code) == "False [1, 0]"


def test_listing_encoders_loads_no_torch() -> None:
    code = (
        "import sys; from mstar.models.encoder_table import ENCODERS, find_encoder\n"
        "find_encoder('mstar'); print('torch' in sys.modules, 'timm' in sys.modules)"
    )
    assert run_fresh(code) == "False False"
