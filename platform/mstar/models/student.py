"""The student of stage 2: a patch encoder that is trained, and a projection to the teacher's space.

    p = encoder(patch)        f(p) = proj(p)

The encoder is the bare timm module, so that its state dict is what plain timm loads. `proj` is one
linear layer; its keys are `proj.weight` and `proj.bias`. It starts from the very weights that made
the features the teacher saw: anything else is refused by hash, unless the caller means it.

Pixels come as uint8, as stored. Where the stored side is not the encoder's input they are resized
on the device by the kernel that made the features: on a CPU that kernel itself, elsewhere its
float32 form, rounded as it rounds (equal in more than 94 % of places, at most two grey levels away,
tested). Then they are normalised.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mstar.errors import ConfigError, WeightsError
from mstar.models.encoder_spec import EncoderSpec
from mstar.models.loaded_encoder import forward_of
from mstar.models.patch_encoders import find_encoder, load_model, prepare_weights, skeleton
from mstar.models.torchvision_ops import import_timm
from mstar.models.transforms import normalise, scale_and_shift
from mstar.models.weights import ResolvedWeights

log = logging.getLogger("mstar.student")

PROJECTION_STD = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentConfig:
    """How the student computes; none of it changes what is exported."""

    drop_path: float = 0.0
    """Chance that a training patch skips a block, rising linearly with depth to this. A choice."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: much less memory, about a third more time."""
    compile: bool = False
    """Compile the encoder's forward pass with `torch.compile` (minutes at the first step)."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"--drop-path {self.drop_path}: expected a share from 0 to below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentOutput:
    """What the student makes of patches.

    features: p, as they would be stored. projected: f(p), in the space of the targets.
    """

    features: Float[Tensor, "patch dim"]
    projected: Float32[Tensor, "patch target"]


class Student(nn.Module):
    """A patch encoder in training with its projection. Use `build_student`."""

    def __init__(
        self,
        spec: EncoderSpec,
        encoder: nn.Module,
        *,
        target_dim: int,
        seed: int = 0,
        compiled: bool = False,
    ) -> None:
        """A student around a module; the projection is drawn from `seed` alone."""
        super().__init__()
        self.spec = spec
        self.encoder = encoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.proj = nn.Linear(spec.dim, target_dim)
            nn.init.trunc_normal_(self.proj.weight, std=PROJECTION_STD)
            nn.init.zeros_(self.proj.bias)
        scale, shift = scale_and_shift(spec, torch.device("cpu"))
        self.register_buffer("pixel_scale", scale, persistent=False)
        self.register_buffer("pixel_shift", shift, persistent=False)
        self.compiled = compiled
        self._forward = forward_of(spec, encoder, compiled=compiled)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.proj.weight.device

    def prepare(
        self, images: UInt8[Tensor, "patch side side 3"]
    ) -> Float32[Tensor, "patch 3 input_px input_px"]:
        """Stored pixels, moved to the device, resized where that is needed, and normalised."""
        moved = images.to(self.device, non_blocking=True)
        sized = resize_images(moved, self.spec.input_px, self.spec.interpolation)
        return normalise(sized, self.get_buffer("pixel_scale"), self.get_buffer("pixel_shift"))

    def forward(self, images: Float32[Tensor, "patch 3 input_px input_px"]) -> StudentOutput:
        """Features and projections of prepared images."""
        features = self._forward(images)
        with torch.autocast(features.device.type, enabled=False):  # costs nothing beside the ViT
            projected = self.proj(features.float())
        return StudentOutput(features=features, projected=projected)


def initial_weights(
    encoder: str,
    weights: str | None,
    *,
    expected_sha256: str,
    expected_transform: str = "",
    allow_other: bool = False,
    cache: Path | None = None,
) -> ResolvedWeights:
    """The weights that a student starts from, which have to be those that made the features.

    Args:
        encoder: an encoder name.
        weights: an address; None for the encoder's default.
        expected_sha256: of the weights that made the features, as the shards record it.
        expected_transform: the encoder's path of the pixels then; empty for not compared.
        allow_other: start from other weights all the same.
        cache: folder for fetched weights; None for the default one.

    Raises:
        ConfigError: no such encoder, or it treats pixels otherwise now.
        WeightsError: they are others, cannot be had, or do not fit.
    """
    transform = find_encoder(encoder).transform
    if expected_transform and transform != expected_transform:
        raise ConfigError(
            f"encoder {encoder}: the features were made with the transform {expected_transform}, "
            f"this mstar has {transform}. Train with the version that made them."
        )
    found = prepare_weights(encoder, weights, cache=cache)
    if found.sha256 == expected_sha256.lower():
        return found
    said = (
        f"{found.uri}: the features behind these shards were made with weights of sha256 "
        f"{expected_sha256 or '(not recorded)'}, got {found.sha256}."
    )
    if not allow_other:
        raise WeightsError(
            f"{said} The targets belong to the former: give those with --weights, or say "
            "--allow-other-weights."
        )
    log.warning("%s Going on, as --allow-other-weights says.", said)
    return found


def build_student(
    encoder: str,
    weights: ResolvedWeights,
    *,
    target_dim: int,
    seed: int = 0,
    config: StudentConfig | None = None,
    cache: Path | None = None,
) -> Student:
    """A trainable student on the CPU, float32, the same on every rank.

    Parameters that the features do not depend on (an unused head or token) are frozen, so that
    every pass reaches every trained one and weight decay moves none of the others.

    Raises:
        ConfigError: the encoder cannot be trained this way.
        WeightsError: the weights cannot be had, or do not fit.
    """
    config = config or StudentConfig()
    spec = find_encoder(encoder)
    module = load_model(spec, weights, cache=cache).requires_grad_(True)
    _refuse_batch_norm(spec, module)
    for name in unreached_parameters(spec):
        log.warning("encoder %s: its features do not depend on %s; not trained", spec.name, name)
        module.get_parameter(name).requires_grad_(False)
    if config.drop_path:
        set_drop_path(module, config.drop_path)
    set_activation_checkpointing(module, config.activation_checkpointing)
    return Student(spec, module, target_dim=target_dim, seed=seed, compiled=config.compile).train()


def resize_images(
    images: UInt8[Tensor, "patch side side 3"], size_px: int, interpolation: str
) -> UInt8[Tensor, "patch size size 3"]:
    """The whole images at size_px × size_px by the named kernel, on the device they are on."""
    if images.shape[1:3] == (size_px, size_px):
        return images
    planes = images.permute(0, 3, 1, 2)
    if images.device.type == "cpu":
        return _interpolate(planes, (size_px, size_px), interpolation).permute(0, 2, 3, 1)
    # elsewhere torch has no kernel for uint8
    return _resize_as_float(planes, size_px, interpolation).permute(0, 2, 3, 1)


def unreached_parameters(spec: EncoderSpec) -> list[str]:
    """Names of the parameters that an encoder's features do not depend on."""
    module = skeleton(spec).requires_grad_(True)
    named = dict(module.named_parameters())
    if not named:  # fixed measures: the projection alone is trained
        return []
    names, parameters = list(named), list(named.values())
    image = torch.zeros(1, 3, spec.input_px, spec.input_px, device=parameters[0].device)
    features = forward_of(spec, module)(image)
    reached = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
    return [name for name, found in zip(names, reached, strict=True) if found is None]


def set_drop_path(module: nn.Module, rate: float) -> None:
    """Let a ViT's blocks be skipped in training, the later the likelier, the last with `rate`.

    Raises:
        ConfigError: the module has no such blocks.
    """
    drop_path = import_timm().layers.DropPath
    blocks: Any = getattr(module, "blocks", ())
    if not len(blocks) or not all(hasattr(block, "drop_path1") for block in blocks):
        raise ConfigError(
            f"--drop-path {rate}: {type(module).__name__} has no blocks to skip. Set it to 0."
        )
    for depth, block in enumerate(blocks):
        share = rate * depth / max(1, len(blocks) - 1)
        block.drop_path1, block.drop_path2 = drop_path(share), drop_path(share)


def set_activation_checkpointing(module: nn.Module, on: bool) -> None:
    """Recompute a timm model's blocks in the backward pass, or no longer.

    Raises:
        ConfigError: it is asked for and the module cannot.
    """
    switch: Callable[[bool], None] | None = getattr(module, "set_grad_checkpointing", None)
    if switch is not None:
        switch(on)
    elif on:
        raise ConfigError(
            f"--activation-checkpointing: {type(module).__name__} has no set_grad_checkpointing, "
            "as timm's models have. Leave it off."
        )


def _interpolate(planes: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    sized: Tensor = nn.functional.interpolate(
        planes, size=size, mode=interpolation, antialias=True, align_corners=False
    )
    return sized


def _resize_as_float(
    planes: UInt8[Tensor, "patch 3 side side"], size_px: int, kernel: str
) -> UInt8[Tensor, "patch 3 size size"]:
    """What the uint8 kernel gives, but for its weights of 16 bits, on any device.

    Like that kernel it goes along the rows first and rounds before it goes down the columns.
    """
    wide = _grey(_interpolate(planes.float(), (planes.shape[2], size_px), kernel))
    return _grey(_interpolate(wide, (size_px, size_px), kernel)).to(torch.uint8)


def _grey(values: Tensor) -> Tensor:
    """The nearest whole grey levels; halves go up, also those that rounding put just below."""
    return values.add_(0.5 + 1e-3).floor_().clamp_(0, 255)


def _refuse_batch_norm(spec: EncoderSpec, module: nn.Module) -> None:
    if any(isinstance(part, _BatchNorm) for part in module.modules()):
        raise ConfigError(
            f"encoder {spec.name}: has batch normalisation, whose statistics would depend on how "
            "the batch is split over workers. Train a ViT, such as uni or timm:vit_…"
        )
