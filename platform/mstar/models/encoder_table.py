"""The table of patch encoders, and how a name becomes a spec.

`--encoder` takes a key of `ENCODERS`, `timm:<model>`, or `module:function` (`external.py`).

mSTAR and UNI: transform as the authors state it, Resize 224 bilinear and ImageNet mean and std.
The `config.json` beside the published mSTAR weights says mean = std = 0.5, left over from the timm
model it was made from; it is never read here. Resolution of both: 256 px at 0.5 mpp.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from mstar.errors import ConfigError
from mstar.models.compared_encoders import COMPARED
from mstar.models.encoder_spec import EncoderSpec
from mstar.models.external import is_external, load_external
from mstar.models.timm_models import timm_model

if TYPE_CHECKING:
    from torch import nn

TIMM_PREFIX = "timm:"
_HUB = "https://huggingface.co/"
_NC_ND = "CC-BY-NC-ND-4.0"
_NC_ND_NOTE = "Non-commercial academic use; models trained on its features count as derivatives."


# What mSTAR and UNI share: ViT-L/16 at 224 px with LayerScale, CLS token.
build_vit_large = partial(
    timm_model,
    "vit_large_patch16_224",
    img_size=224,
    patch_size=16,
    init_values=1e-5,
    dynamic_img_size=True,
)


def build_resnet50_clam() -> nn.Module:
    """ResNet-50 up to its third block, average-pooled: the 1024-d features of CLAM and its kin."""
    from torch import nn

    model = timm_model("resnet50")
    model.layer4 = nn.Identity()
    return model


def build_texture() -> nn.Module:
    """Fixed measures of colour and texture, without parameters."""
    from mstar.models.texture import TextureEncoder

    return TextureEncoder()


ENCODERS: dict[str, EncoderSpec] = {
    "mstar": EncoderSpec(
        name="mstar",
        dim=1024,
        build=build_vit_large,
        licence=_NC_ND,
        licence_url=_HUB + "Wangyh/mSTAR",
        default_weights="hf-hub:Wangyh/mSTAR",
        pooling="CLS token",
        gated=True,
        notes="Gated. " + _NC_ND_NOTE,
    ),
    "uni": EncoderSpec(
        name="uni",
        dim=1024,
        build=build_vit_large,
        licence=_NC_ND,
        licence_url=_HUB + "MahmoodLab/UNI",
        default_weights="hf-hub:MahmoodLab/UNI",
        pooling="CLS token",
        gated=True,
        notes="Gated. " + _NC_ND_NOTE,
    ),
    "resnet50": EncoderSpec(
        name="resnet50",
        dim=2048,
        build=partial(timm_model, "resnet50"),
        licence="BSD-3-Clause",
        licence_url=_HUB + "timm/resnet50.tv_in1k",
        default_weights="hf-hub:timm/resnet50.tv_in1k",
        ignored_keys=("fc.",),
        pooling="mean over the map",
        notes="Whole network, average-pooled. Not CLAM's: that is resnet50_clam.",
    ),
    "resnet50_clam": EncoderSpec(
        name="resnet50_clam",
        dim=1024,
        build=build_resnet50_clam,
        licence="BSD-3-Clause",
        licence_url=_HUB + "timm/resnet50.tv_in1k",
        default_weights="hf-hub:timm/resnet50.tv_in1k",
        ignored_keys=("fc.", "layer4."),
        pooling="mean over the map",
        notes="After the third block. CLAM before 2024 fed 256 px without the resize to 224.",
    ),
    "vit_tiny": EncoderSpec(
        name="vit_tiny",
        dim=192,
        build=partial(timm_model, "vit_tiny_patch16_224"),
        licence="Apache-2.0",
        default_weights="random:0",
        ignored_keys=("head.",),
        pooling="CLS token",
        notes="For tests and the demo. Random weights unless given: features mean nothing.",
    ),
    "vit_micro": EncoderSpec(
        name="vit_micro",
        dim=96,
        build=partial(
            timm_model,
            "vit_tiny_patch16_224",
            img_size=64,
            patch_size=8,
            embed_dim=96,
            depth=4,
            num_heads=3,
        ),
        input_px=64,
        patch_px=64,
        licence="Apache-2.0",
        default_weights="random:0",
        ignored_keys=("head.",),
        pooling="CLS token",
        notes="ViT/8 at 64 px, 4 blocks: small enough to be trained on a CPU, for tests.",
    ),
    "texture": EncoderSpec(
        name="texture",
        dim=94,
        build=build_texture,
        input_px=256,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        licence="Apache-2.0",
        default_weights="built-in",
        pooling="measures of the whole patch",
        notes="No training: fixed texture measures. A floor for what a trained encoder must beat.",
    ),
    **COMPARED,
}


def find_encoder(name: str) -> EncoderSpec:
    """The spec of an encoder name.

    Raises:
        ConfigError: no such encoder; the message names the nearest ones.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    if name.startswith(TIMM_PREFIX):
        return _timm_spec(name.removeprefix(TIMM_PREFIX))
    if is_external(name):
        return load_external(name)
    raise _unknown(name, list(ENCODERS))


def timm_call(spec: EncoderSpec) -> str:
    """How plain timm makes an encoder's module, as Python; empty for one that is not timm's."""
    build = spec.build
    if not (isinstance(build, partial) and build.func is timm_model):
        return ""
    arguments = {**build.keywords, "num_classes": 0}
    named = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"timm.create_model({build.args[0]!r}, {named})"


def _unknown(name: str, known: list[str]) -> ConfigError:
    """The error for a name that is nowhere."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:5]
    return ConfigError(
        f"no encoder {name!r}. Nearest: {', '.join(near)}. Valid: {', '.join(ENCODERS)}, "
        "timm:<any timm model>, or module:function for your own (platform/docs/encoders.md)."
    )


def _timm_spec(model_name: str) -> EncoderSpec:
    """A spec for any timm model, with timm's own normalisation and interpolation for it.

    timm's centre crop is left out: it would drop tissue between neighbouring patches.
    """
    import torch

    from mstar.models.torchvision_ops import import_timm

    timm = import_timm()
    known = timm.list_models() + timm.list_pretrained()
    if model_name not in known:
        raise _unknown(TIMM_PREFIX + model_name, [TIMM_PREFIX + n for n in known])
    with torch.device("meta"):  # shapes only: nothing is allocated or initialised
        model: Any = timm_model(model_name)
    config = model.pretrained_cfg
    data = timm.data.resolve_model_data_config(model)
    hub_id, licence = config.get("hf_hub_id"), config.get("license")
    return EncoderSpec(
        name=TIMM_PREFIX + model_name,
        dim=int(getattr(model, "head_hidden_size", None) or model.num_features),
        build=_builder(model_name),
        input_px=data["input_size"][-1],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"],
        licence=licence or "unknown: see the model's page",
        licence_url=_HUB + hub_id if hub_id else "",
        default_weights=f"hf-hub:{hub_id}" if hub_id else None,
        ignored_keys=_classifier_keys(config.get("classifier")),
        notes="Normalisation and interpolation are timm's for these weights; no centre crop.",
    )


def _builder(model_name: str) -> Callable[[], nn.Module]:
    """A builder that pickles, for Ray."""
    return partial(timm_model, model_name)


def _classifier_keys(classifier: str | tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    """Prefixes of the classifier's keys, which published timm files hold and we do not want."""
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    return tuple(f"{name}." for name in names)
