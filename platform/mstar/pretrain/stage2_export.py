"""What stage 2 leaves behind: an encoder that plain timm loads, its projection, and a model card.

    encoder.pth, encoder.safetensors    the same tensors under timm's names; strict=True
    projection.safetensors              proj.weight, proj.bias: from features to the teacher's space
    model_card.md                       how to load it, counts, settings, metrics, licence

`encoder.safetensors` and `projection.safetensors` carry the record of the run in their metadata
(key `mstar`). A projection trained on standardised targets is folded back, so that it always leads
to the targets as the teacher gives them, which zero-shot compares with text.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mstar import __version__
from mstar.config import to_dict
from mstar.losses.self_taught import TargetStatistics
from mstar.models.encoder_table import find_encoder
from mstar.models.projection import PROJECTION
from mstar.models.state_dicts import state_sha256
from mstar.models.student import Student
from mstar.models.weights import file_sha256
from mstar.pretrain.stage2_card import model_card
from mstar.storage import objects
from mstar.training.tracker import Tracker

ENCODER_PTH, ENCODER, CARD = "encoder.pth", "encoder.safetensors", "model_card.md"
_METADATA = "mstar"
_SMALLEST_STD = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFacts:
    """What an export says of itself.

    encoder: name of the encoder in the table; initial_uri, initial_sha256: of its first weights.
    step: optimiser steps done. branch: student or ema.
    counts: patches, slides, cases and so on that it was trained on, by name.
    config: settings of the run. metrics: the last ones. provenance: digests of what it came from.
    generated: whether the training data were generated rather than real.
    """

    encoder: str
    initial_uri: str
    initial_sha256: str
    step: int
    branch: str = "student"
    counts: Mapping[str, int] = field(default_factory=dict)
    config: Any = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    generated: bool = False


def export(
    out: str,
    student: Student,
    facts: ExportFacts,
    *,
    encoder: nn.Module | None = None,
    statistics: TargetStatistics | None = None,
) -> dict[str, str]:
    """Write encoder, projection and card, each whole; rank 0 calls it. Equal runs, equal bytes.

    Args:
        out: folder, local or s3://.
        student: whose projection, and encoder, are written.
        facts: what it says of itself.
        encoder: written instead of the student's: the EMA copy's module.
        statistics: of the targets, when the loss standardised them.

    Returns:
        The sha256 of each weights file by its name.
    """
    state = own_tensors(student.encoder if encoder is None else encoder)
    projection = folded_projection(student.proj, statistics)
    record = _record(facts, state)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.save(state, folder / ENCODER_PTH)
        _save_with_record(state, folder / ENCODER, {**record, "kind": "patch_encoder"})
        _save_with_record(projection, folder / PROJECTION, {**record, "kind": "projection"})
        names = (ENCODER_PTH, ENCODER, PROJECTION)
        hashes = {name: file_sha256(folder / name) for name in names}
        for name in names:
            objects.put_file(folder / name, objects.join(out, name))
    card = model_card(record, hashes)
    objects.write_whole(objects.join(out, CARD), card.encode())
    return hashes


def register(
    tracker: Tracker, out: str, name: str, facts: ExportFacts, hashes: Mapping[str, str]
) -> None:
    """Log the card as an artifact and the encoder as a version in the tracker's model registry."""
    card = objects.read_bytes(objects.join(out, CARD)).decode()
    tracker.log_text(card, CARD)
    if not name:
        return
    spec = find_encoder(facts.encoder)
    numbers = {f"metric.{key}": f"{value:.6g}" for key, value in sorted(facts.metrics.items())}
    tags = {
        "encoder": facts.encoder,
        "branch": facts.branch,
        "step": facts.step,
        "sha256": hashes[ENCODER],
        "initial_sha256": facts.initial_sha256,
        "licence": spec.licence,
        "data": "generated" if facts.generated else "real",
        "mstar": __version__,
        **numbers,
    }
    description = f"Patch encoder after stage 2, {facts.step:,} steps. Files: {out}"
    tracker.log_model(name, objects.join(out, ENCODER), tags=tags, description=description)


def read_record(path: Path) -> dict[str, Any]:
    """What an exported file says of the run that made it; empty when it says nothing."""
    with safe_open(path, framework="pt") as file:
        found: dict[str, Any] = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
    return found


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state dict in memory of its own: an engine's parameters are views of one large buffer."""
    return {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in module.state_dict().items()
    }


def folded_projection(
    projection: nn.Linear, statistics: TargetStatistics | None
) -> dict[str, Tensor]:
    """Weight and bias that lead to the targets as they were before they were standardised."""
    state = own_tensors(projection)
    weight, bias = state["weight"], state["bias"]
    if statistics is not None:
        std = statistics.std.cpu().clamp(min=_SMALLEST_STD)
        weight, bias = weight * std[:, None], bias * std + statistics.mean.cpu()
    return {"proj.weight": weight, "proj.bias": bias}


def _record(facts: ExportFacts, state: Mapping[str, Tensor]) -> dict[str, Any]:
    spec = find_encoder(facts.encoder)
    return {
        **to_dict(facts),
        "mstar": __version__,
        "dim": spec.dim,
        "transform": spec.transform,
        "licence": spec.licence,
        "licence_url": spec.licence_url,
        "state_sha256": state_sha256(state),
        "num_parameters": sum(value.numel() for value in state.values()),
    }


def _save_with_record(state: dict[str, Tensor], path: Path, record: Mapping[str, Any]) -> None:
    # one key, sorted inside: the order of several is random, and equal exports are equal bytes
    save_file(state, path, {_METADATA: json.dumps(record, sort_keys=True, default=str)})
