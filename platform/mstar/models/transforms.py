"""From a patch's pixels to the model's input: resize as uint8 on the CPU, normalise on the device.

Normalisation is exactly, in float32 and in this order (no fused multiply-add, so that every element
gets the same bits wherever it lies in a batch):

    x.to(float32) * scale + shift        scale = 1 / (255 · std)        shift = -mean / std

with scale and shift computed in float64 and rounded once. It differs from `ToTensor` + `Normalize`
by rounding only (under 1e-6, tested).
"""

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from mstar.errors import ConfigError
from mstar.models.encoder_spec import EncoderSpec
from mstar.slides import kernels


def resize_patch(
    patch: UInt8[np.ndarray, "height width 3"], size_px: int, interpolation: str
) -> UInt8[np.ndarray, "size size 3"]:
    """The whole patch at size_px × size_px by the named kernel; untouched when it has that size."""
    if patch.shape[0] != patch.shape[1]:
        raise ConfigError(f"a patch is square, got {patch.shape[1]} × {patch.shape[0]} px")
    if interpolation == "bilinear":
        return kernels.resize(patch, size_px)
    if patch.shape[0] == size_px:
        return patch
    return _resize_bicubic(patch, size_px)


def scale_and_shift(
    spec: EncoderSpec, device: torch.device
) -> tuple[Float32[Tensor, "1 3 1 1"], Float32[Tensor, "1 3 1 1"]]:
    """The two constants of the normalisation, per channel."""
    mean, std = np.array(spec.mean, np.float64), np.array(spec.std, np.float64)
    scale, shift = ((1 / (255 * std)), -mean / std)
    return (
        torch.from_numpy(scale.astype(np.float32)).view(1, 3, 1, 1).to(device),
        torch.from_numpy(shift.astype(np.float32)).view(1, 3, 1, 1).to(device),
    )


def normalise(
    images: UInt8[Tensor, "batch height width 3"],
    scale: Float32[Tensor, "1 3 1 1"],
    shift: Float32[Tensor, "1 3 1 1"],
) -> Float32[Tensor, "batch 3 height width"]:
    """Channels first, normalised by the formula of the module, on the device of `images`."""
    planes = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return planes.mul_(scale).add_(shift)


def _resize_bicubic(
    patch: UInt8[np.ndarray, "side side 3"], size_px: int
) -> UInt8[np.ndarray, "size size 3"]:
    """`bicubic-aa-uint8`: torch's antialiased bicubic interpolation on uint8."""
    batch = torch.from_numpy(patch if patch.flags.writeable else patch.copy())[None]
    small = torch.nn.functional.interpolate(
        batch.permute(0, 3, 1, 2), size=(size_px, size_px), mode="bicubic", antialias=True
    )
    return np.ascontiguousarray(small[0].permute(1, 2, 0).numpy())
