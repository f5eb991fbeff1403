"""Layer-wise learning-rate decay: the nearer a layer is to the pixels, the less it is changed.

A layer's peak rate is rate · decay ^ (layers above it). Layers are timm's own: patch embedding and
position first, then the blocks, the last norm with the last block. A decay of 1 gives plain groups.

Bias, norm, LayerScale, CLS token, and whatever else the model lists in its `no_weight_decay()`
(positions, in timm's ViTs) take no weight decay.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from mstar.errors import ConfigError
from mstar.models.torchvision_ops import import_timm
from mstar.training.optimizers import OptimizerConfig

Named = tuple[str, nn.Parameter]


def adamw_by_layer(
    encoder: nn.Module,
    heads: Mapping[str, nn.Module],
    *,
    rate: float,
    head_rates: Mapping[str, float],
    layer_decay: float,
    config: OptimizerConfig,
) -> torch.optim.AdamW:
    """AdamW over a timm encoder, layer by layer, and the parts on top of it, each at its rate.

    Groups carry `name` and `peak_lr`, as `optimizers.set_rates` needs them: `encoder.decay` without
    layer decay, `encoder.layer03.decay` with it; parts are named by their key.

    Raises:
        ConfigError: the decay is no share, or the encoder has no layers to tell apart.
    """
    if not 0 < layer_decay <= 1:
        raise ConfigError(f"--layer-decay {layer_decay}: expected a number above 0, up to 1")
    groups: list[dict[str, Any]] = []
    for name, scale, members in _layers(encoder, layer_decay):
        groups += _groups(name, members, rate * scale, config, kept=_kept(encoder))
    for name, head in heads.items():
        groups += _groups(name, head.named_parameters(), head_rates[name], config)
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps)


def layer_of_parameters(encoder: nn.Module) -> dict[str, int]:
    """Layer of every parameter of a timm model, 0 nearest to the pixels.

    Raises:
        ConfigError: the model does not say what its layers are.
    """
    matcher = getattr(encoder, "group_matcher", None)
    if matcher is None:
        raise ConfigError(
            f"--layer-decay: {type(encoder).__name__} does not name its layers (group_matcher), as "
            "timm's models do. Set it to 1."
        )
    found: dict[str, int] = import_timm().models.group_parameters(
        encoder, matcher(coarse=False), reverse=True
    )
    return found


def _layers(encoder: nn.Module, decay: float) -> Iterator[tuple[str, float, list[Named]]]:
    """Name, factor on the rate, and parameters of every layer; all in one without decay."""
    named = list(encoder.named_parameters())
    if decay == 1:
        yield "encoder", 1.0, named
        return
    layers = layer_of_parameters(encoder)
    last = max(layers.values())
    for layer in range(last + 1):
        members = [(name, p) for name, p in named if layers[name] == layer]
        yield f"encoder.layer{layer:02}", decay ** (last - layer), members


def _groups(
    part: str,
    named: Iterable[Named],
    rate: float,
    config: OptimizerConfig,
    *,
    kept: frozenset[str] = frozenset(),
) -> list[dict[str, Any]]:
    """At most two parameter groups of a part: with weight decay and without."""
    split: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": []}
    for name, parameter in named:
        if parameter.requires_grad:
            flat = parameter.squeeze().ndim <= 1 or name in kept
            split["no_decay" if flat else "decay"].append(parameter)
    return [
        {
            "params": parameters,
            "lr": rate,
            "peak_lr": rate,
            "name": f"{part}.{kind}",
            "weight_decay": config.weight_decay if kind == "decay" else 0.0,
        }
        for kind, parameters in split.items()
        if parameters
    ]


def _kept(encoder: nn.Module) -> frozenset[str]:
    """Parameters that the model itself wants without weight decay."""
    ask = getattr(encoder, "no_weight_decay", None)
    return frozenset(ask()) if ask is not None else frozenset()
