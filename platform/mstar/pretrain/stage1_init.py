"""`stage1 --init-from`: a run that starts with the encoders of a finished one.

Its encoders, temperature and bins of expression are taken; the optimiser, the schedule and the
draws start anew. Genes, tokenizer and architecture have to be the same: a gene's place, a token's
number and a head's width mean something to the weights.
"""

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mstar.config import differences, to_dict
from mstar.data.report_tokens import ReportTokenizer
from mstar.data.rna.binning import BinningConfig
from mstar.data.rna.store import ExpressionStore
from mstar.errors import ConfigError, WeightsError
from mstar.models.exports import AGGREGATOR, GENE_ENCODER, TEXT_ENCODER
from mstar.models.multimodal import MultimodalModel
from mstar.models.stage1_files import load_aggregator, load_gene_encoder, load_text_encoder
from mstar.pretrain.stage1_config import Stage1Config
from mstar.pretrain.stage1_facts import FACTS_FILE, read_json
from mstar.storage import objects

log = logging.getLogger("mstar.stage1")

PARTS = {"wsi": AGGREGATOR, "text": TEXT_ENCODER, "gene": GENE_ENCODER}
# what may differ between the two runs: it changes how the part is trained, not what it is
_FREE = ("input_dropout", "attention_dropout", "redraw_seed", "redraw_every", "name")
_ALSO_FREE = ("gradient_checkpointing", "dropout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A finished stage 1 to go on from.

    facts: its stage1.json.
    parts: modality → sha256 of its encoder.
    """

    folder: str
    facts: Mapping[str, Any]
    parts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Names its encoders."""
        text = " ".join(f"{name}:{self.parts[name]}" for name in sorted(self.parts))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def binning(self) -> BinningConfig | None:
        """How expression was binned, where its facts say so."""
        found = self.facts.get("binning")
        if not found:
            return None
        return BinningConfig(**{**found, "edges": tuple(found.get("edges", ()))})


def read_start(config: Stage1Config) -> Start | None:
    """The run that `--init-from` names; None without.

    Raises:
        ConfigError: it is no stage 1, has not ended, or is this run's own output.
    """
    folder = config.init_from
    if not folder:
        return None
    facts = read_json(folder, FACTS_FILE)
    if facts is None or not facts.get("complete"):
        state = "nothing" if facts is None else "a run that has not ended"
        raise ConfigError(
            f"--init-from {folder}: expected the output of a finished `mstar stage1`, got {state}."
        )
    if folder.rstrip("/") == config.out.rstrip("/"):
        raise ConfigError(f"--init-from {folder}: expected another folder than --out.")
    parts = {}
    for modality, kind in PARTS.items():
        uri = objects.join(folder, f"{kind}.safetensors")
        if objects.exists(uri):
            parts[modality] = hashlib.sha256(objects.read_bytes(uri)).hexdigest()
    return Start(folder=folder, facts=facts, parts=parts)


def initialise(
    model: MultimodalModel,
    start: Start,
    *,
    expression: ExpressionStore | None,
    tokenizer: ReportTokenizer | None,
) -> None:
    """Put the encoders of a finished run into a new model; a part it lacks starts from nothing.

    Raises:
        ConfigError: genes, tokenizer or architecture are others.
    """
    if model.aggregator is not None and _has(start, "wsi"):
        before = load_aggregator(start.folder)
        _take(start, "aggregator", model.aggregator, before)
    if model.text_encoder is not None and _has(start, "text"):
        _check_tokenizer(start, tokenizer)
        _take(start, "text encoder", model.text_encoder, load_text_encoder(start.folder))
    if model.gene_encoder is not None and _has(start, "gene"):
        gene, genes = load_gene_encoder(start.folder)
        assert expression is not None
        if genes != tuple(expression.genes):
            raise ConfigError(
                f"--init-from {start.folder}: expected its {len(genes):,} genes in their order in "
                f"{expression.folder}, got {len(expression.genes):,}, or others. Build the cohort "
                "with its gene list."
            )
        _take(start, "gene encoder", model.gene_encoder, gene)
    scale = start.facts.get("logit_scale")
    if scale:
        model.logit_scale.log_scale.data.fill_(math.log(scale))


def bins_of(config: Stage1Config, start: Start) -> BinningConfig:
    """The bins of the run that is gone on from: its gene encoder learnt what their numbers mean.

    Raises:
        ConfigError: this run is asked for others.
    """
    before = start.binning
    if before is None:
        return config.bins
    asked = config.bins
    if "gene" in config.on and (before.method, before.num_bins) != (asked.method, asked.num_bins):
        raise ConfigError(
            f"--init-from {start.folder}: its expression was binned by {before.method} into "
            f"{before.num_bins} bins, asked is {asked.method} into {asked.num_bins}. Repeat its "
            "--binning and --num-bins."
        )
    return before


def _has(start: Start, modality: str) -> bool:
    if modality not in start.parts:
        log.warning("%s: has no %s; it starts from nothing", start.folder, PARTS[modality])
    return modality in start.parts


def _check_tokenizer(start: Start, tokenizer: ReportTokenizer | None) -> None:
    before = (start.facts.get("tokenizer") or {}).get("digest")
    if tokenizer is not None and before not in (None, tokenizer.digest):
        raise ConfigError(
            f"--init-from {start.folder}: its reports were cut by another tokenizer. Give it with "
            f"--text {start.facts['config']['text']}."
        )


def _take(start: Start, name: str, part: nn.Module, before: nn.Module) -> None:
    """Copy the weights of a part, whose architecture has to be the same."""
    changes = [
        line
        for line in differences(_settings(before), _settings(part))
        if line.partition(":")[0].rpartition(".")[2] not in (*_FREE, *_ALSO_FREE)
    ]
    if changes:
        lines = "; ".join(changes).replace("expected", "there").replace("found", "here")
        raise ConfigError(
            f"--init-from {start.folder}: its {name} is another one: {lines}. Repeat its settings."
        )
    try:
        part.load_state_dict(before.state_dict())
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"--init-from {start.folder}: its {name} does not fit this run's: {first}. Repeat its "
            "settings."
        ) from error


def _settings(part: nn.Module) -> dict[str, Any]:
    settings: dict[str, Any] = to_dict(part.config)
    return settings
