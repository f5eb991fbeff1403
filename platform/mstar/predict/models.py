"""A finished study of any kind, as something that answers for new cases.

trained heads, fusion      the mean of its models, one per fold and seed; fusion reads --rna
few_shot                   the mean of its draws' models, of the study's k
zero_shot                  its prompts, or those of --prompts; nothing was trained
report_generation          the report that `mstar report write` writes
retrieval                  refused: it has no answer for one case
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mstar import __version__
from mstar.api import Bag, Head, load_head
from mstar.data.rna.case_files import Scale
from mstar.data.task_genes import GeneReader, GeneSettings
from mstar.downstream.gene_record import NewGenes
from mstar.downstream.model_files import SUFFIX, model_digest
from mstar.downstream.predictions import read_predictions
from mstar.downstream.study_files import DONE
from mstar.errors import ConfigError, MstarError, WeightsError
from mstar.features.store import FeatureStore
from mstar.predict.config import PredictConfig
from mstar.predict.rows import score_columns
from mstar.predict.temperature import fit_temperature
from mstar.storage import objects

VALIDATION = "predictions-val.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A case to be answered for.

    name: of its row. rna: of its gene expression. store_of: slide → store, its slides in order.
    """

    name: str
    rna: str
    store_of: Mapping[str, FeatureStore]

    def bag(self) -> Bag:
        """Its patches.

        Raises:
            FeatureError: there are none.
        """
        return Bag.of(self.store_of, *self.store_of)


Answer = dict[str, Any] | MstarError
Answers = Callable[[Sequence[Asked]], Iterable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A study that answers.

    stamp: columns that say what made a row. unit: slide or case. made_by: the configurations of the
    features that it knows. answers: cases → the columns of each, or why it has none, in order.
    notes: more of the model, for predict.json.
    """

    stamp: dict[str, str]
    unit: str
    made_by: Sequence[Mapping[str, Any]]
    uris: tuple[str, ...]
    answers: Answers
    notes: dict[str, Any] = field(default_factory=dict)


def open_model(config: PredictConfig) -> Model:
    """The study, or the one model, of `--model`.

    Raises:
        ConfigError: it cannot be asked, or a setting is not for it.
        WeightsError: it is not there, or what it rests on is not.
    """
    record = study_record(config.model)
    family = str(record.get("family", ""))
    _refuse_unfit(config, family)
    if family == "retrieval":
        raise ConfigError(
            f"{config.model}: a study of retrieval has no answer for one case. Look cases up with "
            "`mstar retrieve`."
        )
    if family == "zero_shot":
        from mstar.predict.prompt_models import open_zero_shot

        return open_zero_shot(config, record)
    if family == "report_generation":
        from mstar.predict.report_models import open_reports

        return open_reports(config, record)
    if family == "few_shot" and record["study"]["head"] != "few_abmil":
        from mstar.predict.prompt_models import open_few_shot

        return open_few_shot(config, record)
    return open_heads(config)


def study_record(model: str) -> dict[str, Any]:
    """study.json of a study's folder, or of the folder that a model file lies in; may be empty."""
    folder = model.rpartition("/models/")[0] if model.endswith(SUFFIX) else model
    uri = objects.join(folder, DONE)
    if not folder or not objects.exists(uri):
        return {}
    found: dict[str, Any] = json.loads(objects.read_bytes(uri))
    return found


def open_heads(config: PredictConfig) -> Model:
    """Trained heads, those that read genes too."""
    head = load_head(config.model)
    temperature = temperature_of(config.model, head)
    genes = new_genes(head, model=config.model, rna=config.rna, scale=config.gene_scale)

    def answer(asked: Asked, bag: Bag) -> dict[str, Any]:
        row = None if genes is None else genes.row(asked.rna)
        said = head.predict(bag, row)
        absent = {} if row is None else {"genes_missing": int(np.isnan(row).sum())}
        return {**score_columns(said, head, temperature), **absent}

    return Model(
        stamp=stamp(head),
        unit=str(head.models[0].facts.get("unit", "case")),
        made_by=head.models[0].facts.get("made_by") or (),
        uris=tuple(model.uri for model in head.models),
        answers=one_by_one(answer),
        notes={"temperature": temperature} if head.classes else {},
    )


def one_by_one(answer: Callable[[Asked, Bag], dict[str, Any]]) -> Answers:
    """Answers for many from answers for one; what is wrong with a case stays its own."""

    def answers(cases: Sequence[Asked]) -> Iterator[Answer]:
        for asked in cases:
            try:
                bag = asked.bag()
                yield {"num_patches": len(bag), **answer(asked, bag)}
            except MstarError as error:
                yield error

    return answers


def temperature_of(model: str, head: Head) -> float | None:
    """The temperature of a classifying study; None where its validation predictions are absent."""
    uri = objects.join(model, VALIDATION)
    if not head.classes or model.endswith(SUFFIX) or not objects.exists(uri):
        return None
    told = read_predictions(uri)
    return fit_temperature(told.scores, told.label.astype(np.int64))


def stamp(head: Head) -> dict[str, str]:
    """What made a row of trained heads."""
    return stamp_of(head.models[0].facts["study"], [model_digest(m.fit) for m in head.models])


def stamp_of(study: Mapping[str, str], digests: Iterable[str]) -> dict[str, str]:
    """What made a row: the study, digests of its models, and our version."""
    return {
        "task": study["task_id"],
        "encoder": study["encoder"],
        "head": study["head"],
        "models": ";".join(sorted(digest[:12] for digest in digests)),
        "mstar_version": __version__,
    }


def needed(record: Mapping[str, Any], name: str, model: str) -> Any:
    """A field of study.json.

    Raises:
        WeightsError: the study is of an older mstar, which did not write it.
    """
    if name not in record:
        raise WeightsError(
            f"{model}/{DONE}: expected {name}, got none. The study was run by an older mstar: run "
            "it again."
        )
    return record[name]


def new_genes(head: Head, *, model: str, rna: str, scale: Scale) -> NewGenes | None:
    """The new cases' expression, for heads that read it.

    Args:
        head: the study's models.
        model: the study's address, for errors.
        rna: an expression store or a folder of files; empty where none is given.
        scale: what its values are.

    Raises:
        ConfigError: it is not given, or given to heads that read none.
    """
    if head.genes is None:
        if rna:
            raise ConfigError(f"--rna: {model} reads no gene expression. Leave it out.")
        return None
    if not rna:
        raise ConfigError(
            f"{model}: the head {head.models[0].fit.config.head} reads slides and gene expression "
            f"({len(head.genes.genes):,} genes). Give --rna: an expression store, or a folder of "
            "<case>.csv files. Without genes it has no prediction."
        )
    settings = GeneSettings(source=rna, missing_genes=head.genes.missing, scale=scale)
    return NewGenes(head.genes, GeneReader(settings))


def _refuse_unfit(config: PredictConfig, family: str) -> None:
    """Raises ConfigError for a setting that this kind of study does not read."""
    of_family = {
        "rna": ("",),
        "prompts": ("zero_shot",),
        "stage1": ("zero_shot", "few_shot"),
        "stage2": ("zero_shot", "few_shot"),
    }
    for name, kinds in of_family.items():
        if getattr(config, name) and family not in kinds:
            what = f"a study of {family}" if family else "trained heads"
            raise ConfigError(f"--{name}: {config.model} is {what}, which read none. Leave it out.")
