"""Untrained timm models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def timm_model(name: str, **arguments: Any) -> nn.Module:
    """An untrained timm model without classifier, unless `num_classes` asks for one."""
    from mstar.models.torchvision_ops import import_timm

    model: nn.Module = import_timm().create_model(name, **{"num_classes": 0, **arguments})
    return model
