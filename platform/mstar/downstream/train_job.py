"""One study from the command line: labels and features in; predictions, models and a summary out.

    labels + features + splits ─▶ TaskData ─▶ packed bags ─▶ folds × seeds ─▶ winner ─▶ test, once

An external task trains nothing: the models of the task it is external to are looked for in the same
output folder. Run it again and only what is missing is done.
"""

import time
from collections.abc import Sequence

import torch

from mstar.data.label_tables import LabelTable, read_label_table
from mstar.data.label_tables.finding import find_label_tables
from mstar.data.splits.schemes import read_split
from mstar.data.task_data import TaskData, prepare_task
from mstar.data.task_external import prepare_external
from mstar.data.task_registry import read_task_registry
from mstar.data.tasks import Task
from mstar.downstream.bag_files import drop_unused, shared_root
from mstar.downstream.bags import PackedBags, load_bags
from mstar.downstream.config import Study, find_protocol
from mstar.downstream.evaluate import evaluate_external
from mstar.downstream.gene_flags import gene_reader
from mstar.downstream.predictions import Predictions, read_predictions, write_predictions
from mstar.downstream.study import run_study
from mstar.downstream.study_files import study_folder
from mstar.downstream.tasks_job import own_tables, parse_features, split_registry
from mstar.downstream.train_config import TrainHeadConfig
from mstar.downstream.train_summary import data_lines, result_lines, trial_lines
from mstar.downstream.trainer import FitResult
from mstar.errors import ConfigError, TableError
from mstar.features.store import FeatureStore
from mstar.storage import objects
from mstar.training.exit_codes import ExitCode

__all__ = ["TrainHeadConfig", "run"]

EXTERNAL = "predictions-external.parquet"


def run(config: TrainHeadConfig) -> int:
    """Run the study; returns its exit code (`mstar.training.exit_codes`)."""
    if config.threads:
        torch.set_num_threads(config.threads)
    task = _find_task(config)
    study, stores = _study(config, task)
    data = _prepare(config, task, stores)
    print("\n".join([study.key, *data_lines(data)]))
    if task.trained_on is None:
        print("\n".join(trial_lines(config, data)))
    if config.dry_run:
        print("dry run: nothing was trained or written")
        return ExitCode.COMPLETE
    began_s = time.monotonic()
    bags = load_bags(data.samples, stores, cache_root=config.cache_dir)
    evaluate = _evaluate if task.trained_on is None else _evaluate_models
    predictions, folder = evaluate(config, study, data, bags)
    print("\n".join(result_lines(predictions, config.resamples)))
    del bags
    drop_unused(shared_root())  # memory of the machine, which outlives the process
    print(f"{folder}: done in {time.monotonic() - began_s:.1f} s")
    return ExitCode.COMPLETE


def _evaluate(
    config: TrainHeadConfig, study: Study, data: TaskData, bags: PackedBags
) -> tuple[list[Predictions], str]:
    """Train, choose, test."""
    result = run_study(
        study,
        data,
        bags,
        [config.trial_config],
        out=config.out,
        seeds=range(1, config.seeds + 1),
        protocol=find_protocol(config.protocol),
        device=_device(config),
        on_fit=_tell,
    )
    if result.reused:
        print("the study is finished already: read, not repeated")
    return [read_predictions(uri) for uri in result.predictions.values()], result.folder


def _evaluate_models(
    config: TrainHeadConfig, study: Study, data: TaskData, bags: PackedBags
) -> tuple[list[Predictions], str]:
    """Score the models of the internal task."""
    assert data.task.trained_on is not None
    internal = Study(task_id=data.task.trained_on, encoder=study.encoder, head=study.head)
    models, folder = study_folder(config.out, internal), study_folder(config.out, study)
    if next(objects.list_files(objects.join(models, "models")), None) is None:
        raise ConfigError(
            f"task {data.task.task_id} is external to {internal.task_id}: expected its models in "
            f"{models}, got none. Run that task into the same --out first."
        )
    found = evaluate_external(models, data, bags, study=study, device=_device(config))
    write_predictions(objects.join(folder, EXTERNAL), found)
    return [found], folder


def _find_task(config: TrainHeadConfig) -> Task:
    known = read_task_registry(config.registry, own_tables(config.own, config.cohort))
    return known.get(config.task)


def _study(config: TrainHeadConfig, task: Task) -> tuple[Study, list[FeatureStore]]:
    ((name, roots),) = parse_features([config.features]).items()
    study = Study(task_id=task.task_id, encoder=name, head=config.head)
    return study, [FeatureStore.open(root) for root in roots]


def _prepare(config: TrainHeadConfig, task: Task, stores: Sequence[FeatureStore]) -> TaskData:
    registry, table = split_registry(config.cohort), _read_table(config.labels, task)
    genes = gene_reader(config, config.cohort) if task.reads_genes else None
    if task.trained_on is not None:
        return prepare_external(
            task,
            table,
            stores=stores,
            registry=registry,
            published_split=config.published_split,
            max_missing=config.max_missing,
            genes=genes,
        )
    return prepare_task(
        task,
        table,
        stores=stores,
        registry=registry,
        split=read_split(config.cohort, config.split) if config.split else None,
        published_split=config.published_split,
        max_missing=config.max_missing,
        genes=genes,
    )


def _read_table(labels: str, task: Task) -> LabelTable:
    tables = find_label_tables(labels)
    if task.task_id not in tables:
        raise TableError(
            f"{labels}: expected a label table {task.task_id}.csv (or .tsv, .parquet), got none. "
            "Name the file by the task."
        )
    return read_label_table(tables[task.task_id], task)


def _device(config: TrainHeadConfig) -> str:
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def _tell(fit: FitResult) -> None:
    """A line per fit, so that a long study is seen to move."""
    if fit.failed:
        print(f"  fold {fit.fold}, seed {fit.seed}: failed: {fit.failed}", flush=True)
        return
    print(
        f"  fold {fit.fold}, seed {fit.seed}: validation {fit.best_score:.4f} in epoch "
        f"{fit.best_epoch + 1} of {len(fit.history)}, {fit.seconds:.1f} s",
        flush=True,
    )
