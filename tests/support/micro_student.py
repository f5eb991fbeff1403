"""A student small enough for tests: a timm ViT of 32 px, 8 px patches, dim 48."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from mstar.models.encoder_spec import EncoderSpec
from mstar.models.student import Student, set_drop_path
from mstar.models.torchvision_ops import import_timm

SIDE, DIM, TARGET = 32, 48, 16


def build_micro(**more: Any) -> nn.Module:
    """The untrained module."""
    sizes = {"img_size": SIDE, "patch_size": 8, "embed_dim": DIM, "depth": 3, "num_heads": 3}
    model: nn.Module = import_timm().models.VisionTransformer(num_classes=0, **sizes, **more)
    return model


def micro_spec(**fields: Any) -> EncoderSpec:
    """Its row."""
    known: dict[str, Any] = {"build": build_micro, "input_px": SIDE, "licence": "Apache-2.0"}
    return EncoderSpec(**({"name": "micro", "dim": DIM} | known | fields))


def micro_student(*, seed: int = 0, drop_path: float = 0.0, **module: Any) -> Student:
    """A student, the same for equal arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_micro(**module)
    set_drop_path(encoder, drop_path)
    spec = micro_spec(build=partial(build_micro, **module))
    return Student(spec, encoder, target_dim=TARGET, seed=seed).train()
