"""One study: configurations compete on validation, the winner is scored on the test part once.

    <out>/<task>/<encoder>/<head>/
        fits/<fold>-s<seed>-<config>.safetensors   every finished fit; not trained again
        models/<fold>-s<seed>.safetensors, .json   the winner's
        genes.json                                 of fusion: which genes the models read
        predictions-val.parquet, predictions-test.parquet
        sealed/<fold>-s<seed>.json                 which model opened the test part
        study.json                                 written last: the study is done

A configuration's score is the mean of its best validation scores over folds and seeds; the first
of equal ones wins. What was stopped early by a search competes with what it had, and says so.
"""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from mstar.config import fingerprint
from mstar.data.task_data import TaskData
from mstar.downstream.bags import PackedBags
from mstar.downstream.config import HONEST, Protocol, Study, TrialConfig
from mstar.downstream.evaluate import Scored, SealedTest, join_scored, predict, run_name
from mstar.downstream.fold_views import part_of
from mstar.downstream.gene_record import write_gene_record
from mstar.downstream.model_files import SUFFIX, load_fit, save_fit
from mstar.downstream.population import train_population
from mstar.downstream.predictions import write_predictions
from mstar.downstream.stream import BagSource
from mstar.downstream.study_facts import model_facts, study_facts
from mstar.downstream.study_files import (
    StudyResult,
    digests,
    read_study,
    study_folder,
    study_settings,
    write_study,
)
from mstar.downstream.trainer import FitResult
from mstar.errors import ConfigError, TrainingError
from mstar.storage import objects


def run_study(
    study: Study,
    data: TaskData,
    bags: PackedBags,
    configs: Sequence[TrialConfig],
    *,
    out: str,
    seeds: Sequence[int] = (1,),
    protocol: Protocol = HONEST,
    device: str = "cpu",
    on_fit: Callable[[FitResult], None] | None = None,
) -> StudyResult:
    """Train all configurations on all folds and seeds, choose, and score the test part.

    Fits that are on disk from an earlier run are not repeated; a finished study is only read.

    Args:
        study: its names; the head is that of every configuration.
        data: the task.
        bags: its samples' features.
        configs: what competes.
        out: folder of all studies.
        seeds: of weights, order and dropout, one run each per fold.
        protocol: what may be looked at.
        device: where the heads train.
        on_fit: told of every fit, new or found.

    Raises:
        ConfigError: the folder holds a study of other data or settings.
        TrainingError: no configuration could be trained.
    """
    check_study(study, data, configs, seeds)
    settings = study_settings(data, bags, configs, seeds, protocol)
    folder = study_folder(out, study)
    found = read_study(folder, study, settings)
    if found is not None:
        return found
    source = BagSource(bags, device, data.genes)
    fits: list[list[FitResult]] = [[] for _ in configs]
    for fold, seed in product(range(len(data.folds)), seeds):
        uris = [_fit_uri(folder, data, bags, c, fold, seed, protocol) for c in configs]
        todo = [at for at, uri in enumerate(uris) if not objects.exists(uri)]
        new = train_population(
            data,
            bags,
            [configs[at] for at in todo],
            fold=fold,
            seed=seed,
            protocol=protocol,
            device=device,
            source=source,
        )
        for at, fit in zip(todo, new, strict=True):
            save_fit(uris[at], fit, {}, beside=False)
        for at, uri in enumerate(uris):
            fits[at].append(new[todo.index(at)] if at in todo else load_fit(uri).fit)
            if on_fit is not None:
                on_fit(fits[at][-1])
    return conclude_study(
        study,
        data,
        bags,
        configs,
        fits,
        out=out,
        seeds=seeds,
        protocol=protocol,
        device=device,
        source=source,
    )


def conclude_study(
    study: Study,
    data: TaskData,
    bags: PackedBags,
    configs: Sequence[TrialConfig],
    fits: Sequence[Sequence[FitResult]],
    *,
    out: str,
    seeds: Sequence[int] = (1,),
    protocol: Protocol = HONEST,
    device: str = "cpu",
    trials: int | None = None,
    source: BagSource | None = None,
) -> StudyResult:
    """Choose among trained configurations, open the test part with the winner, write everything.

    Args:
        study: its names; the head is that of every configuration.
        data: the task.
        bags: its samples' features.
        configs: what competed.
        fits: of each configuration, in the order folds × seeds.
        out: folder of all studies.
        seeds: as they were trained.
        protocol: as they were trained.
        device: where the heads run.
        trials: how many configurations competed, those that a search ended included; as many as
            there are `configs` when not given.
        source: of the same bags, to be used again.
    """
    check_study(study, data, configs, seeds)
    folder = study_folder(out, study)
    means, failed = _mean_scores(fits)
    chosen = int(np.argmax(means))
    if means[chosen] == float("-inf"):
        raise TrainingError(f"study {study.key}: every configuration failed: {failed[0]}")
    source = source or BagSource(bags, device, data.genes)
    runs = list(product(range(len(data.folds)), seeds))
    facts = study_facts(data, bags, protocol, fits[chosen], runs, source, trials or len(configs))
    if data.genes is not None:
        write_gene_record(folder, data.genes)
    models = []
    for fit, (fold, seed) in zip(fits[chosen], runs, strict=True):
        name = run_name(data.folds[fold].name, seed)
        uri = objects.join(folder, "models", name + SUFFIX)
        save_fit(uri, fit, model_facts(study, data, facts, fit))
        models.append(uri)
    files = {}
    for part, scored in _scored(study, data, fits[chosen], runs, source, folder).items():
        files[part] = objects.join(folder, f"predictions-{part}.parquet")
        write_predictions(files[part], join_scored(study, data, part, scored, facts))
    result = StudyResult(
        study=study,
        folder=folder,
        chosen=chosen,
        config=fits[chosen][0].config,
        mean_scores=means,
        val_scores=facts.val_scores,
        predictions=files,
        models=tuple(models),
        failed=failed,
    )
    settings = study_settings(data, bags, configs, seeds, protocol)
    write_study(result, data, settings, facts)
    return result


def check_study(
    study: Study, data: TaskData, configs: Sequence[TrialConfig], seeds: Sequence[int]
) -> None:
    """Raises ConfigError when names, configurations or seeds do not belong together."""
    assert study.task_id == data.task.task_id
    if not configs or not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"study {study.key}: expected a configuration or more and different seeds, got "
            f"{len(configs)} and {list(seeds)}."
        )
    if other := {config.head for config in configs} - {study.head}:
        raise ConfigError(
            f"study {study.key}: expected configurations of head {study.head}, got "
            f"{', '.join(sorted(other))}. A study has one head: run one for each."
        )


def _fit_uri(
    folder: str,
    data: TaskData,
    bags: PackedBags,
    config: TrialConfig,
    fold: int,
    seed: int,
    protocol: Protocol,
) -> str:
    """Named by all that decides the fit, so that what is found is what would be trained."""
    name = data.folds[fold].name
    key = fingerprint([config, name, seed, protocol.name, digests(data, bags)])
    return objects.join(folder, "fits", f"{run_name(name, seed)}-{key}{SUFFIX}")


def _mean_scores(
    fits: Sequence[Sequence[FitResult]],
) -> tuple[tuple[float, ...], dict[int, str]]:
    means, failed = [], {}
    for at, own in enumerate(fits):
        reasons = [fit.failed for fit in own if fit.failed]
        if reasons:
            failed[at] = reasons[0]
        means.append(float("-inf") if reasons else float(np.mean([f.best_score for f in own])))
    return tuple(means), failed


def _scored(
    study: Study,
    data: TaskData,
    fits: Sequence[FitResult],
    runs: Sequence[tuple[int, int]],
    source: BagSource,
    folder: str,
) -> dict[str, list[Scored]]:
    """Validation, and test where the task has one (auxiliary tasks train only)."""
    found: dict[str, list[Scored]] = {"val": [], "test": []}
    for fit, (fold, seed) in zip(fits, runs, strict=True):
        cut = data.folds[fold]
        scores = predict(fit, source, cut.val)
        part = part_of(data, "val", cut.val)
        found["val"].append(Scored(fold=cut.name, seed=seed, part=part, scores=scores))
        if len(cut.test):
            sealed = SealedTest(data, source, study=study, fold=fold, seed=seed, out=folder)
            found["test"].append(sealed.open(fit))
    return {part: scored for part, scored in found.items() if scored}
