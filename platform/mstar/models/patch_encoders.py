"""Patch encoders, ready to run: check the weights once (`prepare_weights`), then load and encode.

    resolved = prepare_weights("uni", "s3://models/uni.pth")           # driver, before any slide
    encoder = load_encoder("uni", weights=resolved, batch_size=256)     # every worker
    features = encoder.encode(batch)                                   # uint8 in, float32 out

Pixels cross to the device as uint8 and are normalised there (`transforms.py`). Every batch has the
same shape, `batch_size` patches: the caller pads the last one. At a fixed shape a row's features do
not depend on its place in the batch or on its neighbours, bit for bit on a CPU (tested).
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mstar.errors import ConfigError, WeightsError
from mstar.models.encoder_spec import EncoderSpec, PatchEncoder, PendingFeatures
from mstar.models.encoder_table import ENCODERS, find_encoder
from mstar.models.loaded_encoder import (
    PRECISIONS,
    LoadedEncoder,
    Settings,
    forward_of,
    wrong_dim,
)
from mstar.models.state_dicts import draw_model, match_state, read_state, state_sha256
from mstar.models.weights import ResolvedWeights, localise, resolve

__all__ = [
    "ENCODERS",
    "EncoderSpec",
    "LoadedEncoder",
    "PatchEncoder",
    "PendingFeatures",
    "ResolvedWeights",
    "find_encoder",
    "load_encoder",
    "load_model",
    "prepare_weights",
    "skeleton",
]

logger = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda")


def prepare_weights(
    name: str,
    weights: str | None = None,
    *,
    expected_sha256: str = "",
    cache: Path | None = None,
) -> ResolvedWeights:
    """Find or fetch an encoder's weights, hash them, and check that they fit, key by key.

    Run once by the driver, before any slide is touched. The model is built without memory where it
    can be, so the check costs a second and no gigabytes.

    Args:
        name: an encoder name, as for `find_encoder`.
        weights: an address, as in `weights.py`; None for the encoder's default.
        expected_sha256: refuse weights with another hash; empty to accept what is found.
        cache: folder for what is fetched; None for the default one.

    Raises:
        ConfigError: no such encoder, or its spec states another `dim` than it gives.
        WeightsError: the weights cannot be had, or do not fit.
    """
    spec = find_encoder(name)
    resolved = resolve(weights, spec, expected_sha256=expected_sha256, cache=cache)
    model = skeleton(spec)
    _check_dim(spec, model)
    if resolved.path is not None:
        raw = read_published(spec, Path(resolved.path))
        match_state(model, raw, ignored_keys=spec.ignored_keys, source=resolved.uri)
    return resolved


def load_encoder(
    name: str,
    *,
    weights: str | ResolvedWeights | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    batch_size: int,
    threads: int | None = None,
    cache: Path | None = None,
) -> LoadedEncoder:
    """An encoder with its weights on its device, in evaluation mode.

    Args:
        name: an encoder name, as for `find_encoder`.
        weights: what `prepare_weights` returned, or an address, or None for the default.
        device: auto (a GPU when there is one) | cpu | cuda.
        precision: of the forward pass: float32 | bfloat16 | float16 (both by autocast) | auto
            (bfloat16 on a GPU, float32 on a CPU).
        compile: compile the forward pass with `torch.compile` (minutes at the first batch).
        batch_size: patches in every batch.
        threads: CPU threads of torch in this process, which results may depend on; None leaves
            them. Recorded in `runtime()` either way.
        cache: folder for fetched weights; None for the default one.

    Raises:
        ConfigError: no such encoder, device or precision.
        WeightsError: the weights cannot be had, do not fit, or differ from the resolved ones.
    """
    spec = find_encoder(name)
    where = _device(device)
    arithmetic = _precision(precision, where)
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    if threads is not None:
        torch.set_num_threads(threads)
    if not isinstance(weights, ResolvedWeights):
        weights = resolve(weights, spec, cache=cache)
    model = load_model(spec, weights, cache=cache)
    settings = Settings(device=where, precision=arithmetic, compiled=compile, batch_size=batch_size)
    return LoadedEncoder(spec, weights, model, settings)


def _device(device: str) -> torch.device:
    """The device of a flag value."""
    if device not in DEVICES:
        raise ConfigError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ConfigError(
            "device cuda: torch sees no GPU. Is this a CPU-only torch, or has the worker no GPU "
            "assigned? `mstar doctor` tells; --device cpu runs without."
        )
    return torch.device("cuda" if has_gpu and device != "cpu" else "cpu")


def _precision(precision: str, device: torch.device) -> str:
    """The arithmetic of a flag value on a device."""
    if precision == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    if precision not in PRECISIONS:
        valid = ", ".join(("auto", *PRECISIONS))
        raise ConfigError(f"precision must be one of {valid}, got {precision!r}")
    return precision


def load_model(
    spec: EncoderSpec, weights: ResolvedWeights, *, cache: Path | None = None
) -> nn.Module:
    """The bare module with its weights, on the CPU, in evaluation mode, not trainable.

    Raises:
        WeightsError: the weights cannot be had, do not fit, or differ from the resolved ones.
    """
    path = localise(weights, spec, cache=cache)
    if path is None:
        model = _made(spec, weights)
    else:
        model = spec.build()
        raw = read_published(spec, path)
        matched = match_state(model, raw, ignored_keys=spec.ignored_keys, source=weights.uri)
        if matched.note:
            logger.info("encoder %s, weights %s: %s", spec.name, weights.uri, matched.note)
        model.load_state_dict(matched.state, strict=True)
    return model.eval().requires_grad_(False)


def read_published(spec: EncoderSpec, path: Path) -> Mapping[str, Any]:
    """The tensors of a weights file under the names that the encoder's module has."""
    raw = read_state(path)
    return raw if spec.published is None else spec.published(raw)


def _made(spec: EncoderSpec, weights: ResolvedWeights) -> nn.Module:
    """The model with random weights, or with none at all, the same on every node."""
    seed = weights.seed
    model = spec.build() if seed is None else draw_model(spec.build, seed)
    if state_sha256(model.state_dict()) != weights.sha256:
        raise WeightsError(
            f"encoder {spec.name}: {weights.uri} gives other weights here than where it was "
            "resolved. Do the nodes have the same timm? Is the encoder's `build` deterministic?"
        )
    return model


def skeleton(spec: EncoderSpec) -> nn.Module:
    """The model for comparing shapes: without memory, or built for real when it resists that."""
    try:
        with torch.device("meta"):
            return spec.build().eval()
    except (RuntimeError, NotImplementedError):  # some constructors look at their values
        return spec.build().eval()


def _check_dim(spec: EncoderSpec, model: nn.Module) -> None:
    """Pass one patch of no content through the skeleton and compare the shape of what comes out."""
    device = next(iter(model.state_dict().values())).device  # a built-in one has only buffers
    image = torch.zeros(1, 3, spec.input_px, spec.input_px, device=device)
    with torch.inference_mode():
        shape = tuple(forward_of(spec, model)(image).shape)
    if shape != (1, spec.dim):
        raise wrong_dim(spec, shape)
