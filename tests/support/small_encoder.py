"""A patch encoder that takes no time: `--encoder support.small_encoder:encoder`."""

from functools import partial

from torch import Tensor, nn

from mstar.models.encoder_spec import EncoderSpec

INPUT_PX, DIM = 64, 24


def build() -> nn.Module:
    """Sees blocks of 8 px, in colour."""
    return nn.Conv2d(3, DIM, 8, stride=8)


def forward(module: nn.Module, images: Tensor) -> Tensor:
    """How much every filter varies, against the others: another texture is another vector."""
    spread = module(images).flatten(2).std(dim=2).log()
    return spread - spread.mean(dim=1, keepdim=True)


def encoder() -> EncoderSpec:
    return EncoderSpec(
        name="small",
        dim=DIM,
        build=partial(build),
        input_px=INPUT_PX,
        licence="Apache-2.0",
        default_weights="random:0",
        forward=forward,
    )
