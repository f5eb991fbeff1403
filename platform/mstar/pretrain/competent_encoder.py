"""A competent patch encoder from nothing: trained to tell what is *not* to be found out later.

It stands for the foundation model that stage 2 starts from, where none can be had: it knows tissue
(cancer type, grade, the site's stain) and in which direction structures run, as any encoder of
tissue does, and was never told a mutation or a pathway's activity. The direction is the patch's own
(the double angle of its structure tensor, whole and in quarters, always of length 1): which one it
is tells nothing of any factor, and how strongly it is followed is not a target. Its training
patches come from patients of their own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from mstar.models.patch_encoders import find_encoder, load_model, prepare_weights
from mstar.models.transforms import normalise, scale_and_shift
from mstar.training.optimizers import OptimizerConfig, adamw, set_rates, warmup_cosine
from mstar.training.seeds import seed_of

FORBIDDEN = ("mutation", "pathway", "hazard")
DIRECTIONS = "directions"
WINDOWS = ((0, 2, 0, 2), (0, 1, 0, 1), (0, 1, 1, 2), (1, 2, 0, 1), (1, 2, 1, 2))
"""Top, bottom, left and right of each window, in halves of a patch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NuisanceTraining:
    """How the encoder is trained."""

    encoder: str = "vit_micro"
    """Name in the table of encoders; its random weights are the start."""
    steps: int = 400
    """Optimiser steps."""
    batch: int = 64
    """Patches of a step."""
    lr: float = 1e-3
    """Peak learning rate."""
    direction_weight: float = 2.0
    """Weight of the squared error of directions; 0 leaves them out."""
    class_weight: float = 0.3
    """Weight of the cross-entropy of each factor."""
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
    """Train an encoder on nuisance labels and write it as safetensors under timm's names.

    Args:
        path: of the weights.
        patches: at the encoder's input size.
        labels: factor → class of each patch.
        config: how.
        say: where progress goes.

    Returns:
        Accuracy of each factor in the last tenth of the steps, and the squared error of directions.
    """
    assert not set(labels) & set(FORBIDDEN), f"planted factors are not to be learnt: {set(labels)}"
    spec = find_encoder(config.encoder)
    weights = prepare_weights(config.encoder, f"random:{config.seed}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("nuisance", config.seed))
        encoder = load_model(spec, weights).requires_grad_(True).train()
        sizes = {name: int(values.max()) + 1 for name, values in labels.items()}
        heads = nn.ModuleDict({name: nn.Linear(spec.dim, size) for name, size in sizes.items()})
        heads[DIRECTIONS] = nn.Linear(spec.dim, 2 * len(WINDOWS))
        model = nn.ModuleDict({"encoder": encoder, "heads": heads})
        found = _train(model, patches, labels, config, say)
    save_file({name: value.contiguous() for name, value in encoder.state_dict().items()}, path)
    return found


def _train(
    model: nn.ModuleDict,
    patches: UInt8[np.ndarray, "patch side side 3"],
    labels: Mapping[str, Int64[np.ndarray, " patch"]],
    config: NuisanceTraining,
    say: Callable[[str], None],
) -> dict[str, float]:
    scale, shift = scale_and_shift(find_encoder(config.encoder), torch.device("cpu"))
    parts: dict[str, nn.Module | nn.Parameter] = {"model": model}
    optimizer = adamw(parts, {"model": config.lr}, config.optimizer)
    factor = warmup_cosine(config.steps, config.optimizer)
    rng = np.random.default_rng(seed_of("nuisance batches", config.seed))
    said: dict[str, list[float]] = {name: [] for name in (*labels, DIRECTIONS)}
    for step in range(config.steps):
        rows = rng.integers(0, len(patches), config.batch)
        images = turned(rng, patches[rows])
        features = model["encoder"](normalise(torch.from_numpy(images), scale, shift))
        wanted = {name: torch.from_numpy(values[rows]) for name, values in labels.items()}
        loss = _loss(model["heads"], features, images, wanted, config, said)  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        set_rates(optimizer, factor(step))
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == config.steps:
            recent = ", ".join(f"{name} {np.mean(v[-100:]):.2f}" for name, v in said.items())
            say(f"initial encoder: step {step + 1} of {config.steps}: {recent}")
    last = max(1, config.steps // 10)
    return {name: float(np.mean(values[-last:])) for name, values in said.items()}


def _loss(
    heads: nn.ModuleDict,
    features: Float32[Tensor, "patch dim"],
    images: UInt8[np.ndarray, "patch side side 3"],
    wanted: Mapping[str, Int64[Tensor, " patch"]],
    config: NuisanceTraining,
    said: dict[str, list[float]],
) -> Tensor:
    """The loss of a batch; accuracies and the error of directions are added to `said`."""
    error = mse_loss(heads[DIRECTIONS](features), torch.from_numpy(directions(images)))
    said[DIRECTIONS].append(float(error.detach()))
    loss = config.direction_weight * error
    for name, classes in wanted.items():
        logits = heads[name](features)
        loss = loss + config.class_weight * cross_entropy(logits, classes)
        said[name].append(float((logits.argmax(1) == classes).float().mean()))
    return loss


def directions(
    patches: UInt8[np.ndarray, "patch side side 3"],
) -> Float32[np.ndarray, "patch direction"]:
    """Cosine and sine of the double angle in which structures run, window by window."""
    grey = patches.astype(np.float32).mean(3)
    down, right = np.gradient(grey, axis=(1, 2))
    along, across = right**2 - down**2, 2 * right * down
    half, found = patches.shape[1] // 2, []
    for top, bottom, left, end in WINDOWS:
        part = (slice(None), slice(top * half, bottom * half), slice(left * half, end * half))
        pair = np.stack([along[part].mean((1, 2)), across[part].mean((1, 2))], 1)
        found.append(pair / (np.linalg.norm(pair, axis=1, keepdims=True) + 1e-6))
    return np.concatenate(found, 1).astype(np.float32)


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
