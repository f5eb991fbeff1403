"""The student starts as the extractor, sees what it saw, and trains all that its features need."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mstar.errors import ConfigError, WeightsError
from mstar.models import student as student_module
from mstar.models.encoder_table import ENCODERS, timm_call
from mstar.models.patch_encoders import load_encoder, prepare_weights
from mstar.models.student import (
    Student,
    StudentConfig,
    build_student,
    initial_weights,
    resize_images,
    set_activation_checkpointing,
    set_drop_path,
    unreached_parameters,
)
from mstar.models.torchvision_ops import import_timm
from support.micro_student import DIM, SIDE, TARGET, build_micro, micro_spec, micro_student

MICRO = ENCODERS["vit_micro"]


def noise(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def smooth(count: int, side: int) -> np.ndarray:
    """Gradients of colour, where resizing by another kernel would show."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    waves = [np.sin(6 * rows + k) * np.cos(9 * columns - k) for k in range(3 * count)]
    return np.uint8(np.stack(waves, -1).reshape(side, side, count, 3).transpose(2, 0, 1, 3) * 127.5)


@pytest.fixture(scope="module")
def weights() -> Any:
    return prepare_weights("vit_micro", "random:3")


@pytest.mark.parametrize("side", [64, 96, 256])
def test_it_starts_with_the_features_of_the_extractor(side: int, weights: Any) -> None:
    """Also where the stored side differs: by the extractor's own kernel."""
    patches = noise(4, side)
    encoder = load_encoder("vit_micro", weights=weights, device="cpu", batch_size=4)
    expected = encoder.encode(np.stack([encoder.prepare(patch) for patch in patches]))
    student = build_student("vit_micro", weights, target_dim=TARGET).eval()
    with torch.no_grad():
        found = student(student.prepare(torch.from_numpy(patches)))
    np.testing.assert_allclose(found.features.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert found.projected.shape == (4, TARGET)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("make", [noise, smooth])
@pytest.mark.parametrize(("side", "size"), [(96, 64), (256, 224), (50, 64), (512, 224)])
def test_the_kernel_of_other_devices_is_nearly_that_of_the_features(
    side: int, size: int, make: Any, interpolation: str
) -> None:
    patches = torch.from_numpy(make(2, side))
    exact = resize_images(patches, size, interpolation).int()
    planes = patches.permute(0, 3, 1, 2)
    other = student_module._resize_as_float(planes, size, interpolation)
    apart = (other.permute(0, 2, 3, 1).int() - exact).abs()
    assert int(apart.max()) <= 2
    assert float((apart > 0).float().mean()) < 0.06
    assert float((apart > 1).float().mean()) < 0.001


def test_other_weights_are_refused_unless_allowed(
    weights: Any, caplog: pytest.LogCaptureFixture
) -> None:
    same = initial_weights("vit_micro", "random:3", expected_sha256=weights.sha256)
    assert same.sha256 == weights.sha256
    with pytest.raises(WeightsError, match=f"{weights.sha256}.*--allow-other-weights"):
        initial_weights("vit_micro", "random:4", expected_sha256=weights.sha256)
    with pytest.raises(WeightsError, match="not recorded"):
        initial_weights("vit_micro", "random:3", expected_sha256="")
    with caplog.at_level(logging.WARNING, logger="mstar.student"):
        other = initial_weights(
            "vit_micro", "random:4", expected_sha256=weights.sha256, allow_other=True
        )
    assert other.sha256 != weights.sha256
    assert weights.sha256 in caplog.text


def test_another_transform_than_that_of_the_features_is_refused(weights: Any) -> None:
    known = {"expected_sha256": weights.sha256, "expected_transform": MICRO.transform}
    initial_weights("vit_micro", "random:3", **known)
    known["expected_transform"] = replace(MICRO, interpolation="bicubic").transform
    with pytest.raises(ConfigError, match="made with the transform resize 64 bicubic"):
        initial_weights("vit_micro", "random:3", **known)


def test_it_is_the_same_everywhere_and_leaves_the_generator_alone(weights: Any) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one = build_student("vit_micro", weights, target_dim=TARGET, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    two = build_student("vit_micro", weights, target_dim=TARGET, seed=5)
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)
    other = build_student("vit_micro", weights, target_dim=TARGET, seed=6)
    assert not torch.equal(one.proj.weight, other.proj.weight)
    assert one.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in one.parameters())
    assert {name for name in one.state_dict() if "encoder" not in name} == {
        "proj.weight",
        "proj.bias",
    }


def third_block(module: nn.Module, images: Tensor) -> Tensor:
    """Features that neither the last block nor the last norm takes part in."""
    tokens: Tensor = module.get_intermediate_layers(images, n=[1])[0].mean(1)  # type: ignore[operator]
    return tokens


def test_parameters_without_influence_are_frozen_and_named(
    weights: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert unreached_parameters(MICRO) == []
    monkeypatch.setitem(ENCODERS, "vit_micro", replace(MICRO, forward=third_block))
    with caplog.at_level(logging.WARNING, logger="mstar.student"):
        student = build_student("vit_micro", weights, target_dim=TARGET)
    frozen = {name for name, p in student.encoder.named_parameters() if not p.requires_grad}
    last = ("blocks.2.", "blocks.3.", "norm.")
    assert frozen == {n for n, _ in student.encoder.named_parameters() if n.startswith(last)}
    assert "norm.weight" in caplog.text
    output = student(student.prepare(torch.from_numpy(noise(2, 64))))
    output.projected.sum().backward()
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)


def normed(**_: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 96, 64), nn.BatchNorm2d(96), nn.Flatten())


def test_batch_normalisation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "normed", replace(MICRO, name="normed", build=normed))
    found = prepare_weights("normed", "random:0")
    with pytest.raises(ConfigError, match="batch normalisation"):
        build_student("normed", found, target_dim=TARGET)


def test_drop_path_acts_in_training_alone_and_leaves_no_trace_in_the_state() -> None:
    images = torch.from_numpy(noise(16, SIDE))
    student, plain = micro_student(drop_path=0.5), micro_student()
    assert student.state_dict().keys() == plain.state_dict().keys()
    assert [float(b.drop_path1.drop_prob) for b in student.encoder.blocks] == [0.0, 0.25, 0.5]
    first, second = (student(student.prepare(images)).features for _ in range(2))
    assert not torch.allclose(first, second)
    torch.testing.assert_close(
        student.eval()(student.prepare(images)).features,
        plain.eval()(plain.prepare(images)).features,
    )
    with pytest.raises(ConfigError, match="no blocks"):
        set_drop_path(nn.Linear(2, 2), 0.1)
    with pytest.raises(ConfigError, match="--drop-path"):
        StudentConfig(drop_path=1.0)


def test_activation_checkpointing_gives_the_same_gradients_from_fewer_activations() -> None:
    images = torch.from_numpy(noise(4, SIDE))
    held: dict[bool, int] = {}
    gradients = {}
    for on in (False, True):
        student = micro_student()
        set_activation_checkpointing(student.encoder, on)
        count = 0

        def keep(one: Tensor) -> Tensor:
            nonlocal count
            count += one.numel()
            return one

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
            output = student(student.prepare(images))
        held[on] = count
        output.projected.square().sum().backward()
        gradients[on] = [p.grad for p in student.parameters()]
    torch.testing.assert_close(gradients[True], gradients[False])
    assert held[True] < 0.5 * held[False]
    set_activation_checkpointing(nn.Linear(2, 2), False)
    with pytest.raises(ConfigError, match="set_grad_checkpointing"):
        set_activation_checkpointing(nn.Linear(2, 2), True)


def test_the_projection_is_computed_in_float32_under_autocast() -> None:
    student = micro_student()
    with torch.autocast("cpu", torch.bfloat16):
        output = student(student.prepare(torch.from_numpy(noise(2, SIDE))))
    assert output.projected.dtype == torch.float32
    expected = output.features.float() @ student.proj.weight.T + student.proj.bias
    torch.testing.assert_close(output.projected, expected)


def test_every_timm_encoder_of_the_table_says_how_timm_makes_it() -> None:
    timm = import_timm()
    for name in ("mstar", "vit_tiny", "vit_micro", "resnet50"):
        spec = ENCODERS[name]
        with torch.device("meta"):
            model = eval(timm_call(spec), {"timm": timm})
            assert model.state_dict().keys() == spec.build().state_dict().keys()
    assert timm_call(ENCODERS["mstar"]) == (
        "timm.create_model('vit_large_patch16_224', img_size=224, patch_size=16, "
        "init_values=1e-05, dynamic_img_size=True, num_classes=0)"
    )
    assert timm_call(micro_spec()) == ""


@pytest.mark.slow
def test_a_compiled_student_computes_the_same() -> None:
    images = torch.from_numpy(noise(2, SIDE))
    plain = micro_student()
    compiled = Student(
        micro_spec(), build_micro(), target_dim=TARGET, compiled=True
    )  # compiled at its first call
    compiled.load_state_dict(plain.state_dict())
    torch.testing.assert_close(
        compiled(compiled.prepare(images)).features,
        plain(plain.prepare(images)).features,
        rtol=1e-4,
        atol=1e-4,
    )
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert compiled.proj.in_features == DIM
