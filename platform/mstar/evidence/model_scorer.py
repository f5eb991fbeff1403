"""Patches scored by a finished study: the mean of its models."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mstar.api import Bag, Head, load_head
from mstar.downstream.model_files import is_pooled
from mstar.evidence.asked import RISK, Asked
from mstar.evidence.config import HeatmapConfig
from mstar.evidence.explain import explain, ways_of
from mstar.evidence.scored import ScoredBag, bag_of, check_classes
from mstar.features.files import SlideFeatures
from mstar.models.heads import GroupedGenes
from mstar.predict.models import new_genes, stamp, temperature_of
from mstar.predict.rows import score_columns
from mstar.predict.same_features import recorded


class ModelScorer:
    """A finished study; the mean of its models."""

    def __init__(self, config: HeatmapConfig) -> None:
        """Loads the models.

        Raises:
            ConfigError: their head does not look at patches, or has no such class; it reads genes
                and there are none, or the other way round.
        """
        self.config, self.head = config, load_head(config.model)
        fit = self.head.models[0].fit
        self.name = fit.config.head
        self.ways = ways_of(self.name, config.method)
        self.unit = str(self.head.models[0].facts.get("unit", "case"))
        if config.unit != "auto":
            self.unit = config.unit
        groups = self.head.genes.groups if self.head.genes is not None else ()
        check_classes(config.classes, (*output_names(self.head), *groups, RISK))
        self.genes = new_genes(
            self.head, model=config.model, rna=config.rna, scale=config.gene_scale
        )
        self.expected = recorded(self.head)
        self.identity = {
            "model": {k: v for k, v in stamp(self.head).items() if k != "mstar_version"},
            "methods": {way.kind: way.source for way in self.ways},
            "averaged_over": len(self.head.models),
            "unit": self.unit,
        }
        if config.method == "occlusion":
            self.identity["passes"] = config.passes

    @cached_property
    def temperature(self) -> float | None:
        """Of calibrated probabilities, fitted on validation."""
        return temperature_of(self.config.model, self.head)

    def score(self, name: str, slides: Sequence[SlideFeatures], *, rna: str = "") -> ScoredBag:
        """The layers of a bag, and what the models say of it.

        Raises:
            FeatureError: features of another length, or scores that are not finite.
            CohortError: the case has no gene expression, and the models read it.
        """
        bag = bag_of(slides)
        row = self.genes.row(rna or name) if self.genes is not None else None
        said = self.head.predict(bag, row) if row is not None else self.head.predict(bag)
        told = score_columns(said, self.head, self.temperature)
        record = self.head.genes
        genes = record.grouped(row) if record is not None and row is not None else None
        asked = asked_models(self.head, bag, genes, passes=self.config.passes)
        layers = explain(asked, self.ways)
        return ScoredBag(
            layers=layers,
            predicted=str(told.get("predicted", "")),
            facts={"bag": name, "slides": list(bag.slides), "prediction": told},
        )


def asked_models(head: Head, bag: Bag, genes: GroupedGenes | None, *, passes: int) -> list[Asked]:
    """One bag, asked of each model of a study."""
    x = torch.from_numpy(bag.features.astype(np.float32))
    return [
        Asked(
            name=model.fit.config.head,
            head=module,
            scores=model.fit.scores,
            x=x,
            coords_l0=torch.from_numpy(bag.coords_l0 + offsets_of(bag)),
            output_names=output_names(head),
            group_names=tuple(head.genes.groups) if head.genes is not None else (),
            genes=genes,
            pooled=is_pooled(model.fit),
            passes=passes,
        )
        for model, module in zip(head.models, head.modules, strict=True)
    ]


def offsets_of(bag: Bag) -> Any:
    """What lays the slides of a bag side by side, so that no neighbours are of two of them."""
    widest = int(bag.coords_l0.max()) + 1
    return np.stack([bag.slide_of * 4 * widest, np.zeros_like(bag.slide_of)], axis=1)


def output_names(head: Head) -> tuple[str, ...]:
    """What the outputs of a head are called: classes, the risk, or bins of time."""
    if head.classes:
        return head.classes
    outputs = head.models[0].fit.num_outputs
    return (RISK,) if outputs == 1 else tuple(f"time bin {at + 1}" for at in range(outputs))
