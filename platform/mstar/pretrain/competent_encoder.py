"""A competent patch encoder from nothing: it knows tissue, and was never told what is planted.

It stands for the foundation model that stage 2 starts from, where none can be had. Its training
patches come from patients of their own, and it learns from them

    tissue     the leading principal components of the fixed measures of `texture` (colour, bands,
               grain, blobs, tensors), each of unit variance: no labels, as in self-supervision
    nuisance   what a case is anyway: cancer type, grade

and nothing of mutation, pathway or hazard. A penalty keeps its features from being one another's
copies (variance and covariance, Bardes et al. 2022): without it the few loudest directions of
tissue take nearly all of the variance (effective rank 3 of 96, not 18 and more), and no aggregator
finds the rest. Training stops early, so that there is something left to be learnt.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, mse_loss

from mstar.models.patch_encoders import find_encoder, load_model, prepare_weights
from mstar.models.texture import TextureEncoder
from mstar.models.transforms import normalise, scale_and_shift
from mstar.training.optimizers import OptimizerConfig, adamw, set_rates, warmup_cosine
from mstar.training.seeds import seed_of

FORBIDDEN = ("mutation", "pathway", "hazard")
TISSUE = "tissue"
_TEXTURE_BATCH = 64
_CLIP = 4.0  # standard deviations


@dataclass(frozen=True, slots=True, kw_only=True)
class NuisanceTraining:
    """How the encoder is trained."""

    encoder: str = "vit_micro"
    """Name in the table of encoders; its random weights are the start."""
    steps: int = 60
    """Optimiser steps."""
    batch: int = 128
    """Patches of a step."""
    lr: float = 2e-3
    """Peak learning rate."""
    components: int = 40
    """Principal components of the texture measures that are to be predicted."""
    class_weight: float = 0.1
    """Weight of the cross-entropy of each nuisance factor."""
    covariance_weight: float = 0.02
    """Weight of the squared covariances between features, summed, per feature."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and its schedule."""
    seed: int = 0
    """Of weights, batches and flips."""


def train_encoder(
    path: Path,
    patches: UInt8[np.ndarray, "patch side side 3"],
    labels: Mapping[str, Int64[np.ndarray, " patch"]],
    config: NuisanceTraining,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Train an encoder on tissue and nuisance labels; write it as safetensors under timm's names.

    Args:
        path: of the weights.
        patches: at the encoder's input size.
        labels: factor → class of each patch.
        config: how.
        say: where progress goes.

    Returns:
        Accuracy of each factor in the last tenth of the steps, and the squared error of tissue.
    """
    assert not set(labels) & set(FORBIDDEN), f"planted factors are not to be learnt: {set(labels)}"
    spec = find_encoder(config.encoder)
    weights = prepare_weights(config.encoder, f"random:{config.seed}")
    wanted = {name: torch.from_numpy(values) for name, values in labels.items()}
    wanted[TISSUE] = torch.from_numpy(components_of(texture_of(patches), config.components))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("nuisance", config.seed))
        encoder = load_model(spec, weights).requires_grad_(True).train()
        sizes = {name: int(values.max()) + 1 for name, values in labels.items()}
        sizes[TISSUE] = wanted[TISSUE].shape[1]
        heads = nn.ModuleDict({name: nn.Linear(spec.dim, size) for name, size in sizes.items()})
        model = nn.ModuleDict({"encoder": encoder, "heads": heads})
        found = _train(model, patches, wanted, config, say)
    save_file({name: value.contiguous() for name, value in encoder.state_dict().items()}, path)
    return found


def _train(
    model: nn.ModuleDict,
    patches: UInt8[np.ndarray, "patch side side 3"],
    wanted: Mapping[str, Tensor],
    config: NuisanceTraining,
    say: Callable[[str], None],
) -> dict[str, float]:
    scale, shift = scale_and_shift(find_encoder(config.encoder), torch.device("cpu"))
    parts: dict[str, nn.Module | nn.Parameter] = {"model": model}
    optimizer = adamw(parts, {"model": config.lr}, config.optimizer)
    factor = warmup_cosine(config.steps, config.optimizer)
    rng = np.random.default_rng(seed_of("nuisance batches", config.seed))
    said: dict[str, list[float]] = {name: [] for name in wanted}
    for step in range(config.steps):
        rows = rng.integers(0, len(patches), config.batch)
        images = torch.from_numpy(turned(rng, patches[rows]))
        features = model["encoder"](normalise(images, scale, shift))
        asked = {name: values[rows] for name, values in wanted.items()}
        loss = _loss(model["heads"], features, asked, config, said)  # type: ignore[arg-type]
        loss = loss + _sameness(features, config.covariance_weight)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        set_rates(optimizer, factor(step))
        optimizer.step()
        if (step + 1) % 20 == 0 or step + 1 == config.steps:
            recent = ", ".join(f"{name} {np.mean(v[-20:]):.2f}" for name, v in said.items())
            say(f"initial encoder: step {step + 1} of {config.steps}: {recent}")
    last = max(1, config.steps // 10)
    return {name: float(np.mean(values[-last:])) for name, values in said.items()}


def _loss(
    heads: nn.ModuleDict,
    features: Float32[Tensor, "patch dim"],
    wanted: Mapping[str, Tensor],
    config: NuisanceTraining,
    said: dict[str, list[float]],
) -> Tensor:
    """The loss of a batch; accuracies and the error of tissue are added to `said`."""
    loss = mse_loss(heads[TISSUE](features), wanted[TISSUE])
    said[TISSUE].append(float(loss.detach()))
    for name, classes in wanted.items():
        if name == TISSUE:
            continue
        logits = heads[name](features)
        loss = loss + config.class_weight * cross_entropy(logits, classes)
        said[name].append(float((logits.argmax(1) == classes).float().mean()))
    return loss


def _sameness(features: Float32[Tensor, "patch dim"], weight: float) -> Tensor:
    """How far features fall short of a standard deviation of 1, and tell the same thing."""
    centred = features - features.mean(0)
    covariance = centred.T @ centred / (len(centred) - 1)  # [D, D]
    variance = covariance.diagonal()
    short = torch.relu(1 - variance.clamp_min(1e-4).sqrt()).mean()
    beside = (covariance - torch.diag(variance)).square().sum() / features.shape[1]
    total: Tensor = short + weight * beside
    return total


@torch.no_grad()
def texture_of(
    patches: UInt8[np.ndarray, "patch side side 3"],
) -> Float32[np.ndarray, "patch measure"]:
    """The measures of `texture`, of patches enlarged to its input size; a turn changes none."""
    encoder, spec = TextureEncoder().eval(), find_encoder("texture")
    scale, shift = scale_and_shift(spec, torch.device("cpu"))
    rows = []
    for first in range(0, len(patches), _TEXTURE_BATCH):
        part = torch.from_numpy(patches[first : first + _TEXTURE_BATCH])
        images = normalise(part, scale, shift)
        large = interpolate(images, size=(spec.input_px, spec.input_px), mode="bilinear")
        rows.append(encoder(large).numpy())
    return np.concatenate(rows)


def components_of(
    measures: Float32[np.ndarray, "patch measure"], count: int
) -> Float32[np.ndarray, "patch component"]:
    """The leading principal components of standardised measures, each of unit variance, clipped.

    Fewer where the measures do not vary in as many ways.
    """
    spread = measures.astype(np.float64)
    spread = ((spread - spread.mean(0)) / (spread.std(0) + 1e-6)).clip(-_CLIP, _CLIP)
    spread -= spread.mean(0)
    variance, ways = np.linalg.eigh(np.cov(spread.T))
    order = np.argsort(-variance)[:count]
    order = order[variance[order] > 1e-6]
    made: Float32[np.ndarray, "patch component"] = (
        (spread @ ways[:, order] / np.sqrt(variance[order])).clip(-_CLIP, _CLIP).astype(np.float32)
    )
    return made


def turned(
    rng: np.random.Generator, patches: UInt8[np.ndarray, "patch side side 3"]
) -> UInt8[np.ndarray, "patch side side 3"]:
    """Each patch turned and mirrored at random: none of the factors depends on it."""
    quarter, mirror = rng.integers(0, 4, len(patches)), rng.integers(0, 2, len(patches))
    made = [
        np.rot90(p[:, ::-1] if m else p, q)
        for p, q, m in zip(patches, quarter, mirror, strict=True)
    ]
    return np.ascontiguousarray(np.stack(made))
