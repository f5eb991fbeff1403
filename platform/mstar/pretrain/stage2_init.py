"""`stage2 --init-from`: a run that starts with the encoder and projection of a finished one.

The shards still name the weights that made their features, and --weights gives those: the targets
are of that encoder's patches. What is trained starts from the finished run, and so do its average
and the probe that drift is measured on: drift is then what the new run adds.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mstar.errors import ConfigError, WeightsError
from mstar.losses.self_taught import TargetStatistics
from mstar.models.projection import PROJECTION, load_projection
from mstar.models.state_dicts import match_state, read_state
from mstar.models.student import Student
from mstar.pretrain.stage2_export import ENCODER
from mstar.storage import objects

STAGE2_FACTS = "stage2.json"
_SMALLEST_STD = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A finished stage 2 to go on from.

    facts: its stage2.json.
    sha256: of its encoder and projection together.
    """

    folder: str
    facts: Mapping[str, Any]
    sha256: str

    @property
    def encoder(self) -> str:
        """Name of its encoder."""
        return str(self.facts["facts"]["encoder"])

    @property
    def shards(self) -> str:
        """Where the shards lay that it was trained on."""
        return str(self.facts["facts"]["config"]["shards"])


def read_start(init_from: str, out: str, encoder: str) -> Start | None:
    """The run that `--init-from` names; None without.

    Raises:
        ConfigError: it is no stage 2, has not ended, is this run's own output, or is of another
            encoder than the shards.
    """
    if not init_from:
        return None
    uri = objects.join(init_from, STAGE2_FACTS)
    facts = json.loads(objects.read_bytes(uri)) if objects.exists(uri) else None
    if facts is None or not facts.get("complete"):
        state = "nothing" if facts is None else "a run that has not ended"
        raise ConfigError(
            f"--init-from {init_from}: expected the output of a finished `mstar stage2`, got "
            f"{state}."
        )
    if init_from.rstrip("/") == out.rstrip("/"):
        raise ConfigError(f"--init-from {init_from}: expected another folder than --out.")
    digest = hashlib.sha256()
    for name in (ENCODER, PROJECTION):
        digest.update(objects.read_bytes(objects.join(init_from, name)))
    start = Start(folder=init_from, facts=facts, sha256=digest.hexdigest())
    if start.encoder != encoder:
        raise ConfigError(
            f"--init-from {init_from}: expected the encoder of the shards, {encoder}, got "
            f"{start.encoder}."
        )
    return start


def initialise(student: Student, folder: str, statistics: TargetStatistics | None) -> None:
    """Put a finished run's encoder and projection into a student.

    statistics: of the targets, where the loss standardises them: the exported projection leads to
    the targets as they are.

    Raises:
        WeightsError: they do not fit.
    """
    with _local(objects.join(folder, ENCODER)) as path:
        raw = read_state(path)
        matched = match_state(student.encoder, raw, ignored_keys=(), source=str(path))
        student.encoder.load_state_dict(matched.state)
    with _local(objects.join(folder, PROJECTION)) as path:
        before = load_projection(path)
    if before.weight.shape != student.proj.weight.shape:
        raise WeightsError(
            f"--init-from {folder}: its projection leads to {before.out_features} numbers, the "
            f"targets of these shards have {student.proj.out_features}. Give shards of an "
            "aggregator of the same length."
        )
    with torch.no_grad():
        weight, bias = _standardised(before, statistics)
        student.proj.weight.copy_(weight)
        student.proj.bias.copy_(bias)


def _standardised(
    projection: nn.Linear, statistics: TargetStatistics | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias that lead to standardised targets, where those are trained on."""
    weight, bias = projection.weight, projection.bias
    if statistics is None:
        return weight, bias
    std = statistics.std.cpu().clamp(min=_SMALLEST_STD)
    return weight / std[:, None], (bias - statistics.mean.cpu()) / std


@contextmanager
def _local(uri: str) -> Iterator[Path]:
    """A file on this machine, or a copy of it for as long as the block runs."""
    if objects.is_local(uri):
        yield objects.local_path(uri)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, uri.rpartition("/")[2])
        path.write_bytes(objects.read_bytes(uri))
        yield path
