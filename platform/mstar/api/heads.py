"""Bags, trained heads, and metrics with their intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from torch import nn

from mstar.downstream.evaluate import model_uris, says
from mstar.downstream.gene_record import GeneRecord, read_gene_record
from mstar.downstream.model_files import SUFFIX, SavedModel, is_pooled, load_fit, make_head
from mstar.downstream.objectives import scores_of
from mstar.downstream.statistics.bootstrap import RESAMPLES, Estimate, interval
from mstar.downstream.statistics.evaluated import Evaluated
from mstar.downstream.stream import Batch, bag_batch
from mstar.errors import ConfigError, FeatureError, WeightsError
from mstar.features.store import FeatureStore
from mstar.losses.survival import discrete_survival


def open_features(path: str) -> FeatureStore:
    """A store that `mstar embed` or `mstar import` wrote, for reading; a folder or `s3://…`.

    Raises:
        FeatureError: there is none.
    """
    return FeatureStore.open(path)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bag:
    """The patches of a case: all of its slides, one after another.

    features: as stored. coords_l0: top-left corners on level 0 of each patch's own slide; (0, 0)
    where the features were imported without. slides: ids. slide_of: place in `slides` of each
    patch's.
    """

    features: Float[np.ndarray, "patch dim"]
    coords_l0: Int64[np.ndarray, "patch 2"]
    slides: tuple[str, ...]
    slide_of: Int64[np.ndarray, " patch"]

    @classmethod
    def of(cls, store: FeatureStore | Mapping[str, FeatureStore], *slides: str) -> "Bag":
        """The bag of some slides of a store; of several, with slide → its store.

        Raises:
            FeatureError: no slides, one that is not in the store, or no patch in all of them.
        """
        if not slides:
            raise FeatureError("a bag: expected the ids of one or more slides, got none")
        stores = store if isinstance(store, Mapping) else dict.fromkeys(slides, store)
        read = [stores[slide].read(slide) for slide in slides]
        sizes = [len(one.features) for one in read]
        if not sum(sizes):
            raise FeatureError(f"slides {', '.join(slides)}: no patches. Leave them out.")
        return cls(
            features=np.concatenate([one.features for one in read]),
            coords_l0=np.concatenate([one.grid.coords for one in read]),
            slides=slides,
            slide_of=np.repeat(np.arange(len(slides)), sizes),
        )

    def __len__(self) -> int:
        """Number of patches."""
        return len(self.features)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """What a head says about one bag.

    scores: a probability per class, or one risk (higher is worse); the mean over its models.
    attention: weight of each patch, one column per class where the head has several; the mean over
    its models; None where the head has none.
    survival: months, and the probability of no event until then, at the ends of the models' time
    bins (a step function, 1 before the first); the mean over its models; None without bins.
    """

    scores: Float32[np.ndarray, " score"]
    attention: Float32[np.ndarray, " patch"] | Float32[np.ndarray, "patch class"] | None
    survival: Float64[np.ndarray, "time 2"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """The trained models of a study, one per fold and seed, that answer together.

    training: classification | survival. classes: in the order of the scores; empty for survival.
    genes: of heads that read gene expression: which genes, in which order. device: where they run.
    """

    models: tuple[SavedModel, ...]
    modules: tuple[nn.Module, ...]
    training: str
    classes: tuple[str, ...]
    genes: GeneRecord | None = None
    device: str = "cpu"

    @property
    def input_dim(self) -> int:
        """Length of a feature vector."""
        return self.models[0].fit.input_dim

    @torch.no_grad()
    def predict(self, bag: Bag, genes: Float32[np.ndarray, " gene"] | None = None) -> Prediction:
        """Scores and attention of one bag.

        With one thread of torch (`torch.set_num_threads(1)`, as a sweep's workers have) each
        model's scores are to the bit those of the study's prediction files, on equal CPUs.

        Args:
            bag: of a case.
            genes: of models that read genes: its logarithmic expression, in the order of
                `genes.genes`; NaN where a gene was not measured.

        Raises:
            FeatureError: features of another length than the head was trained on; genes that are
                missing, or that it does not read.
        """
        if bag.features.shape[1] != self.input_dim:
            raise FeatureError(
                f"bag of {', '.join(bag.slides)}: expected features of {self.input_dim} numbers, "
                f"got {bag.features.shape[1]}. Use the features of the encoder that the head was "
                "trained on."
            )
        batch = self._batch(bag, genes)
        said = [
            says(module, model.fit, batch)
            for module, model in zip(self.modules, self.models, strict=True)
        ]
        scores = [
            scores_of(one.logits, model.fit.scores)[0]
            for one, model in zip(said, self.models, strict=True)
        ]
        seen = [one.attention.float().cpu().numpy() for one in said if one.attention is not None]
        return Prediction(
            scores=np.stack(scores).mean(axis=0, dtype=np.float32),
            attention=np.stack(seen).mean(axis=0, dtype=np.float32) if seen else None,
            survival=self._survival([one.logits for one in said]),
        )

    def _batch(self, bag: Bag, genes: Float32[np.ndarray, " gene"] | None) -> Batch:
        """The bag as it was in the study."""
        record = self.genes
        wanted = 0 if record is None else len(record.genes)
        if (0 if genes is None else len(genes)) != wanted:
            raise FeatureError(
                f"bag of {', '.join(bag.slides)}: the models read {wanted:,} genes, got "
                f"{0 if genes is None else len(genes):,}. Give the case's expression in the order "
                "of `head.genes.genes`, and none to heads that read none."
            )
        own = None if record is None or genes is None else record.grouped(genes, self.device)
        pooled = is_pooled(self.models[0].fit)
        return bag_batch(bag.features, pooled=pooled, genes=own, device=self.device)

    def _survival(self, logits: Sequence[torch.Tensor]) -> Float64[np.ndarray, "time 2"] | None:
        ends = [np.array((model.facts.get("edges") or [0.0])[1:]) for model in self.models]
        if not all(map(len, ends)):
            return None
        months = np.unique(np.concatenate(ends))
        curves = []
        for mine, one in zip(ends, logits, strict=True):
            steps = np.concatenate([[1.0], discrete_survival(one)[0].double().cpu().numpy()])
            curves.append(steps[np.searchsorted(mine, months, side="right")])
        return np.stack([months, np.mean(curves, axis=0)], axis=1)


def load_head(path: str, *, device: str = "cpu") -> Head:
    """The models of a finished study (its folder), or one model (its `.safetensors`).

    Raises:
        WeightsError: there is none, or it is not one of ours.
    """
    models = tuple(load_fit(uri) for uri in model_uris(path))
    if not models:
        raise WeightsError(f"{path}: expected the folder of a finished study, got no models in it.")
    layout = models[0].fit.genes
    facts = models[0].facts
    return Head(
        models=models,
        modules=tuple(make_head(model.fit, device) for model in models),
        training=str(facts["training"]),
        classes=tuple(facts["class_names"]),
        genes=None if layout is None else read_gene_record(_study_folder(path), layout.digest),
        device=device,
    )


def _study_folder(path: str) -> str:
    """The folder of a study, from its own path or that of one of its models."""
    return path.rpartition("/models/")[0] if path.endswith(SUFFIX) else path


def evaluate(
    metric: str,
    scores: Float[np.ndarray, "sample score"],
    *,
    patients: Sequence[str],
    labels: Int[np.ndarray, " sample"] | None = None,
    times: Float[np.ndarray, " sample"] | None = None,
    events: Bool[np.ndarray, " sample"] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A metric with its 95 % interval, by a bootstrap of patients (`statistics.md`).

    Args:
        metric: macro_auc, c_index, balanced_accuracy, … (`METRICS` of the statistics).
        scores: a probability per class; or one column, the risk, for survival.
        patients: whom each sample is from.
        labels: class codes; or, of survival,
        times: months, and
        events: whether it was an event, not censoring.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ConfigError: no such metric, or neither classes nor times.
        TrainingError: a score is not finite.
    """
    if (labels is None) == (times is None) or (times is None) != (events is None):
        raise ConfigError("evaluate: expected labels, or times and events")
    evaluated = Evaluated(
        patients=tuple(patients), scores=scores, labels=labels, times=times, events=events
    )
    return interval(metric, evaluated, resamples=resamples, seed=seed)
