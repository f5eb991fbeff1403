"""What stage 1 leaves behind: each encoder as one safetensors file with its config, loadable alone.

    <folder>/aggregator.safetensors      <folder>/aggregator.json      and so for
    <folder>/text_encoder.…              <folder>/gene_encoder.…

The config lies in the weights file itself (metadata `mstar`), so the pair cannot be torn apart by
an interrupted write; the JSON beside it is the same, for people and other tools. An aggregator is
used as it was trained: another mode or attention, be it asked for or written into the JSON, is
refused unless `allow_change` says that it is meant.

Published TransMIL files (`.pth`, `.safetensors`; also the `vision_encoder` part of a stage-1
checkpoint) load as `public` Nyström aggregators of the sizes their tensors have.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mstar import __version__
from mstar.config import differences
from mstar.errors import ConfigError, WeightsError
from mstar.models.aggregator import Aggregator, AggregatorConfig
from mstar.models.exports import (
    AGGREGATOR,
    GENE_ENCODER,
    TEXT_ENCODER,
    Export,
    read_export,
    refuse_foreign,
    save_export,
)
from mstar.models.gene_encoder import GeneEncoder, GeneEncoderConfig
from mstar.models.nystrom import AttentionKind, Mode
from mstar.models.state_dicts import WRAPPERS, match_state
from mstar.models.text_encoder import TextEncoder, TextEncoderConfig, empty_text_encoder
from mstar.storage import objects

_AGGREGATOR_PARTS = ("vision_encoder.", "aggregator.")

_Config = TypeVar("_Config", AggregatorConfig, TextEncoderConfig, GeneEncoderConfig)
_Model = TypeVar("_Model", bound=nn.Module)


def save_aggregator(
    folder: str, aggregator: Aggregator, *, provenance: Mapping[str, Any] | None = None
) -> str:
    """Write an aggregator; returns the address of its weights.

    Args:
        folder: where to; made when it is not there.
        aggregator: what to write.
        provenance: what made it, as plain values: run, features, step.
    """
    return save_export(folder, AGGREGATOR, aggregator, aggregator.config, {}, provenance)


def save_text_encoder(
    folder: str, encoder: TextEncoder, *, provenance: Mapping[str, Any] | None = None
) -> str:
    """Write a text encoder with its architecture (not its tokenizer); returns the address."""
    architecture = json.loads(encoder.bert.config.to_json_string(use_diff=False))  # type: ignore[union-attr, operator]
    more = {"bert": architecture}
    return save_export(folder, TEXT_ENCODER, encoder, encoder.config, more, provenance)


def save_gene_encoder(
    folder: str,
    encoder: GeneEncoder,
    genes: Sequence[str],
    *,
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """Write a gene encoder with its genes in their order; returns the address of its weights."""
    if len(genes) != encoder.config.num_genes:
        raise ConfigError(
            f"gene encoder: expected the names of its {encoder.config.num_genes:,} genes, got "
            f"{len(genes):,}. Give those of the expression store it was trained on."
        )
    more = {"genes": list(genes)}
    return save_export(folder, GENE_ENCODER, encoder, encoder.config, more, provenance)


def load_aggregator(
    where: str,
    *,
    mode: Mode | None = None,
    attention: AttentionKind | None = None,
    allow_change: bool = False,
) -> Aggregator:
    """An aggregator in evaluation mode, as it was trained.

    Args:
        where: a folder with an export, or a weights file (an export or a published TransMIL).
        mode: what the caller needs; None for what the file says.
        attention: likewise.
        allow_change: accept another mode or attention than the one it was trained with.

    Raises:
        WeightsError: it does not fit, or would be changed without `allow_change`.
    """
    export = read_export(where, AGGREGATOR)
    tensors = _part(export.tensors, _AGGREGATOR_PARTS)
    if export.record:
        trained = _config(export, AggregatorConfig)
    else:
        trained = _published_config(export.uri, tensors)
    wanted = _beside(export, trained, allow_change)
    wanted = dataclasses.replace(
        wanted, mode=mode or wanted.mode, attention=attention or wanted.attention
    )
    _refuse_change(export.uri, trained, wanted, allow_change)
    return _filled(lambda: Aggregator(wanted), tensors, export.uri)


def load_text_encoder(where: str, *, allow_change: bool = False) -> TextEncoder:
    """A text encoder in evaluation mode, without a network.

    Raises:
        WeightsError: it is no export of one, does not fit, or its JSON says something else.
    """
    export = refuse_foreign(read_export(where, TEXT_ENCODER), TEXT_ENCODER)
    config = _beside(export, _config(export, TextEncoderConfig), allow_change)
    architecture = export.record["bert"]
    return _filled(lambda: empty_text_encoder(config, architecture), export.tensors, export.uri)


def load_gene_encoder(
    where: str, *, allow_change: bool = False
) -> tuple[GeneEncoder, tuple[str, ...]]:
    """A gene encoder in evaluation mode, and its genes in the order of its rows.

    Raises:
        WeightsError: it is no export of one, does not fit, or its JSON says something else.
    """
    export = refuse_foreign(read_export(where, GENE_ENCODER), GENE_ENCODER)
    config = _beside(export, _config(export, GeneEncoderConfig), allow_change)
    table = torch.zeros(config.num_genes, config.dim)
    encoder = _filled(lambda: GeneEncoder(config, table), export.tensors, export.uri)
    return encoder, tuple(export.record["genes"])


def _config(export: Export, kind: type[_Config]) -> _Config:
    """The config that the weights file carries."""
    return _parsed(export.uri, export.record["config"], kind)


def _parsed(source: str, values: Mapping[str, Any], kind: type[_Config]) -> _Config:
    unknown = sorted(values.keys() - {f.name for f in dataclasses.fields(kind)})
    if unknown:
        raise WeightsError(
            f"{source}: its config has fields that are not known here: {', '.join(unknown)}. "
            f"Load it with the version of mstar that wrote it (this is {__version__})."
        )
    return kind(**values)


def _beside(export: Export, trained: _Config, allow_change: bool) -> _Config:
    """The config of the JSON beside the weights, which may differ only if that is allowed."""
    uri = export.uri.rpartition(".")[0] + ".json"
    try:
        record = json.loads(objects.read_bytes(uri))
    except FileNotFoundError:
        return trained
    except ValueError as error:
        raise WeightsError(f"{uri}: expected JSON ({error}). Restore or delete it.") from error
    if not isinstance(record, dict) or "config" not in record:  # another tool's file
        return trained
    stated = _parsed(uri, record["config"], type(trained))
    _refuse_change(uri, trained, stated, allow_change)
    return stated


def _refuse_change(source: str, trained: _Config, wanted: _Config, allow_change: bool) -> None:
    changes = differences(trained, wanted)
    if changes and not allow_change:
        raise WeightsError(
            f"{source}: it was trained otherwise than it is asked for here: "
            f"{'; '.join(changes).replace('expected', 'trained with').replace('found', 'asked')}. "
            "Its numbers would change. Use it as trained, or allow the change."
        )


def _published_config(uri: str, tensors: Mapping[str, Any]) -> AggregatorConfig:
    """Sizes of a TransMIL that comes without a config."""
    names = ("_fc1.0.weight", "layer1.attn.res_conv.weight")
    if not all(isinstance(tensors.get(name), Tensor) for name in names):
        raise WeightsError(
            f"{uri}: expected the tensors of a TransMIL ({', '.join(names)}), got "
            f"{', '.join(list(map(str, tensors))[:3]) or 'nothing'}. Give an aggregator's weights."
        )
    dim, input_dim = tensors["_fc1.0.weight"].shape
    classifier = tensors.get("_fc2.weight")
    return AggregatorConfig(
        input_dim=input_dim,
        dim=dim,
        heads=tensors["layer1.attn.res_conv.weight"].shape[0],
        landmarks=dim // 2,  # as in the public module, which derives it so
        num_classes=0 if classifier is None else len(classifier),
    )


def _part(tensors: Mapping[str, Any], prefixes: tuple[str, ...]) -> Mapping[str, Any]:
    """The named part of a checkpoint of several, out of its wrappers; else the whole."""
    for wrapper in WRAPPERS:
        if isinstance(tensors.get(wrapper), Mapping):
            tensors = tensors[wrapper]
    if tensors and all(str(key).startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    for prefix in prefixes:
        part = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if part:
            return part
    return tensors


def _filled(build: Callable[[], _Model], tensors: Mapping[str, Any], source: str) -> _Model:
    """A model with these tensors, in evaluation mode; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        model = build()
    matched = match_state(model, tensors, ignored_keys=(), source=source)
    model.load_state_dict(matched.state)
    return model.eval()
