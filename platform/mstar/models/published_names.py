"""Tensors of weights published for transformers, under the names that timm's modules have.

One architecture has other names in every library, and libraries rename. The modules here are
timm's; a published file is renamed, its queries, keys and values joined, and then has to fit
exactly. What is not known by name is left as it is, so that a file that already has timm's names
passes unchanged.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

_LAYER: Final = re.compile(r"^(?:encoder\.)?layers?\.(\d+)\.(.+)$")
_JOINED: Final = ("q", "k", "v")
_WRAPPERS: Final = ("vit.", "dinov2.", "vision_model.")

# Names within a block of ViT and DINOv2, as transformers 4 published them.
_BLOCK: Final = {
    "attention.attention.query": "q",
    "attention.attention.key": "k",
    "attention.attention.value": "v",
    "attention.output.dense": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    # CLIP
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.out_proj": "attn.proj",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
}
_OUTSIDE: Final = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
    # CLIP
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding.weight": "pos_embed",
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "pre_layrnorm.weight": "norm_pre.weight",
    "pre_layrnorm.bias": "norm_pre.bias",
    "post_layernorm.weight": "norm.weight",
    "post_layernorm.bias": "norm.bias",
    "visual_projection.weight": "head.weight",
}
_LEFT_OUT: Final = (
    "pooler.",
    "embeddings.mask_token",
    "embeddings.position_ids",
    "text_model.",
    "text_projection.",
    "logit_scale",
)


def from_transformers(raw: Mapping[str, Any], *, num_patches: int = 0) -> Mapping[str, Any]:
    """A ViT, DINOv2 or CLIP image tower under timm's names; other files as they are.

    Args:
        raw: tensors by their published names.
        num_patches: patches that the module sees; positions of another grid are interpolated, as
            transformers does at every call. 0: they are left.
    """
    found: dict[str, Any] = {}
    heads: dict[str, dict[str, Tensor]] = {}
    for published, value in raw.items():
        name = _bare(published)
        if name.startswith(_LEFT_OUT):
            continue
        layer = _LAYER.match(name)
        if layer:
            _add_block(found, heads, layer[1], layer[2], value)
        else:
            found[_OUTSIDE.get(name, name)] = value
    if not heads:
        return raw
    for name, parts in heads.items():
        if set(parts) == set(_JOINED):
            found[name] = torch.cat([parts[part] for part in _JOINED])
    return _shaped(found, num_patches)


def conch_image_tower(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The image tower of CONCH's file, up to the vector before the projection to text."""
    kept = ("trunk.", "attn_pool_contrast.", "ln_contrast.")
    tower = {k.removeprefix("visual."): v for k, v in raw.items() if k.startswith("visual.")}
    return {k: v for k, v in tower.items() if k.startswith(kept)} if tower else raw


def _bare(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _add_block(
    found: dict[str, Any], heads: dict[str, dict[str, Tensor]], number: str, name: str, value: Any
) -> None:
    """A tensor of a block; queries, keys and values are collected to be joined."""
    if name in _BLOCK:  # layer scale has no weight and bias
        found[f"blocks.{number}.{_BLOCK[name]}"] = value
        return
    stem, _, kind = name.rpartition(".")
    ours = _BLOCK.get(stem, stem)
    if ours in _JOINED:
        heads.setdefault(f"blocks.{number}.attn.qkv.{kind}", {})[ours] = value
    else:
        found[f"blocks.{number}.{ours}.{kind}"] = value


def _shaped(found: dict[str, Any], num_patches: int) -> dict[str, Any]:
    """CLS token and positions with a leading axis; a head without bias gets one of zeros."""
    if found["cls_token"].ndim == 1:
        found["cls_token"] = found["cls_token"][None, None]
    positions = found["pos_embed"]
    positions = positions if positions.ndim == 3 else positions[None]
    if num_patches and positions.shape[1] - 1 != num_patches:
        positions = _interpolated(positions, num_patches)
    found["pos_embed"] = positions
    if "head.weight" in found and "head.bias" not in found:
        found["head.bias"] = torch.zeros(len(found["head.weight"]))
    return found


def _interpolated(positions: Tensor, num_patches: int) -> Tensor:
    """Positions of another grid, bicubic; that of the CLS token stays."""
    cls, grid = positions[:, :1], positions[:, 1:]
    before, after = math.isqrt(grid.shape[1]), math.isqrt(num_patches)
    planes = grid.reshape(1, before, before, -1).permute(0, 3, 1, 2).float()
    planes = functional.interpolate(planes, (after, after), mode="bicubic", align_corners=False)
    rows = planes.permute(0, 2, 3, 1).reshape(1, num_patches, -1)
    return torch.cat([cls, rows.to(positions.dtype)], dim=1)
