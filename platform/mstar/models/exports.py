"""Weights files with a record of what they are: config and provenance in the file itself.

The JSON beside it is the same, for people and other tools.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from mstar import __version__
from mstar.config import to_dict
from mstar.errors import WeightsError
from mstar.models.state_dicts import read_state
from mstar.models.weights import SUFFIXES
from mstar.storage import objects

AGGREGATOR, TEXT_ENCODER, GENE_ENCODER = "aggregator", "text_encoder", "gene_encoder"
SCHEMA_VERSION = 1
_METADATA = "mstar"


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A weights file that was read: where, its tensors, and what it says of itself.

    record: the config and provenance; empty for files that are not of this platform.
    """

    uri: str
    tensors: Mapping[str, Any]
    record: Mapping[str, Any]


def read_export(where: str, kind: str) -> Export:
    """Read a weights file, given itself or its folder, with the record it carries.

    Raises:
        WeightsError: nothing is there, or it cannot be read.
    """
    is_file = PurePosixPath(where).suffix in SUFFIXES
    uri = where if is_file else objects.join(where, f"{kind}.safetensors")
    with _on_disk(uri) as path:
        tensors, record = read_state(path), {}
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                record = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
    if record and record["kind"] != kind:
        raise WeightsError(f"{uri}: expected {_named(kind)}, got {_named(record['kind'])}.")
    if record and record["schema_version"] > SCHEMA_VERSION:
        raise WeightsError(
            f"{uri}: written in format {record['schema_version']}, known here up to "
            f"{SCHEMA_VERSION}. Load it with the mstar that wrote it ({record['mstar']})."
        )
    return Export(uri=uri, tensors=tensors, record=record)


def save_export(
    folder: str,
    kind: str,
    model: nn.Module,
    config: Any,
    more: Mapping[str, Any],
    provenance: Mapping[str, Any] | None,
) -> str:
    """Weights first, and in them all that the JSON says."""
    record = {
        "kind": kind,
        "schema_version": SCHEMA_VERSION,
        "mstar": __version__,
        "config": to_dict(config),
        "provenance": to_dict(provenance or {}),
        **more,
    }
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    uri = objects.join(folder, f"{kind}.safetensors")
    # without line breaks and sorted, so that equal exports are equal bytes
    objects.write_whole(uri, save(state, {_METADATA: json.dumps(record, sort_keys=True)}))
    text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    objects.write_whole(objects.join(folder, f"{kind}.json"), text.encode())
    return uri


def refuse_foreign(export: Export, kind: str) -> Export:
    """The export itself, if this platform wrote it.

    Raises:
        WeightsError: it carries no record.
    """
    if not export.record:
        raise WeightsError(
            f"{export.uri}: says nothing of its config, so it is no export of {_named(kind)}. "
            f"Give a folder that `mstar stage1` wrote."
        )
    return export


def _named(kind: str) -> str:
    return {"aggregator": "an aggregator"}.get(kind, f"a {kind.replace('_', ' ')}")


@contextmanager
def _on_disk(uri: str) -> Iterator[Path]:
    """The file itself, or a copy while it is read."""
    try:
        if objects.is_local(uri):
            path = objects.local_path(uri)
            path.stat()
            yield path
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / PurePosixPath(uri).name
            path.write_bytes(objects.read_bytes(uri))
            yield path
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WeightsError(f"{uri}: there is no such file. Check the path.") from error
