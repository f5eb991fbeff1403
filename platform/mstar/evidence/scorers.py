"""Who scores the patches of a bag: the models of a study, or a text.

Both say beforehand what they are (`identity`: what must not change within an output folder), and of
every bag its layers and what they rest on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from mstar.api import Bag, Head, load_head
from mstar.data.task_genes import GeneReader, GeneSettings
from mstar.downstream.gene_record import NewGenes
from mstar.downstream.language.encoders import PatchSide, TextSide
from mstar.downstream.model_files import is_pooled
from mstar.errors import ConfigError
from mstar.evidence.asked import RISK, Asked
from mstar.evidence.config import ALL_CLASSES, HeatmapConfig
from mstar.evidence.explain import RawLayer, explain, ways_of
from mstar.features.files import SlideFeatures
from mstar.models.heads import GroupedGenes
from mstar.predict.models import stamp, temperature_of
from mstar.predict.rows import score_columns

SIMILARITY = "similarity"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredBag:
    """What a bag's patches got; layers: of all of them, predicted: a class, if there is one."""

    layers: tuple[RawLayer, ...]
    predicted: str
    facts: dict[str, Any]


@runtime_checkable
class Scorer(Protocol):
    """Scores bags."""

    identity: dict[str, Any]
    unit: str

    def score(self, name: str, slides: Sequence[SlideFeatures]) -> ScoredBag:
        """The layers of the patches of some slides, one after another."""


class ModelScorer:
    """A finished study; the mean of its models."""

    def __init__(self, config: HeatmapConfig) -> None:
        """Loads the models.

        Raises:
            ConfigError: their head does not look at patches, or has no such class.
        """
        self.config, self.head = config, load_head(config.model)
        fit = self.head.models[0].fit
        self.name = fit.config.head
        self.ways = ways_of(self.name, config.method)
        self.unit = str(self.head.models[0].facts.get("unit", "case"))
        if config.unit != "auto":
            self.unit = config.unit
        self.output_names = output_names(self.head)
        self.group_names = tuple(self.head.genes.groups) if self.head.genes is not None else ()
        _check_classes(config.classes, (*self.output_names, *self.group_names, RISK))
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

    @cached_property
    def new_genes(self) -> NewGenes | None:
        """Gene expression, of models that read it.

        Raises:
            ConfigError: none is given.
        """
        if self.head.genes is None:
            return None
        if not self.config.rna:
            raise ConfigError(
                f"head {self.name}: it reads gene expression. Give --rna: an expression store, or "
                "a folder of <case>.csv files."
            )
        settings = GeneSettings(
            source=self.config.rna,
            missing_genes=self.head.genes.missing,
            scale=self.config.gene_scale,
        )
        return NewGenes(self.head.genes, GeneReader(settings))

    def score(self, name: str, slides: Sequence[SlideFeatures]) -> ScoredBag:
        """The layers of a bag, and what the models say of it.

        Raises:
            FeatureError: features of another length, or scores that are not finite.
            CohortError: the case has no gene expression, and the models read it.
        """
        bag = bag_of(slides)
        row = self.new_genes.row(name) if self.new_genes is not None else None
        said = self.head.predict(bag, row) if row is not None else self.head.predict(bag)
        told = score_columns(said, self.head, self.temperature)
        record = self.head.genes
        genes = record.grouped(row) if record is not None and row is not None else None
        layers = explain(self._asked(bag, genes), self.ways)
        return ScoredBag(
            layers=layers,
            predicted=str(told.get("predicted", "")),
            facts={"bag": name, "slides": list(bag.slides), "prediction": told},
        )

    def _asked(self, bag: Bag, genes: GroupedGenes | None) -> list[Asked]:
        x = torch.from_numpy(bag.features.astype(np.float32))
        return [
            Asked(
                name=self.name,
                head=module,
                scores=model.fit.scores,
                x=x,
                coords_l0=torch.from_numpy(bag.coords_l0 + offsets_of(bag)),
                output_names=self.output_names,
                group_names=self.group_names,
                genes=genes,
                pooled=is_pooled(model.fit),
                passes=self.config.passes,
            )
            for model, module in zip(self.head.models, self.head.modules, strict=True)
        ]


class TextScorer:
    """A text, less another one: the cosine with each patch in the shared space."""

    unit = "slide"

    def __init__(self, config: HeatmapConfig) -> None:
        """Loads the encoders.

        Raises:
            WeightsError: a folder does not hold what it should.
            ConfigError: the text has no token, or a class is asked for.
        """
        _check_classes(config.classes, ())
        cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
        device = "cuda" if cuda else "cpu"
        side = TextSide(config.stage1, device)
        texts = [config.text, *([config.minus] if config.minus.strip() else [])]
        vectors = side.vectors(side.token_ids(texts, ["--text", "--minus"][: len(texts)]))
        self.question = vectors[0] - (vectors[1] if len(vectors) > 1 else 0.0)
        self.patches = PatchSide(config.stage1, config.stage2, window=config.window, device=device)
        self.identity = {
            "text": config.text,
            "minus": config.minus,
            "stage1": config.stage1,
            "stage2": config.stage2,
            "methods": {SIMILARITY: f"cosine with the text, {self.patches.space} of stage 1 and 2"},
            "unit": self.unit,
        }

    def score(self, name: str, slides: Sequence[SlideFeatures]) -> ScoredBag:
        """One layer.

        Raises:
            WeightsError: features of another length.
        """
        found = [
            self.patches.vectors(slide.features).cpu().numpy() @ self.question for slide in slides
        ]
        layer = RawLayer(
            kind=SIMILARITY, class_name="", values=np.concatenate(found).astype(np.float32)
        )
        return ScoredBag(layers=(layer,), predicted="", facts={"bag": name})


def make_scorer(config: HeatmapConfig) -> ModelScorer | TextScorer:
    """The one that is asked for."""
    return ModelScorer(config) if config.model else TextScorer(config)


def bag_of(slides: Sequence[SlideFeatures]) -> Bag:
    """The bag of some slides that were read."""
    sizes = [len(slide.features) for slide in slides]
    return Bag(
        features=np.concatenate([slide.features for slide in slides]),
        coords_l0=np.concatenate([slide.grid.coords for slide in slides]),
        slides=tuple(slide.grid.slide_id for slide in slides),
        slide_of=np.repeat(np.arange(len(slides)), sizes),
    )


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


def _check_classes(asked: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in asked if name not in known and name != ALL_CLASSES]
    if unknown:
        raise ConfigError(
            f"--classes {unknown[0]}: expected one of {', '.join(known) or 'none'}, or all"
        )
