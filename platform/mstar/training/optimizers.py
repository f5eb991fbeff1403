"""Optimisers and learning-rate schedules, the same for every stage.

A parameter group is a part of the model (`aggregator`, `text`, …) with a learning rate of its own;
bias, norm and other one-dimensional parameters of it take no weight decay. The learning rate is a
pure function of the step, so that it needs no state of its own in a checkpoint.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from mstar.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule; the paper states none of it (reference: appendix A.2)."""

    weight_decay: float = 0.05
    """Weight decay of matrices; bias, norm, CLS and scale parameters take none. A choice."""
    beta1: float = 0.9
    """AdamW's first momentum. A choice."""
    beta2: float = 0.98
    """AdamW's second momentum (open_clip's value). A choice."""
    eps: float = 1e-6
    """AdamW's epsilon (open_clip's value). A choice."""
    warmup_fraction: float = 0.1
    """Share of all steps over which the learning rate rises linearly, at most half. A choice."""
    min_warmup_steps: int = 0
    """At least this many warm-up steps, but never more than half of all. A choice."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient; 0 for no bound. A choice."""

    def __post_init__(self) -> None:
        for name, wrong, expected in (
            ("weight_decay", self.weight_decay < 0, "0 or more"),
            ("beta1", not 0 <= self.beta1 < 1, "at least 0 and below 1"),
            ("beta2", not 0 <= self.beta2 < 1, "at least 0 and below 1"),
            ("eps", self.eps <= 0, "a number above 0"),
            ("warmup_fraction", not 0 <= self.warmup_fraction <= 1, "a share between 0 and 1"),
            ("min_warmup_steps", self.min_warmup_steps < 0, "0 or more"),
            ("grad_clip", self.grad_clip < 0, "0 or more"),
        ):
            if wrong:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {getattr(self, name)}: expected {expected}")


def adamw(
    parts: Mapping[str, nn.Module | nn.Parameter],
    rates: Mapping[str, float],
    config: OptimizerConfig,
) -> torch.optim.AdamW:
    """AdamW over named parts of a model, each with its own peak learning rate."""
    groups = []
    for name, part in parts.items():
        for decay, parameters in _by_decay(part).items():
            if parameters:
                groups.append(
                    {
                        "params": parameters,
                        "lr": rates[name],
                        "peak_lr": rates[name],
                        "name": f"{name}.{'decay' if decay else 'no_decay'}",
                        "weight_decay": config.weight_decay if decay else 0.0,
                    }
                )
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps)


def _by_decay(part: nn.Module | nn.Parameter) -> dict[bool, list[nn.Parameter]]:
    """Trainable parameters: matrices decay, but for embeddings of one row such as CLS."""
    every = [part] if isinstance(part, nn.Parameter) else list(part.parameters())
    trained = [p for p in every if p.requires_grad]
    flat = [p for p in trained if p.squeeze().ndim <= 1]
    return {True: [p for p in trained if p.squeeze().ndim > 1], False: flat}


def warmup_cosine(num_steps: int, config: OptimizerConfig) -> Callable[[int], float]:
    """The factor on the peak learning rate at a step: linear warm-up, then a cosine to 0."""
    warmup = max(config.min_warmup_steps, round(config.warmup_fraction * num_steps))
    warmup = min(warmup, num_steps // 2)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, num_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set every group's learning rate for this step; returns them by group."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return {str(group["name"]): float(group["lr"]) for group in optimizer.param_groups}
