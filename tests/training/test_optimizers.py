"""Parameter groups hold every trainable parameter once; the schedule is a function of the step."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mstar.errors import ConfigError
from mstar.training.optimizers import OptimizerConfig, adamw, set_rates, warmup_cosine


class Parts(nn.Module):
    """Every kind of parameter that the models have, some of them frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Conv2d(1, 3, 3))
        self.cls = nn.Parameter(torch.zeros(1, 1, 6))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.table = nn.Embedding(5, 6)
        self.frozen = nn.Linear(6, 2)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(6, 1)


def parts_of(model: Parts) -> dict[str, nn.Module | nn.Parameter]:
    return {
        "body": model.body,
        "cls": model.cls,
        "scale": model.scale,
        "table": model.table,
        "rest": nn.ModuleList([model.frozen, model.head]),
    }


def test_every_trainable_parameter_is_in_one_group_and_no_other_is() -> None:
    model = Parts()
    optimizer = adamw(parts_of(model), dict.fromkeys(parts_of(model), 1e-3), OptimizerConfig())
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters() if p.requires_grad}


def test_only_matrices_decay_and_each_part_has_its_rate() -> None:
    model = Parts()
    rates = {name: float(number) for number, name in enumerate(parts_of(model), 1)}
    optimizer = adamw(parts_of(model), rates, OptimizerConfig(weight_decay=0.3))
    names = {id(p): name for name, p in model.named_parameters()}
    decay = {
        names[id(p)]: group["weight_decay"]
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert {name for name, by in decay.items() if by == 0.3} == {
        "body.0.weight",
        "body.2.weight",
        "table.weight",
    }
    assert {by for by in decay.values()} == {0.0, 0.3}
    for group in optimizer.param_groups:
        assert group["lr"] == rates[group["name"].split(".")[0]]


def test_a_parameter_in_two_parts_is_refused() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="more than one parameter group"):
        adamw({"a": layer, "b": layer}, {"a": 1.0, "b": 1.0}, OptimizerConfig())


@settings(max_examples=50, deadline=None)
@given(
    num_steps=st.integers(1, 300),
    fraction=st.floats(0, 1),
    least=st.integers(0, 50),
)
def test_the_rate_rises_in_a_line_to_its_peak_and_falls_along_a_cosine(
    num_steps: int, fraction: float, least: int
) -> None:
    config = OptimizerConfig(warmup_fraction=fraction, min_warmup_steps=least)
    factor = warmup_cosine(num_steps, config)
    values = [factor(step) for step in range(num_steps)]
    peak = values.index(max(values))
    assert values == [factor(step) for step in range(num_steps)]  # no state
    assert max(values) == 1.0
    assert all(0 < value <= 1 for value in values)
    assert peak <= num_steps // 2
    rises = [b - a for a, b in itertools.pairwise(values[: peak + 1])]
    assert all(math.isclose(rise, 1 / (peak + 1), abs_tol=1e-9) for rise in rises)
    after = values[peak:]
    assert after == sorted(after, reverse=True)
    assert factor(num_steps) == pytest.approx(0.0)
    assert factor(num_steps + 100) == pytest.approx(0.0)


def test_the_cosine_is_torchs() -> None:
    config = OptimizerConfig(warmup_fraction=0.0)
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert warmup_cosine(20, config)(step) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


def test_set_rates_scales_every_peak() -> None:
    model = Parts()
    optimizer = adamw(parts_of(model), dict.fromkeys(parts_of(model), 2.0), OptimizerConfig())
    for factor in (0.5, 0.25, 1.0):  # of the peak, never of the rate before
        rates = set_rates(optimizer, factor)
        assert set(rates.values()) == {2.0 * factor}
        assert {group["lr"] for group in optimizer.param_groups} == {2.0 * factor}


@pytest.mark.parametrize(
    "fields",
    [
        {"weight_decay": -0.1},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"eps": 0.0},
        {"warmup_fraction": 1.5},
        {"min_warmup_steps": -1},
        {"grad_clip": -1.0},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(fields: dict[str, float]) -> None:
    (name,) = fields
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} "):
        OptimizerConfig(**fields)  # type: ignore[arg-type]
