"""A finished study on disk: its record, which is written last, and how it is found again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mstar import __version__
from mstar.config import differences, to_dict, to_json
from mstar.data.task_data import TaskData
from mstar.downstream.bags import PackedBags
from mstar.downstream.config import Protocol, Study, TrialConfig
from mstar.downstream.predictions import PredictionFacts
from mstar.errors import ConfigError
from mstar.storage import objects

DONE = "study.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """What came of a study.

    folder: where its files lie.
    chosen: position of the winner in the configurations.
    config: the winner, as it was run.
    mean_scores: of each configuration over folds and seeds; minus infinity for failed ones.
    val_scores: `fold/seed` → validation score of the winner.
    predictions: part → file.
    models: the winner's model files.
    failed: configuration → why it has no model.
    reused: whether everything was there already.
    """

    study: Study
    folder: str
    chosen: int
    config: TrialConfig
    mean_scores: tuple[float, ...]
    val_scores: Mapping[str, float]
    predictions: Mapping[str, str]
    models: tuple[str, ...]
    failed: Mapping[int, str]
    reused: bool = False


def study_folder(out: str, study: Study) -> str:
    """The folder of a study's files."""
    return objects.join(out, study.task_id, study.encoder, study.head)


def study_settings(
    data: TaskData,
    bags: PackedBags,
    configs: Sequence[TrialConfig],
    seeds: Sequence[int],
    protocol: Protocol,
) -> dict[str, Any]:
    """What decides every number of a study."""
    return {
        "digests": digests(data, bags),
        "configs": [to_dict(config) for config in configs],
        "seeds": list(seeds),
        "protocol": protocol.name,
    }


def digests(data: TaskData, bags: PackedBags) -> dict[str, str]:
    """What the data were, equal on every machine."""
    found = {"labels": data.digest, "splits": data.split_digest, "features": bags.digest}
    return found if data.genes is None else {**found, "genes": data.genes.digest}


def read_study(
    folder: str, study: Study, settings: Mapping[str, Any] | None = None
) -> StudyResult | None:
    """A finished study; None when there is none.

    Raises:
        ConfigError: it is of other settings than those given.
    """
    uri = objects.join(folder, DONE)
    if not objects.exists(uri):
        return None
    found = json.loads(objects.read_bytes(uri))
    if settings is not None and found["settings"] != to_dict(settings):
        lines = "\n  ".join(differences(settings, found["settings"]))
        raise ConfigError(
            f"{folder}: holds this study with other settings:\n  {lines}\nChoose another --out: "
            "its test part was scored once already."
        )
    return StudyResult(
        study=study,
        folder=folder,
        chosen=found["chosen"],
        config=TrialConfig(**found["config"]),
        mean_scores=tuple(float("-inf") if s is None else s for s in found["mean_scores"]),
        val_scores=found["val_scores"],
        predictions={part: objects.join(folder, name) for part, name in found["parts"].items()},
        models=tuple(objects.join(folder, name) for name in found["models"]),
        failed={int(at): why for at, why in found["failed"].items()},
        reused=True,
    )


def write_study(
    result: StudyResult, data: TaskData, settings: Mapping[str, Any], facts: PredictionFacts
) -> None:
    """Write the done-mark; fits that lost are of no more use."""
    prefix = result.folder.rstrip("/") + "/"
    record = {
        "mstar_version": __version__,
        "study": to_dict(result.study),
        "settings": to_dict(settings),
        "chosen": result.chosen,
        "config": to_dict(result.config),
        "mean_scores": [None if s == float("-inf") else s for s in result.mean_scores],
        "val_scores": dict(result.val_scores),
        "failed": {str(at): why for at, why in result.failed.items()},
        "parts": {part: uri.removeprefix(prefix) for part, uri in result.predictions.items()},
        "models": [uri.removeprefix(prefix) for uri in result.models],
        "data_source": data.data_source,
        "trials": facts.trials,
        "leaked_patients": data.leaked_patients,
        "match": str(data.match),
        "extra": dict(facts.extra),
    }
    objects.write_whole(objects.join(result.folder, DONE), to_json(record).encode())
    objects.delete_tree(objects.join(result.folder, "fits"))
