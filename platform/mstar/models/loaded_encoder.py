"""A loaded patch encoder: uint8 batches in, float32 vectors out, on a CPU or a GPU."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from mstar.errors import ConfigError, FeatureError
from mstar.models.cuda_batches import CudaBatches, PendingCudaBatch
from mstar.models.encoder_spec import EncoderSpec, PendingFeatures
from mstar.models.torchvision_ops import import_timm
from mstar.models.transforms import normalise, resize_patch, scale_and_shift
from mstar.models.weights import ResolvedWeights

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a loaded encoder computes, with every `auto` decided."""

    device: torch.device
    precision: str
    compiled: bool
    batch_size: int


@dataclass(frozen=True, slots=True)
class DoneFeatures:
    """The features of a batch that was computed at once, on a CPU."""

    features: Float32[np.ndarray, "batch dim"]

    def result(self) -> Float32[np.ndarray, "batch dim"]:
        """The features."""
        return self.features


class CheckedFeatures:
    """Pending features that are looked at, once, before anyone may store them."""

    def __init__(self, pending: DoneFeatures | PendingCudaBatch, encoder: "LoadedEncoder") -> None:
        """`encoder` says what to expect, and what to advise."""
        self._pending = pending
        self._encoder = encoder

    def result(self) -> Float32[np.ndarray, "batch dim"]:
        """Wait for the batch and return its features.

        Raises:
            FeatureError: some are infinite or not a number.
        """
        features = self._pending.result()
        if not np.isfinite(features).all():
            runtime = self._encoder.runtime()
            raise FeatureError(
                f"encoder {self._encoder.spec.name}: {(~np.isfinite(features)).any(1).sum()} of "
                f"{len(features)} patches got infinite or undefined features in "
                f"{runtime['precision']} on {runtime['device']}. float16 can overflow: try "
                "--precision bfloat16 or float32; if it stays, the weights are damaged."
            )
        return features


class LoadedEncoder:
    """The `PatchEncoder` of every spec. `prepare` may run in many threads, `encode` in one."""

    def __init__(
        self, spec: EncoderSpec, weights: ResolvedWeights, model: nn.Module, settings: Settings
    ) -> None:
        """Use `load_encoder`."""
        self.spec = spec
        self.weights_sha256 = weights.sha256
        self._weights = weights
        self._settings = settings
        self._model = model.to(settings.device)
        self._scale, self._shift = scale_and_shift(spec, settings.device)
        self._forward = forward_of(spec, self._model, compiled=settings.compiled)
        self._shape = (settings.batch_size, spec.input_px, spec.input_px, 3)
        self._cuda: CudaBatches | None = None
        if settings.device.type == "cuda":
            if settings.precision == "float32":  # float32 means float32, also in convolutions
                torch.backends.cudnn.allow_tf32 = False
            self._cuda = CudaBatches(
                self._compute, batch_shape=self._shape, dim=spec.dim, device=settings.device
            )

    @property
    def dim(self) -> int:
        """Length of one vector."""
        return self.spec.dim

    @property
    def batch_size(self) -> int:
        """Patches of every batch."""
        return self._settings.batch_size

    @property
    def licence(self) -> str:
        """Of the weights."""
        return self.spec.licence

    def prepare(
        self, patch: UInt8[np.ndarray, "side side 3"]
    ) -> UInt8[np.ndarray, "input_px input_px 3"]:
        """One patch, resized whole to the encoder's input; thread-safe."""
        return resize_patch(patch, self.spec.input_px, self.spec.interpolation)

    def encode(
        self, batch: UInt8[np.ndarray | Tensor, "batch input_px input_px 3"]
    ) -> Float32[np.ndarray, "batch dim"]:
        """The features of one whole batch."""
        return self.encode_async(batch).result()

    def encode_async(
        self, batch: UInt8[np.ndarray | Tensor, "batch input_px input_px 3"]
    ) -> PendingFeatures:
        """Start one whole batch and return at once on a GPU; on a CPU, when it is computed.

        Keep at most two batches in flight: a third waits for the first.

        Raises:
            ConfigError: the batch does not have the shape that this encoder was loaded for.
        """
        if isinstance(batch, np.ndarray):
            images = torch.from_numpy(batch if batch.flags.writeable else batch.copy())
        else:
            images = batch
        if tuple(images.shape) != self._shape or images.dtype != torch.uint8:
            raise ConfigError(
                f"encoder {self.spec.name} takes whole batches: uint8 {self._shape}, got "
                f"{images.dtype} {tuple(images.shape)}. Resize with `prepare`, pad the last batch."
            )
        if self._cuda is not None:
            return CheckedFeatures(self._cuda.submit(images), self)
        return CheckedFeatures(DoneFeatures(self._compute(images).numpy()), self)

    def describe(self) -> dict[str, str | int]:
        """What determines the features; equal on every machine, fit for a fingerprint."""
        return {
            "encoder": self.spec.name,
            "encoder_dim": self.spec.dim,
            "encoder_code_sha256": self.spec.code_sha256,
            "weights_sha256": self.weights_sha256,
            "weights_licence": self.spec.licence,
            "transform": self.spec.transform,
            "precision": self._settings.precision,
        }

    def runtime(self) -> dict[str, str | int]:
        """How and where the features are computed; bits may depend on it, meaning does not."""
        settings, device = self._settings, self._settings.device
        on_gpu = device.type == "cuda"
        return {
            "device": device.type,
            "device_name": torch.cuda.get_device_name(device) if on_gpu else "cpu",
            "precision": settings.precision,
            "compile": int(settings.compiled),
            "batch_size": settings.batch_size,
            "threads": torch.get_num_threads(),
            "weights_uri": self._weights.uri,
            "torch": torch.__version__,
            "timm": str(import_timm().__version__),
        }

    def _compute(self, images: UInt8[Tensor, "batch height width 3"]) -> Tensor:
        """Normalise and encode on the device; float32 [batch, dim]."""
        settings = self._settings
        dtype = PRECISIONS[settings.precision]
        autocast = torch.autocast(settings.device.type, dtype, enabled=dtype != torch.float32)
        with torch.inference_mode(), autocast:
            features = self._forward(normalise(images, self._scale, self._shift))
        if tuple(features.shape) != (settings.batch_size, self.spec.dim):
            raise wrong_dim(self.spec, tuple(features.shape))
        # Contiguous: the CLS token is a view that would keep every token of the batch alive.
        return features.to(torch.float32).contiguous()


def forward_of(
    spec: EncoderSpec, model: nn.Module, *, compiled: bool = False
) -> Callable[[Tensor], Tensor]:
    """From normalised images to vectors, the spec's own way if it has one."""
    own = spec.forward

    def forward(images: Tensor) -> Tensor:
        features: Tensor = model(images) if own is None else own(model, images)
        return features

    return torch.compile(forward, dynamic=False) if compiled else forward


def wrong_dim(spec: EncoderSpec, shape: tuple[int, ...]) -> ConfigError:
    """The error for an encoder that does not give what its spec says."""
    return ConfigError(
        f"encoder {spec.name}: expected one vector of {spec.dim} per patch, got shape {shape}. "
        "Correct the spec's `dim`, or pool the tokens in its `forward`."
    )
