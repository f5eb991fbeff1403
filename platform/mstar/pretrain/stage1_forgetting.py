"""What a continued stage 1 has forgotten: both runs' encoders on the old run's validation cases.

The old run's validation cases are chosen again from its cohort, by its own settings, and compared
with what it recorded. Cases that the new run has trained on are left out: they would show no
forgetting. The new run's own validation cases are measured with both as well: what was gained.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mstar.data.splits.leaks import patient_of
from mstar.errors import MstarError
from mstar.losses.recall import normalised
from mstar.models.multimodal import MultimodalModel
from mstar.models.stage1_files import load_aggregator, load_gene_encoder, load_text_encoder
from mstar.pretrain.forgetting import Part
from mstar.pretrain.stage1_batches import CaseInputs
from mstar.pretrain.stage1_cases import Stage1Cases, choose_cases
from mstar.pretrain.stage1_config import Stage1Config
from mstar.pretrain.stage1_facts import FACTS_FILE, cases_digest, read_json
from mstar.pretrain.stage1_init import PARTS, Start
from mstar.pretrain.stage1_sources import duplicates_of, open_inputs
from mstar.pretrain.stage1_validate import (
    FEWEST_CASES,
    CaseVectors,
    class_vectors,
    embed_cases,
    measure,
)
from mstar.storage import objects

log = logging.getLogger("mstar.stage1")

FIRST = (
    "val.mean_recall_at_10",
    "val.zero_shot_balanced_accuracy",
    "val.recall_at_10.wsi_to_text",
    "val.recall_at_10.text_to_wsi",
    "vectors.cosine.wsi",
    "vectors.cosine.text",
)
# settings of the old run that decide its validation cases and what is read of them
_OLD_SETTINGS = ("seed", "val_fraction", "bag_patches", "max_tokens", "bad_cases", "max_bad_cases")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Measured:
    """One model on some cases."""

    metrics: Mapping[str, float]
    vectors: CaseVectors


def compare(config: Stage1Config, start: Start, device: torch.device) -> list[Part]:
    """Both runs on the old run's validation cases, and on the new one's.

    Where the old run's cohort is no longer what it was, that part says so and has no numbers.
    """
    chosen = _shared_modalities(config, start)
    new = replace(config, modalities=",".join(chosen))
    new_inputs, new_cases = _open(new, start)
    parts = [_old_part(new, start, new_cases, device)]
    old_ids = set(_old_ids(new, start)) if parts[0].size else set()
    fresh = [one for one in new_cases.val if one.case.case_id not in old_ids]
    title = "new validation cases"
    parts.append(_part(title, new, start, new_inputs, replace(new_cases, val=tuple(fresh)), device))
    return parts


def old_settings(config: Stage1Config, start: Start) -> Stage1Config:
    """This run's config with what decides the old run's cases."""
    before: Mapping[str, Any] = start.facts["config"]
    taken = {name: before[name] for name in _OLD_SETTINGS if name in before}
    return replace(
        config,
        cohort=config.old_cohort or before["cohort"],
        features=config.old_features or before["features"],
        **taken,
    )


def _shared_modalities(config: Stage1Config, start: Start) -> list[str]:
    have = [
        name
        for name in config.chosen
        if name in start.parts
        and objects.exists(objects.join(config.out, f"{PARTS[name]}.safetensors"))
    ]
    return have if len(have) > 1 else list(config.chosen)


def _open(config: Stage1Config, start: Start) -> tuple[CaseInputs, Stage1Cases]:
    inputs, sources = open_inputs(config, lambda bad: None)
    inputs.bins = start.binning or config.bins
    return inputs, choose_cases(config, sources)


def _old_ids(config: Stage1Config, start: Start) -> list[str]:
    _, cases = _open(old_settings(config, start), start)
    return [one.case.case_id for one in cases.val]


def _old_part(
    config: Stage1Config, start: Start, new_cases: Stage1Cases, device: torch.device
) -> Part:
    title = "old validation cases"
    settings = old_settings(config, start)
    try:
        inputs, cases = _open(settings, start)
    except (MstarError, OSError) as error:
        note = f"cannot be measured: {error}. Say where it is: --old-cohort, --old-features."
        return Part(title=title, size=0, unit="cases", notes=[note])
    notes = []
    before = (start.facts.get("inputs") or {}).get("cases")
    if before not in (None, cases_digest(cases.train, cases.val)):
        notes.append(
            f"{settings.cohort} no longer gives the cases that the old run had: these are those it "
            "gives now"
        )
    trained = {patient_of(one.case.case_id) for one in new_cases.train}
    kept = tuple(one for one in cases.val if patient_of(one.case.case_id) not in trained)
    if len(kept) < len(cases.val):
        left_out = len(cases.val) - len(kept)
        notes.append(f"{left_out:,} more are left out: this run has trained on them")
    return _part(title, settings, start, inputs, replace(cases, val=kept), device, notes)


def _part(
    title: str,
    config: Stage1Config,
    start: Start,
    inputs: CaseInputs,
    cases: Stage1Cases,
    device: torch.device,
    notes: Sequence[str] = (),
) -> Part:
    """Both models on the validation cases of some inputs."""
    if len(cases.val) < FEWEST_CASES:
        few = f"expected {FEWEST_CASES} cases or more to measure on, got {len(cases.val)}"
        return Part(title=title, size=0, unit="cases", notes=[*notes, few])
    before = _measured(start.folder, config, inputs, cases, device)
    after = _measured(config.out, config, inputs, cases, device)
    kept = _kept(before.vectors, after.vectors)
    return Part(
        title=title,
        size=len(cases.val),
        unit="cases",
        before={**before.metrics, **dict.fromkeys(kept, 1.0)},
        after={**after.metrics, **kept},
        notes=list(notes),
    )


def _measured(
    folder: str,
    config: Stage1Config,
    inputs: CaseInputs,
    cases: Stage1Cases,
    device: torch.device,
) -> _Measured:
    """A run's encoders on the validation cases."""
    model = load_model(folder, config).to(device)
    precision = config.engine.precision
    vectors = embed_cases(
        model, inputs, cases.val, chunk_cases=config.chunk_cases, precision=precision
    )
    classes = None
    if inputs.tokenizer is not None and "wsi" in config.on:
        classes = class_vectors(model, inputs.tokenizer, cases.cancers, precision)
    found = measure(vectors, duplicates=duplicates_of(cases, inputs), class_vectors=classes)
    return _Measured(metrics=found.metrics, vectors=vectors)


def load_model(folder: str, config: Stage1Config) -> MultimodalModel:
    """The encoders that a run has exported, as one model in evaluation mode."""
    aggregator = load_aggregator(folder) if "wsi" in config.on else None
    text = load_text_encoder(folder) if "text" in config.on else None
    gene = load_gene_encoder(folder)[0] if "gene" in config.on else None
    facts = read_json(folder, FACTS_FILE) or {}
    scale = float(facts.get("logit_scale") or config.initial_scale)
    return MultimodalModel(aggregator, text, gene, initial_scale=scale).eval()


def _kept(before: CaseVectors, after: CaseVectors) -> dict[str, float]:
    """Mean cosine of a case's vector before and after, by modality."""
    found = {}
    for name, rows in before.has.items():
        if rows.any():
            cosines = normalised(before.vectors[name][rows]) * normalised(after.vectors[name][rows])
            found[f"vectors.cosine.{name}"] = float(np.sum(cosines, axis=1).mean())
    return found
