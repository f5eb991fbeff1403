"""Encoders that users compare theirs with: rows of the table, from their public loading recipes.

Each is built by timm, with random weights until a file is given: nothing is downloaded at import,
and weights published for transformers are renamed (`published_names.py`). Where a published
transform resizes and then crops, the whole patch is resized here: a crop drops tissue between
neighbouring patches. mpp and patch_px say what the encoder was trained on, so that a grid of
`patch_px` at `mpp` gives it what its authors gave it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from mstar.models.encoder_spec import EncoderSpec
from mstar.models.timm_models import timm_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from torch import Tensor, nn

_HUB = "https://huggingface.co/"
_NC_ND = "CC-BY-NC-ND-4.0"
_TERMS = "Read the terms on its page: models trained on its features may count as derivatives."
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_OPTIMUS_MEAN = (0.707223, 0.578729, 0.703617)
_OPTIMUS_STD = (0.211883, 0.230117, 0.177517)
_HALF = (0.5, 0.5, 0.5)


def build_uni2() -> nn.Module:
    """ViT-H/14 of 24 blocks with SwiGLU and 8 registers."""
    from torch import nn

    from mstar.models.torchvision_ops import import_timm

    return timm_model(
        "vit_giant_patch14_224",
        img_size=224,
        patch_size=14,
        depth=24,
        num_heads=24,
        init_values=1e-5,
        embed_dim=1536,
        mlp_ratio=2.66667 * 2,
        no_embed_class=True,
        mlp_layer=import_timm().layers.SwiGLUPacked,
        act_layer=nn.SiLU,
        reg_tokens=8,
        dynamic_img_size=True,
    )


def build_virchow2() -> nn.Module:
    """ViT-H/14 with SwiGLU and 4 registers; gives all tokens."""
    from torch import nn

    from mstar.models.torchvision_ops import import_timm

    return timm_model(
        "vit_huge_patch14_224",
        img_size=224,
        init_values=1e-5,
        mlp_ratio=5.3375,
        global_pool="",
        dynamic_img_size=True,
        reg_tokens=4,
        mlp_layer=import_timm().layers.SwiGLUPacked,
        act_layer=nn.SiLU,
    )


def build_phikon() -> nn.Module:
    """ViT-B/16 with the layer norm of transformers."""
    from torch import nn

    return timm_model(
        "vit_base_patch16_224", img_size=224, norm_layer=partial(nn.LayerNorm, eps=1e-12)
    )


def build_conch() -> nn.Module:
    """CONCH's image tower."""
    from mstar.models.conch_tower import ConchTower

    return ConchTower()


def cls_and_mean(model: nn.Module, images: Tensor, *, prefix_tokens: int) -> Tensor:
    """The CLS token and the mean of the patch tokens, one after the other."""
    import torch

    tokens = model(images)  # [batch, prefix tokens + patches, dim]
    return torch.cat([tokens[:, 0], tokens[:, prefix_tokens:].mean(dim=1)], dim=-1)


def _renamed(num_patches: int) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """What makes timm's names of those of transformers; pickles, for Ray."""
    return partial(_from_transformers, num_patches=num_patches)


def _from_transformers(raw: Mapping[str, Any], *, num_patches: int) -> Mapping[str, Any]:
    from mstar.models.published_names import from_transformers

    return from_transformers(raw, num_patches=num_patches)


def _conch_names(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    from mstar.models.published_names import conch_image_tower

    return conch_image_tower(raw)


_OPTIMUS = partial(
    timm_model,
    "vit_giant_patch14_reg4_dinov2",
    img_size=224,
    init_values=1e-5,
    global_pool="token",
    dynamic_img_size=False,
)

COMPARED: Final[dict[str, EncoderSpec]] = {
    "uni2": EncoderSpec(
        name="uni2",
        dim=1536,
        build=build_uni2,
        pooling="CLS token",
        patch_px=256,
        licence=_NC_ND,
        licence_url=_HUB + "MahmoodLab/UNI2-h",
        default_weights="hf-hub:MahmoodLab/UNI2-h",
        gated=True,
        notes=_TERMS,
    ),
    "virchow2": EncoderSpec(
        name="virchow2",
        dim=2560,
        build=build_virchow2,
        forward=partial(cls_and_mean, prefix_tokens=5),
        pooling="CLS token and mean of the patch tokens",
        interpolation="bicubic",
        patch_px=224,
        licence=_NC_ND,
        licence_url=_HUB + "paige-ai/Virchow2",
        default_weights="hf-hub:paige-ai/Virchow2",
        gated=True,
        notes=_TERMS,
    ),
    "gigapath": EncoderSpec(
        name="gigapath",
        dim=1536,
        build=partial(
            timm_model,
            "vit_giant_patch14_dinov2",
            img_size=224,
            patch_size=16,
            init_values=1e-5,
            global_pool="token",
        ),
        pooling="CLS token",
        interpolation="bicubic",
        patch_px=224,
        licence="Apache-2.0",
        licence_url=_HUB + "prov-gigapath/prov-gigapath",
        default_weights="hf-hub:prov-gigapath/prov-gigapath",
        gated=True,
        notes="The tile encoder. Published: resize 256, crop 224; here 224 px of the grid at once.",
    ),
    "h_optimus_0": EncoderSpec(
        name="h_optimus_0",
        dim=1536,
        build=_OPTIMUS,
        pooling="CLS token",
        mean=_OPTIMUS_MEAN,
        std=_OPTIMUS_STD,
        interpolation="bicubic",
        patch_px=224,
        licence="Apache-2.0",
        licence_url=_HUB + "bioptimus/H-optimus-0",
        default_weights="hf-hub:bioptimus/H-optimus-0",
        gated=True,
        notes="Published for 224 px at 0.5 mpp, without any resize.",
    ),
    "h_optimus_1": EncoderSpec(
        name="h_optimus_1",
        dim=1536,
        build=_OPTIMUS,
        pooling="CLS token",
        mean=_OPTIMUS_MEAN,
        std=_OPTIMUS_STD,
        interpolation="bicubic",
        patch_px=224,
        licence=_NC_ND,
        licence_url=_HUB + "bioptimus/H-optimus-1",
        default_weights="hf-hub:bioptimus/H-optimus-1",
        gated=True,
        notes=_TERMS,
    ),
    "phikon": EncoderSpec(
        name="phikon",
        dim=768,
        build=build_phikon,
        published=_renamed(196),
        pooling="CLS token",
        patch_px=224,
        licence="Owkin non-commercial licence",
        licence_url=_HUB + "owkin/phikon",
        default_weights="hf-hub:owkin/phikon",
        notes="Published for transformers; its names are translated to timm's.",
    ),
    "phikon_v2": EncoderSpec(
        name="phikon_v2",
        dim=1024,
        build=partial(timm_model, "vit_large_patch16_224", img_size=224, init_values=1.0),
        published=_renamed(196),
        pooling="CLS token",
        interpolation="bicubic",
        patch_px=224,
        licence="Owkin non-commercial licence",
        licence_url=_HUB + "owkin/phikon-v2",
        default_weights="hf-hub:owkin/phikon-v2",
        notes="Published for transformers; its names are translated to timm's.",
    ),
    "midnight": EncoderSpec(
        name="midnight",
        dim=3072,
        build=partial(
            timm_model,
            "vit_giant_patch14_dinov2",
            img_size=224,
            init_values=1.0,
            global_pool="",
        ),
        forward=partial(cls_and_mean, prefix_tokens=1),
        published=_renamed(256),
        pooling="CLS token and mean of the patch tokens",
        mean=_HALF,
        std=_HALF,
        patch_px=224,
        licence="MIT",
        licence_url=_HUB + "kaiko-ai/midnight",
        default_weights="hf-hub:kaiko-ai/midnight",
        notes="Published for transformers; its names are translated to timm's.",
    ),
    "plip": EncoderSpec(
        name="plip",
        dim=512,
        build=partial(timm_model, "vit_base_patch32_clip_quickgelu_224", num_classes=512),
        published=_renamed(49),
        pooling="CLS token, projected to the space of texts",
        mean=CLIP_MEAN,
        std=CLIP_STD,
        interpolation="bicubic",
        patch_px=224,
        licence="none stated",
        licence_url=_HUB + "vinid/plip",
        default_weights="hf-hub:vinid/plip",
        notes="The image tower of CLIP ViT-B/32. Its page states no licence: ask before use.",
    ),
    "conch": EncoderSpec(
        name="conch",
        dim=512,
        build=build_conch,
        published=_conch_names,
        pooling="attention of one learned query, before the projection to texts",
        input_px=448,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        interpolation="bicubic",
        patch_px=512,
        licence=_NC_ND,
        licence_url=_HUB + "MahmoodLab/conch",
        default_weights="hf-hub:MahmoodLab/conch",
        gated=True,
        notes=_TERMS,
    ),
}
