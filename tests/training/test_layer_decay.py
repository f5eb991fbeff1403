"""Every parameter once, at the rate of its layer, with weight decay where it belongs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from mstar.errors import ConfigError
from mstar.models.encoder_table import ENCODERS
from mstar.models.torchvision_ops import import_timm
from mstar.training.layer_decay import adamw_by_layer, layer_of_parameters
from mstar.training.optimizers import OptimizerConfig, set_rates
from support.micro_student import Student, micro_student

RATE, HEAD = 1e-3, 1e-2


def optimizer_of(student: Student, decay: float, **config: Any) -> torch.optim.AdamW:
    return adamw_by_layer(
        student.encoder,
        {"projection": student.proj},
        rate=RATE,
        head_rates={"projection": HEAD},
        layer_decay=decay,
        config=OptimizerConfig(**config),
    )


def by_name(student: Student, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Group of every parameter, each exactly once."""
    names = {p: name for name, p in student.named_parameters()}
    found: dict[str, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert names[p] not in found
            found[names[p]] = group
    return found


@pytest.mark.parametrize("decay", [0.5, 0.75, 1.0])
def test_the_rate_falls_layer_by_layer_towards_the_pixels(decay: float) -> None:
    student = micro_student(init_values=1e-5)
    found = by_name(student, optimizer_of(student, decay))
    assert found.keys() == dict(student.named_parameters()).keys()
    depth = len(student.encoder.blocks)
    for name, group in found.items():
        block = re.match(r"encoder\.blocks\.(\d+)\.", name)
        if name.startswith("proj."):
            expected = HEAD
        elif block:
            expected = RATE * decay ** (depth - 1 - int(block[1]))
        elif name.startswith("encoder.norm."):
            expected = RATE
        else:  # patch embedding, CLS token, positions
            expected = RATE * decay**depth
        assert group["lr"] == group["peak_lr"] == pytest.approx(expected), name


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_bias_norm_layerscale_cls_and_positions_take_no_weight_decay(decay: float) -> None:
    student = micro_student(init_values=1e-5)
    found = by_name(student, optimizer_of(student, decay, weight_decay=0.05))
    kept = re.compile(r".*(bias|gamma|cls_token|pos_embed)$|.*norm\d?\.weight$")
    for name, group in found.items():
        assert group["weight_decay"] == (0.0 if kept.match(name) else 0.05), name
    assert found["proj.weight"]["weight_decay"] == 0.05


def test_it_agrees_with_timms_own_grouping_for_vit_large() -> None:
    """Another implementation, on the encoder that is trained."""
    with torch.device("meta"):
        encoder = ENCODERS["mstar"].build()
    optimizer = adamw_by_layer(
        encoder, {}, rate=RATE, head_rates={}, layer_decay=0.8, config=OptimizerConfig()
    )
    import_timm()
    from timm.optim import param_groups_layer_decay

    theirs = param_groups_layer_decay(
        encoder, weight_decay=0.05, layer_decay=0.8, no_weight_decay_list=("pos_embed", "cls_token")
    )
    expected = {
        id(p): (group["lr_scale"] * RATE, group["weight_decay"])
        for group in theirs
        for p in group["params"]
    }
    found = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert found.keys() == expected.keys()
    assert all(found[key] == pytest.approx(expected[key]) for key in found)
    assert len(set(layer_of_parameters(encoder).values())) == 25


def test_without_decay_there_are_four_groups_and_schedules_reach_all() -> None:
    student = micro_student()
    optimizer = optimizer_of(student, 1.0)
    rates = set_rates(optimizer, 0.5)
    assert rates == {
        "encoder.decay": RATE / 2,
        "encoder.no_decay": RATE / 2,
        "projection.decay": HEAD / 2,
        "projection.no_decay": HEAD / 2,
    }
    names = set(set_rates(optimizer_of(student, 0.9), 1.0))
    assert {"encoder.layer00.decay", "encoder.layer03.no_decay", "projection.decay"} <= names


def test_frozen_parameters_are_left_out() -> None:
    student = micro_student()
    student.encoder.norm.requires_grad_(False)
    found = by_name(student, optimizer_of(student, 0.9))
    assert not any(name.startswith("encoder.norm.") for name in found)


def test_what_cannot_be_meant_is_refused() -> None:
    student = micro_student()
    for decay in (0.0, 1.1, -1.0):
        with pytest.raises(ConfigError, match="--layer-decay"):
            optimizer_of(student, decay)
    plain = nn.Linear(2, 2)
    options: dict[str, Any] = {"rate": 1.0, "head_rates": {}, "config": OptimizerConfig()}
    with pytest.raises(ConfigError, match="group_matcher"):
        adamw_by_layer(plain, {}, layer_decay=0.9, **options)
    assert len(adamw_by_layer(plain, {}, layer_decay=1.0, **options).param_groups) == 2
