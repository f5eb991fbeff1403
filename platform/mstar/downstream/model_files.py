"""Trained heads on disk: one safetensors file, its description in its metadata and beside it.

    <name>.safetensors   the head's tensors, and what it said about the part that selected it
    <name>.json          the same description, for people and other tools

A file appears whole, so a fit that has one is finished.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mstar import __version__
from mstar.config import to_dict, to_json
from mstar.downstream.config import POOLED_HEADS, TrialConfig
from mstar.downstream.trainer import EpochRow, FitResult
from mstar.errors import WeightsError
from mstar.models.heads import GeneLayout, build_head
from mstar.storage import objects

SCHEMA_VERSION = 1
SUFFIX = ".safetensors"
_METADATA = "mstar"
_SELECT = "selection.scores"  # beside the head's tensors
_HEAD = "head."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SavedModel:
    """A model that was read: the fit, and what was written down with it."""

    uri: str
    fit: FitResult
    facts: Mapping[str, Any]


def save_fit(uri: str, fit: FitResult, facts: Mapping[str, Any], *, beside: bool = True) -> None:
    """Write a fit whole; `beside` adds the JSON file."""
    assert uri.endswith(SUFFIX)
    described = {
        "schema_version": SCHEMA_VERSION,
        "mstar_version": __version__,
        "model_digest": model_digest(fit),
        "fit": _description(fit),
        "facts": to_dict(facts),
    }
    tensors = {f"{_HEAD}{name}": tensor.contiguous() for name, tensor in fit.best_state.items()}
    tensors[_SELECT] = torch.from_numpy(np.ascontiguousarray(fit.select_scores))
    data = save(tensors, {_METADATA: json.dumps(described, sort_keys=True)})
    if beside:  # first, so that whoever sees the weights sees both
        objects.write_whole(uri.removesuffix(SUFFIX) + ".json", to_json(described).encode())
    objects.write_whole(uri, data)


def load_fit(uri: str) -> SavedModel:
    """Read a fit.

    Raises:
        WeightsError: there is none, or it is not one of ours.
    """
    try:
        tensors, described = _read(uri)
        config = TrialConfig(**described["fit"].pop("config"))
        history = tuple(EpochRow(**row) for row in described["fit"].pop("history"))
        genes = _layout(described["fit"].pop("genes", None))
    except FileNotFoundError as error:
        raise WeightsError(f"{uri}: no such model. Give the folder of a finished study.") from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{uri}: expected a trained head of this package, got {error}. Train it again."
        ) from error
    scores = tensors.pop(_SELECT).numpy()
    state = {name.removeprefix(_HEAD): tensor for name, tensor in tensors.items()}
    fit = FitResult(
        **described["fit"],
        config=config,
        history=history,
        genes=genes,
        best_state=state,
        select_scores=scores,
    )
    return SavedModel(uri=uri, fit=fit, facts=described["facts"])


def make_head(fit: FitResult, device: torch.device | str = "cpu") -> nn.Module:
    """The trained head, ready to evaluate."""
    if not fit.best_state:
        raise WeightsError(
            f"head {fit.config.head}: it has no model: {fit.failed or 'not trained'}"
        )
    head = build_head(
        fit.config.head,
        fit.config.head_options,
        input_dim=fit.input_dim,
        num_outputs=fit.num_outputs,
        genes=fit.genes,
    )
    head.load_state_dict(fit.best_state)
    return head.to(device).eval()


def is_pooled(fit: FitResult) -> bool:
    """Whether the head may be given the means of bags in place of their rows."""
    return fit.config.head in POOLED_HEADS


def model_digest(fit: FitResult) -> str:
    """The sha256 of configuration and tensors."""
    hasher = hashlib.sha256(to_json(fit.config).encode())
    for name in sorted(fit.best_state):
        tensor = fit.best_state[name].contiguous()
        hasher.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        hasher.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def _description(fit: FitResult) -> dict[str, Any]:
    """All of a fit but its arrays."""
    names = [name for name in FitResult.__slots__ if name not in ("best_state", "select_scores")]
    values = {name: getattr(fit, name) for name in names}
    values["history"] = [asdict(row) for row in fit.history]
    if not fit.best_state:
        values["best_score"] = None  # JSON has no infinity
    genes = None if fit.genes is None else to_dict(fit.genes)
    return {**values, "genes": genes, "config": to_dict(fit.config)}


def _layout(found: Mapping[str, Any] | None) -> GeneLayout | None:
    """What a head that reads genes was built for, from JSON."""
    return None if found is None else GeneLayout(**{**found, "groups": tuple(found["groups"])})


def _read(uri: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if objects.is_local(uri):
        path = objects.local_path(uri)
        with safe_open(path, "pt") as file:
            text = file.metadata()[_METADATA]
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    else:
        data = objects.read_bytes(uri)
        tensors, text = _parse(data)
    described = json.loads(text)
    if described["schema_version"] > SCHEMA_VERSION:
        raise WeightsError(f"{uri}: schema {described['schema_version']} is newer. Update mstar.")
    if described["fit"]["best_score"] is None:
        described["fit"]["best_score"] = float("-inf")
    return tensors, described


def _parse(data: bytes) -> tuple[dict[str, Tensor], str]:
    """Tensors and metadata of a file in memory, whose header is JSON behind its length."""
    from safetensors.torch import load

    length = int.from_bytes(data[:8], "little")
    return load(data), json.loads(data[8 : 8 + length])["__metadata__"][_METADATA]
