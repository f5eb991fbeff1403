"""What chosen models say: about training and validation at will, about the test part once.

    sealed = SealedTest(data, source, study=study, fold=0, seed=1, out="R/…")
    scores = sealed.open(fit)            # the model chosen on validation
    sealed.open(another)                 # TrainingError

The record of the opening lies beside the results, so a second run into the same folder is held to
it too. Whoever wants to look again with another model needs another folder, and can be seen to.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import nn

from mstar.data.task_data import TaskData
from mstar.downstream.bags import PackedBags
from mstar.downstream.config import Study, training_kind
from mstar.downstream.fold_views import Part, part_of
from mstar.downstream.model_files import (
    SUFFIX,
    SavedModel,
    is_pooled,
    load_fit,
    make_head,
    model_digest,
)
from mstar.downstream.objectives import scores_of
from mstar.downstream.predictions import PredictionFacts, Predictions
from mstar.downstream.stream import BagSource, Batch, evaluation_batches, one_bag_each
from mstar.downstream.trainer import FitResult
from mstar.errors import ConfigError, FeatureError, TrainingError, WeightsError
from mstar.models.heads import HeadOutput
from mstar.storage import objects
from mstar.storage.ids import quoted


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """What one model said about one part."""

    fold: str
    seed: int
    part: Part
    scores: Float[np.ndarray, "sample score"]


def predict(
    fit: FitResult, source: BagSource, places: Int64[np.ndarray, " sample"]
) -> Float[np.ndarray, "sample score"]:
    """A trained head's scores of the bags at some positions: probabilities, or one risk.

    On a CPU a bag at a time, so that `mstar predict` gives the same bag the same bits.
    """
    if source.dim != fit.input_dim:
        raise FeatureError(
            f"head {fit.config.head}: expected features of {fit.input_dim} numbers, got "
            f"{source.dim}. Use the features of the encoder it was trained on."
        )
    if fit.genes is not None and fit.genes != source.layout:
        raise FeatureError(
            f"head {fit.config.head}: expected the genes and groups that it was trained with "
            f"({fit.genes.genes:,} genes), got others, or none. Use the same expression and "
            "signature table."
        )
    head, pooled = make_head(fit, source.device), is_pooled(fit)
    alone = source.device.type == "cpu"
    sizes = source.sizes(places, pooled=pooled)
    plan = one_bag_each(len(places)) if alone else evaluation_batches(sizes)
    batches = source.batches(places, plan, pooled=pooled)
    return np.concatenate([scores_of(says(head, fit, one).logits, fit.scores) for one in batches])


@torch.no_grad()
def says(head: nn.Module, fit: FitResult, batch: Batch) -> HeadOutput:
    """What a trained head (`make_head`) makes of a batch, in the precision of its training."""
    on = fit.config.precision == "bfloat16"
    with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=on):
        return batch.through(head)


class SealedTest:
    """The test part of one study, fold and seed; it answers to one model."""

    def __init__(
        self,
        data: TaskData,
        source: BagSource,
        *,
        study: Study,
        fold: int,
        seed: int,
        out: str | None = None,
    ) -> None:
        """Keep the record of the opening in `out`, or in this object alone when not given."""
        cut = data.folds[fold]
        self._data, self._source, self._places = data, source, cut.test
        self._name = f"{study.key}, fold {cut.name}, seed {seed}"
        self._fold, self._seed = cut.name, seed
        self._uri = objects.join(out, "sealed", f"{run_name(cut.name, seed)}.json") if out else None
        self._opened_by: str | None = None

    def open(self, fit: FitResult) -> Scored:
        """Score the test part with the chosen model; again only with the same one.

        Raises:
            TrainingError: it was opened with another model.
        """
        self.seal(fit)
        return Scored(
            fold=self._fold,
            seed=self._seed,
            part=part_of(self._data, "test", self._places),
            scores=predict(fit, self._source, self._places),
        )

    def seal(self, fit: FitResult) -> None:
        """Note who looks at the test part, for those who score it in their own way.

        Raises:
            TrainingError: another model was there before.
        """
        digest = model_digest(fit)
        before = self._record(digest)
        if before != digest:
            raise TrainingError(
                f"{self._name}: the test part was scored with another model ({before[:12]}) than "
                f"this one ({digest[:12]}). It is scored once, with the model chosen on "
                "validation: choose another --out for another choice, and say that you looked "
                "twice."
            )

    def _record(self, digest: str) -> str:
        """The model that opens it: this one, if it is the first."""
        if self._uri is None:
            self._opened_by = self._opened_by or digest
            return self._opened_by
        record = {"opened_by": digest, "part": self._name}
        text = json.dumps(record, sort_keys=True)
        if objects.write_whole(self._uri, text.encode(), if_absent=True):
            return digest
        return str(json.loads(objects.read_bytes(self._uri))["opened_by"])


def run_name(fold: str, seed: int) -> str:
    """The name of one fold's run with one seed, in files and facts."""
    return f"{quoted(fold)}-s{seed}"


def join_scored(
    study: Study, data: TaskData, part: str, scored: Sequence[Scored], facts: PredictionFacts
) -> Predictions:
    """The predictions of a study's models on one part, one model after the other."""
    samples = [data.samples[at] for one in scored for at in one.part.places.tolist()]
    return Predictions(
        task=data.task.task_id,
        encoder=study.encoder,
        head=study.head,
        part=part,
        fold=tuple(one.fold for one in scored for _ in one.part.places),
        seed=np.asarray([one.seed for one in scored for _ in one.part.places], np.int64),
        case_id=tuple(sample.case_id for sample in samples),
        patient=tuple(patient for one in scored for patient in one.part.patients),
        slides=tuple(sample.slides for sample in samples),
        label=np.concatenate([one.part.labels for one in scored]).astype(np.int32),
        time_months=np.concatenate([one.part.times for one in scored]),
        event=np.concatenate([one.part.events for one in scored]),
        scores=np.concatenate([one.scores for one in scored]),
        facts=facts,
    )


def evaluate_external(
    models: str | Iterable[str],
    data: TaskData,
    bags: PackedBags,
    *,
    study: Study | None = None,
    device: str = "cpu",
) -> Predictions:
    """What the models of an internal task say about an external one; nothing is trained.

    Args:
        models: the folder of the internal study, or its model files.
        data: the external task, whose one fold is test alone (`prepare_external`).
        bags: its samples' features, of the same encoder.
        study: how the result is named; the internal study's encoder and head when not given.
        device: where the heads run.

    Raises:
        ConfigError: the models are of other classes, or of another task than the row says.
        WeightsError: there are no models.
    """
    saved = [load_fit(uri) for uri in model_uris(models)]
    if not saved:
        raise WeightsError(f"{models}: expected models of a finished study, got none.")
    for model in saved:
        _check_external(model, data)
    first = saved[0].facts
    study = study or Study(
        task_id=data.task.task_id, encoder=first["study"]["encoder"], head=first["study"]["head"]
    )
    source, places = BagSource(bags, device, data.genes), data.folds[0].test
    part = part_of(data, "test", places)
    scored = [
        Scored(
            fold=model.fit.fold,
            seed=model.fit.seed,
            part=part,
            scores=predict(model.fit, source, places),
        )
        for model in saved
    ]
    return join_scored(study, data, "external", scored, _external_facts(data, bags, saved))


def model_uris(models: str | Iterable[str]) -> list[str]:
    """The model files of a finished study's folder; a file, or several, are themselves."""
    if not isinstance(models, str):
        return list(models)
    if models.endswith(SUFFIX):
        return [models]
    folder = objects.join(models, "models")
    return sorted(info.uri for info in objects.list_files(folder, suffix=SUFFIX))


def _check_external(model: SavedModel, data: TaskData) -> None:
    facts = model.facts
    trained_on = facts["study"]["task_id"]
    if data.task.trained_on and data.task.trained_on != trained_on:
        raise ConfigError(
            f"task {data.task.task_id}: expected models of {data.task.trained_on}, got {model.uri} "
            f"of {trained_on}. Give the folder of that study."
        )
    expected = (training_kind(data.task.kind), list(data.class_names))
    if expected != (facts["training"], list(facts["class_names"])):
        raise ConfigError(
            f"task {data.task.task_id}: expected models of {expected[0]} with the classes "
            f"{expected[1]}, got {model.uri}: {facts['training']}, {facts['class_names']}. Correct "
            "the task row: its classes are in the order of the internal task."
        )


def _external_facts(
    data: TaskData, bags: PackedBags, saved: Sequence[SavedModel]
) -> PredictionFacts:
    first = saved[0].facts
    names = [f"{model.fit.fold}/{model.fit.seed}" for model in saved]
    follow_up = {m.fit.fold: m.facts["follow_up"] for m in saved if m.facts["follow_up"]}
    medians = {
        name: m.facts["median_risk"]
        for name, m in zip(names, saved, strict=True)
        if m.facts["median_risk"] is not None
    }
    return PredictionFacts(
        kind=first["training"],
        metric=data.task.metric,
        data_source=data.data_source,
        class_names=data.class_names,
        config=first["config"],
        digests={
            "labels": data.digest,
            "features": bags.digest,
            "trained_on_labels": first["digests"]["labels"],
            "trained_on_splits": first["digests"]["splits"],
            "trained_on_features": first["digests"]["features"],
        },
        protocol=first["protocol"],
        warning=first["warning"],
        trials=first["trials"],
        leaked_patients=data.leaked_patients + first["leaked_patients"],
        follow_up=follow_up,
        median_risk=medians,
        val_scores={name: m.fit.best_score for name, m in zip(names, saved, strict=True)},
        trained_on=first["study"]["task_id"],
    )
