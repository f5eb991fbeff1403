"""Builds the stage-1 model of a config, and writes its parts where they can be loaded alone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mstar.data.rna.store import ExpressionStore
from mstar.errors import ConfigError
from mstar.models.aggregator import Aggregator
from mstar.models.gene_encoder import GeneEncoder
from mstar.models.multimodal import MultimodalModel
from mstar.models.stage1_files import save_aggregator, save_gene_encoder, save_text_encoder
from mstar.models.text_encoder import pretrained_text_encoder
from mstar.models.torchvision_ops import declare_missing_ops
from mstar.pretrain.stage1_config import Stage1Config
from mstar.training.optimizers import adamw
from mstar.training.seeds import reseed


def build_model(
    config: Stage1Config, *, feature_dim: int | None, expression: ExpressionStore | None
) -> MultimodalModel:
    """The model, the same on every rank.

    feature_dim: length of a patch's features, None without slides.
    """
    declare_missing_ops()  # transformers' BERT imports torchvision
    aggregator = text = gene = None
    if "wsi" in config.chosen:
        assert feature_dim is not None
        reseed("aggregator", config.seed)
        aggregator = Aggregator(replace(config.aggregator, input_dim=feature_dim))
    if "text" in config.chosen:
        reseed("text", config.seed)
        text = pretrained_text_encoder(config.text_encoder)
    if "gene" in config.chosen:
        assert expression is not None
        reseed("gene", config.seed)
        gene = _gene_encoder(config, expression)
    return MultimodalModel(aggregator, text, gene, initial_scale=config.initial_scale)


def _gene_encoder(config: Stage1Config, expression: ExpressionStore) -> GeneEncoder:
    vectors = expression.gene_vectors
    if vectors is not None and vectors.shape[1] != config.gene.dim:
        raise ConfigError(
            f"--gene.dim {config.gene.dim}: expected {vectors.shape[1]}, the length of the "
            f"cohort's gene vectors ({expression.folder})"
        )
    settings = replace(
        config.gene,
        num_genes=len(expression.genes),
        expression_tokens=config.bins.num_ids,
        output_dim=config.aggregator.dim,
        gene_vectors="learned" if vectors is None else config.gene.gene_vectors,
        redraw_seed=config.seed,
    )
    return GeneEncoder(settings, None if vectors is None else torch.from_numpy(vectors))


def build_optimizer(model: MultimodalModel, config: Stage1Config) -> torch.optim.AdamW:
    """AdamW: the pretrained BERT at its own rate, everything that starts from nothing at `lr`."""
    parts: dict[str, nn.Module | nn.Parameter] = {"scale": model.logit_scale}
    if model.aggregator is not None:
        parts["aggregator"] = model.aggregator
    if model.gene_encoder is not None:
        parts["gene"] = model.gene_encoder
    if model.text_encoder is not None:
        parts |= {"text": model.text_encoder.bert, "text_proj": model.text_encoder.proj_text}
    rates = dict.fromkeys(parts, config.lr) | {"text": config.lr_text}
    return adamw(parts, rates, config.optimizer)


def export(
    model: MultimodalModel, out: str, *, genes: tuple[str, ...], provenance: Mapping[str, Any]
) -> None:
    """Write every part as safetensors with its config beside it; each replaces its former one."""
    if model.aggregator is not None:
        save_aggregator(out, model.aggregator, provenance=provenance)
    if model.text_encoder is not None:
        save_text_encoder(out, model.text_encoder, provenance=provenance)
    if model.gene_encoder is not None:
        save_gene_encoder(out, model.gene_encoder, genes, provenance=provenance)
