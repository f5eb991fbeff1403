"""Zero-shot and few-shot studies as something that answers for new cases.

Zero-shot: the study's own prompts, or others: a prompt file is data, its classes may be new ones.
What stages 1 and 2 left behind is where the study found it, or where --stage1 and --stage2 say; it
must be the same to the bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from mstar.api import Bag
from mstar.data.tasks import Task
from mstar.downstream.families import FAMILIES, named
from mstar.downstream.family_job import FamilySources
from mstar.downstream.family_sources import stages_digest
from mstar.downstream.language.encoders import PatchSide
from mstar.downstream.language.few_shot_models import FewShotModel, load_few_shot
from mstar.downstream.language.prompt_scores import PromptScorer, sentence_vectors
from mstar.downstream.language.prompts import Prompts, find_prompts, prompt_classes
from mstar.downstream.language.zero_shot import class_vectors, wordings_of
from mstar.errors import FeatureError, TableError, WeightsError
from mstar.features.files import cast_features
from mstar.predict.config import PredictConfig
from mstar.predict.models import Asked, Model, needed, one_by_one, stamp_of
from mstar.predict.rows import class_columns


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ZeroShotParts:
    """Encoders, prompts, what scores slides by them; ensemble: the vector of each class."""

    sources: FamilySources
    prompts: Prompts
    scorer: PromptScorer
    ensemble: Float32[Tensor, "1 label dim"]


def open_zero_shot(config: PredictConfig, record: Mapping[str, Any]) -> Model:
    """Class prompts against the patches of a slide, or against its vector."""
    parts = zero_shot_parts(config, record)
    prompts, scorer, sources = parts.prompts, parts.scorer, parts.sources

    def answer(asked: Asked, bag: Bag) -> dict[str, Any]:
        vectors = scorer.vectors(cast_features(bag.features), asked.name)
        scores = scorer.row(vectors, parts.ensemble)[0]
        return {**class_columns(prompts.class_names, scores), "prompts": prompts.digest[:12]}

    stages = needed(record, "stages", config.model)
    return Model(
        stamp=stamp_of(record["study"], [stages]),
        unit=needed(record, "unit", config.model),
        made_by=needed(record, "made_by", config.model),
        uris=(sources.stage1, *([sources.stage2] if sources.stage2 else [])),
        answers=one_by_one(answer),
        notes={"prompts": prompts.uri, "prompts_digest": prompts.digest, "calibrated": False},
    )


def zero_shot_parts(config: PredictConfig, record: Mapping[str, Any]) -> ZeroShotParts:
    """What a zero-shot study scores slides by."""
    sources = _sources(config, record)
    prompts, scorer = _prompts(config, record, sources), PromptScorer(sources, _options(record))
    text, _ = sentence_vectors(prompts, sources.stage1)
    wording = wordings_of(prompts, seed=0)[:1]
    ensemble = torch.from_numpy(class_vectors(text, wording))
    return ZeroShotParts(sources=sources, prompts=prompts, scorer=scorer, ensemble=ensemble)


def open_few_shot(config: PredictConfig, record: Mapping[str, Any]) -> Model:
    """Prototypes, or logistic regressions of mean features, of every draw of the study's k."""
    model = load_few_shot(config.model)
    side: PatchSide | None = None
    if model.method == "few_prototype":
        sources, options = _sources(config, record), _options(record)
        side = PatchSide(sources.stage1, sources.stage2, space=options.space, window=options.window)
    classes = model.classes

    def answer(asked: Asked, bag: Bag) -> dict[str, Any]:
        del asked
        _check_dim(bag.features.shape[1], model, side)
        scores = model.scores(cast_features(bag.features), side).mean(axis=0, dtype=np.float32)
        return class_columns(classes, scores)

    return Model(
        stamp=stamp_of(record["study"], [model.digest]),
        unit=needed(record, "unit", config.model),
        made_by=needed(record, "made_by", config.model),
        uris=(model.uri,),
        answers=one_by_one(answer),
        notes={"k": model.k, "draws": model.draws, "calibrated": False},
    )


def _sources(config: PredictConfig, record: Mapping[str, Any]) -> FamilySources:
    """What the study was given, where it lies now; the same to the bit.

    Raises:
        WeightsError: it is something else.
    """
    study, was = record["study"], FamilySources(**record["sources"])
    now = replace(was, stage1=config.stage1 or was.stage1, stage2=config.stage2 or was.stage2)
    expected = needed(record, "stages", config.model)
    found = stages_digest(record["family"], study["head"], now)
    if found != expected:
        raise WeightsError(
            f"{config.model}: expected the encoders of stages 1 and 2 that it was run with "
            f"({expected[:12]}), got others or none ({found[:12]}) in {now.stage1}"
            f"{' and ' + now.stage2 if now.stage2 else ''}. Give their folders by --stage1 and "
            "--stage2."
        )
    return now


def _options(record: Mapping[str, Any]) -> Any:
    own = {name: value for name, value in record["config"].items() if name != "method"}
    return named(FAMILIES[record["family"]].methods[record["study"]["head"]])(**own)


def _prompts(config: PredictConfig, record: Mapping[str, Any], sources: FamilySources) -> Prompts:
    """The study's prompts, as they were; or others.

    Raises:
        TableError: the study's have changed since, or the others are not prompts.
    """
    names = tuple(needed(record, "class_names", config.model))
    task = Task(
        task_id=record["study"]["task_id"], kind="zero_shot", metric="macro_auc", class_names=names
    )
    if config.prompts:
        own = prompt_classes(config.prompts) if config.prompts.endswith((".json", ".csv")) else ()
        other = bool(own) and set(own) != set(names)
        return find_prompts(replace(task, class_names=own) if other else task, config.prompts)
    found, expected = find_prompts(task, sources.prompts), record["digests"]["prompts"]
    if found.digest != expected:
        raise TableError(
            f"{found.uri}: expected the prompts of the study ({expected[:12]}), got others "
            f"({found.digest[:12]}). Give those that you mean by --prompts."
        )
    return found


def _check_dim(found: int, model: FewShotModel, side: PatchSide | None) -> None:
    expected = model.input_dim if side is None else side.input_dim
    if found != expected:
        raise FeatureError(
            f"expected features of {expected} numbers, got {found}. Use the features of the "
            "encoder that the model was trained on."
        )
