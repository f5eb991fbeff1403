"""The pixel path to the model against timm's own transform, on PIL images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mstar.errors import ConfigError
from mstar.models.encoder_spec import IMAGENET_MEAN, IMAGENET_STD, EncoderSpec
from mstar.models.encoder_table import find_encoder
from mstar.models.torchvision_ops import import_timm
from mstar.models.transforms import normalise, resize_patch, scale_and_shift

CPU = torch.device("cpu")


def tissue_like(side: int, seed: int = 0) -> np.ndarray:
    """Smooth colour fields with sharp edges and grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(60, 255, (side // 16 + 2, side // 16 + 2, 3), np.uint8))
    pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    pixels[side // 3 :, side // 2 :] -= 60
    return (pixels + rng.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8)


def timms_own(spec: EncoderSpec, pixels: np.ndarray) -> Tensor:
    """What timm's evaluation transform makes of a PIL image: Resize, ToTensor, Normalize."""
    import_timm()
    from timm.data import create_transform

    transform = create_transform(
        spec.input_px,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=1.0,
        is_training=False,
    )
    tensor: Tensor = transform(Image.fromarray(pixels))
    return tensor


def ours(spec: EncoderSpec, pixels: np.ndarray) -> Tensor:
    """What reaches our model."""
    small = resize_patch(pixels, spec.input_px, spec.interpolation)
    return normalise(torch.from_numpy(small)[None].clone(), *scale_and_shift(spec, CPU))[0]


@pytest.mark.parametrize("side", [100, 224, 256, 512, 1024])
@pytest.mark.parametrize(
    "name", ["mstar", "resnet50", "timm:vit_tiny_patch16_224"]
)  # bilinear and bicubic
def test_within_one_grey_level_of_timms_transform_in_few_places(name: str, side: int) -> None:
    spec = find_encoder(name)
    difference = (ours(spec, tissue_like(side)) - timms_own(spec, tissue_like(side))).abs()
    one_level = 1 / (255 * min(spec.std))
    assert difference.max() <= 1.001 * one_level
    assert (difference > 1e-5).float().mean() <= 0.01


@pytest.mark.parametrize("name", ["mstar", "timm:vit_tiny_patch16_224"])
def test_without_resize_only_rounding_differs(name: str) -> None:
    spec = find_encoder(name)
    every_value = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    images = torch.from_numpy(every_value)[None]
    found = normalise(images, *scale_and_shift(spec, CPU))[0].double()
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (spec.mean, spec.std))
    exact = (images[0].permute(2, 0, 1).double() / 255 - mean) / std
    assert (found - exact).abs().max() < 1e-6


def test_the_one_half_trap_would_be_seen() -> None:
    """A spec with the hub's leftover 0.5 / 0.5 is far from the reference: the test can fail."""
    right = find_encoder("mstar")
    difference = ours(find_encoder("timm:vit_tiny_patch16_224"), tissue_like(224))
    assert (difference - timms_own(right, tissue_like(224))).abs().max() > 0.3
    assert (right.mean, right.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_a_patch_of_the_right_size_keeps_its_pixels() -> None:
    pixels = tissue_like(224)
    for interpolation in ("bilinear", "bicubic"):
        np.testing.assert_array_equal(resize_patch(pixels, 224, interpolation), pixels)


def test_read_only_pixels_are_taken(recwarn: pytest.WarningsRecorder) -> None:
    pixels = tissue_like(256)
    pixels.flags.writeable = False
    for interpolation in ("bilinear", "bicubic"):
        assert resize_patch(pixels, 224, interpolation).shape == (224, 224, 3)
    assert not recwarn.list


def test_a_patch_that_is_not_square_is_refused() -> None:
    with pytest.raises(ConfigError, match="300 × 256"):
        resize_patch(np.zeros((256, 300, 3), np.uint8), 224, "bilinear")


def test_normalising_leaves_the_input_as_it_was() -> None:
    images = torch.from_numpy(tissue_like(224))[None]
    before = images.clone()
    normalise(images, *scale_and_shift(find_encoder("mstar"), CPU))
    assert torch.equal(images, before)
