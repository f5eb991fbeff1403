"""An encoder of one's own, as `--encoder support.broken_encoder:encoder` names it; it fails."""

from torch import Tensor, nn

from mstar.models.encoder_spec import EncoderSpec


def forward(module: nn.Module, images: Tensor) -> Tensor:
    """Works on the meta device, where shapes are checked, and nowhere else."""
    if images.device.type == "meta":
        return images.mean(dim=(2, 3))
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def encoder() -> EncoderSpec:
    return EncoderSpec(
        name="broken",
        dim=3,
        build=lambda: nn.Conv2d(3, 3, 1),
        licence="Apache-2.0",
        default_weights="random:0",
        forward=forward,
    )
