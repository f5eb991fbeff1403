"""Configurations of a population as one step: their weights stacked, one matrix product for all.

A small head leaves a GPU waiting for the next kernel to be launched; joined, eight heads launch
few more kernels than one. On a CPU wide activations leave the cache, and configurations are looped
(`population`). Each keeps its own loss, optimiser and state; the numbers are those of the looped
step but for rounding.

    fuse(fits) -> steps, each of one configuration or of several that have equal shapes
"""

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from mstar.config import fingerprint
from mstar.downstream.stream import Batch
from mstar.downstream.trainer import Fit
from mstar.models.heads import head_config
from mstar.models.heads.contract import plain_operations

FUSABLE = ("linear", "cox_linear", "abmil", "abmil_gated")
"""Heads of few, equal operations. CLAM picks patches by their scores, DSMIL by class; TransMIL's
matrices fill a GPU by themselves."""


def fuse(fits: Sequence[Fit]) -> list["Fit | FusedFits"]:
    """Join those whose heads differ in nothing but weights and rates of dropout."""
    groups: dict[str, list[Fit]] = {}
    for place, fit in enumerate(fits):
        groups.setdefault(_shape(fit) or f"alone {place}", []).append(fit)
    return [FusedFits(own) if len(own) > 1 else own[0] for own in groups.values()]


def _shape(fit: Fit) -> str:
    """Equal where two heads can take one step; empty where a head cannot."""
    config = fit.config
    if config.head not in FUSABLE:
        return ""
    options = {**vars_of(head_config(config.head, config.head_options)), "dropout": None}
    outputs = [tuple(parameter.shape) for parameter in fit.head.parameters()]
    return fingerprint([config.head, options, outputs, config.precision])


def vars_of(options: Any) -> dict[str, Any]:
    """The fields of a head's options."""
    return {name: getattr(options, name) for name in type(options).__slots__}


class FusedFits:
    """Several configurations that step together for an epoch."""

    def __init__(self, fits: Sequence[Fit]) -> None:
        """Stack their weights; each head's own become views of the stack."""
        self._fits = list(fits)
        self._template = copy.deepcopy(fits[0].head).train()
        heads = [fit.head for fit in fits]
        self._weights = {name: _joined(heads, name) for name, _ in heads[0].named_parameters()}
        self._buffers = {
            name: torch.stack([dict(head.named_buffers())[name] for head in heads])
            for name, _ in heads[0].named_buffers()
        }

    def step(self, batch: Batch, *, epoch: int, last: bool) -> None:
        """Learn from a batch, each by its own loss."""
        began_s = time.perf_counter()
        first = self._fits[0]
        first.reseed_step(epoch, batch)
        rows = batch.rows.to(batch.x.device)
        with plain_operations(), first.precision():
            logits = self._logits(batch)
            losses = [
                fit.loss_of(own, rows)
                for fit, own in zip(self._fits, logits.unbind(0), strict=True)
            ]
        gradients = torch.autograd.grad(torch.stack(losses).sum(), list(self._weights.values()))
        for name, gradient in zip(self._weights, gradients, strict=True):
            self._hand_out(name, gradient)
        share_s = (time.perf_counter() - began_s) / len(self._fits)
        for fit, loss in zip(self._fits, losses, strict=True):
            fit.learn(loss, len(rows), share_s, last=last)

    def _logits(self, batch: Batch) -> Float[Tensor, "config bag out"]:
        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            output = functional_call(
                self._template, (weights, buffers), (batch.x, batch.offsets), strict=True
            )
            logits: Tensor = output.logits
            return logits

        # the same draws for all, as each would make them alone
        found: Tensor = vmap(one, randomness="same")(self._weights, self._buffers)
        return found

    def _hand_out(self, name: str, gradient: Float[Tensor, "config ..."]) -> None:
        # torch's fused optimisers take gradients to be laid out as the weights are
        for fit, own in zip(self._fits, gradient.contiguous().unbind(0), strict=True):
            parameter = fit.head.get_parameter(name)
            parameter.grad = own if parameter.grad is None else parameter.grad + own


def _joined(heads: Sequence[nn.Module], name: str) -> Tensor:
    own = [head.get_parameter(name) for head in heads]
    joined = torch.stack([parameter.detach() for parameter in own])
    for place, parameter in enumerate(own):
        parameter.data = joined[place]
    return joined.requires_grad_()
