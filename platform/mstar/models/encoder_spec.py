"""What a patch encoder is (`EncoderSpec`) and what a loaded one does (`PatchEncoder`).

Free of torch at import, so that a command line can list encoders at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from mstar.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Kernel names are part of the provenance: another kernel is another set of features.
RESIZE_KERNELS = {"bilinear": "bilinear-aa-uint8", "bicubic": "bicubic-aa-uint8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """One row of the table of encoders: everything but the weights.

    name: what `--encoder` takes.
    dim: length of the vector of one patch.
    build: makes the module, untrained, on torch's current default device.
    input_px: side of the square the model sees; a patch is resized to it whole, never cropped.
    mean, std: RGB normalisation on the 0…1 scale.
    interpolation: bilinear | bicubic, always antialiased.
    mpp, patch_px: resolution and patch side the encoder was trained for, before the resize.
    licence, licence_url: of the *weights*; carried into everything made with them.
    default_weights: used when the caller names none: `hf-hub:org/name`, `random:SEED`, `built-in`
        (a fixed computation, which has none), or None.
    ignored_keys: prefixes of checkpoint keys that belong to parts left out on purpose (classifier).
    forward: from module and images to vectors; None calls the module.
    pooling: how the tokens or maps of a patch become its vector, in words.
    published: from the names of the published file to the module's; None: they are the same.
    gated: whether the default weights are given to persons who accepted their terms.
    code_sha256: of the file that defines an encoder which is not ours, else empty.
    """

    name: str
    dim: int
    build: Callable[[], nn.Module]
    input_px: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    mpp: float = 0.5
    patch_px: int = 256
    licence: str
    licence_url: str = ""
    default_weights: str | None = None
    ignored_keys: tuple[str, ...] = ()
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None
    pooling: str = "as the module gives it"
    published: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    gated: bool = False
    notes: str = ""
    code_sha256: str = ""

    def __post_init__(self) -> None:
        """Refuse values that would give wrong features rather than fail."""
        if self.interpolation not in RESIZE_KERNELS:
            raise ConfigError(
                f"encoder {self.name!r}: interpolation must be one of {sorted(RESIZE_KERNELS)}, "
                f"got {self.interpolation!r}"
            )
        if self.dim < 1 or self.input_px < 1 or not self.mpp > 0 or self.patch_px < 1:
            raise ConfigError(f"encoder {self.name!r}: dim, input_px, mpp, patch_px must be > 0")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ConfigError(f"encoder {self.name!r}: mean and std are three numbers, std > 0")

    @property
    def hub_id(self) -> str | None:
        """`org/name` of the default weights when they come from the model hub."""
        source = self.default_weights or ""
        return source.removeprefix("hf-hub:") if source.startswith("hf-hub:") else None

    @property
    def transform(self) -> str:
        """The path from a patch's pixels to the model's input, in words, for the provenance."""
        kernel = RESIZE_KERNELS[self.interpolation]
        return f"resize {self.input_px} {kernel}; (x / 255 - {self.mean}) / {self.std}"


@runtime_checkable
class PendingFeatures(Protocol):
    """A batch on its way through an encoder."""

    def result(self) -> Float32[np.ndarray, "batch dim"]:
        """Wait for the batch and return its features."""
        ...


@runtime_checkable
class PatchEncoder(Protocol):
    """From uint8 patches to float32 vectors, always in whole batches of `batch_size`."""

    @property
    def spec(self) -> EncoderSpec:
        """The table row it was made from."""
        ...

    @property
    def dim(self) -> int:
        """Length of one vector."""
        ...

    @property
    def batch_size(self) -> int:
        """Patches of every call; the caller pads the last batch."""
        ...

    @property
    def weights_sha256(self) -> str:
        """Of the weights' file, or of the state dict when the weights are random."""
        ...

    @property
    def licence(self) -> str:
        """Of the weights."""
        ...

    def prepare(
        self, patch: UInt8[np.ndarray, "side side 3"]
    ) -> UInt8[np.ndarray, "input_px input_px 3"]:
        """One patch of any side, resized to the encoder's input; thread-safe."""
        ...

    def encode(
        self, batch: UInt8[np.ndarray, "batch input_px input_px 3"]
    ) -> Float32[np.ndarray, "batch dim"]:
        """The features of one whole batch."""
        ...

    def encode_async(
        self, batch: UInt8[np.ndarray, "batch input_px input_px 3"]
    ) -> PendingFeatures:
        """Start one whole batch; `batch` may be overwritten as soon as this returns."""
        ...

    def describe(self) -> Mapping[str, str | int]:
        """What determines the features; equal on every machine, fit for a fingerprint."""
        ...

    def runtime(self) -> Mapping[str, str | int]:
        """How and where they are computed: device, precision's hardware, threads, versions."""
        ...
