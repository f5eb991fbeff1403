"""From a sweep's settings to its studies: which are run, and what is left out, with the reason."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mstar.config import fingerprint
from mstar.data.label_tables.finding import find_label_tables
from mstar.data.splits.schemes import read_split
from mstar.data.task_data import TaskData
from mstar.data.task_registry import TaskRegistry, read_task_registry
from mstar.downstream.config import (
    CLASSIFICATION,
    Protocol,
    Study,
    find_protocol,
    paper_trial,
    training_kind,
)
from mstar.downstream.families import (
    FAMILIES,
    check_task,
    find_methods,
    method_options,
    missing_sources,
)
from mstar.downstream.family_sources import fingerprint_sources
from mstar.downstream.gene_flags import gene_reader
from mstar.downstream.spaces import OPTION, Space, load_space, make_trial
from mstar.downstream.study_run import StudyPlan
from mstar.downstream.sweep_config import SweepConfig
from mstar.downstream.sweep_encoders import Encoder, find_encoders
from mstar.downstream.task_survey import SurveySettings, TaskState, survey_tasks
from mstar.downstream.tasks_job import own_tables, split_registry
from mstar.errors import MstarError
from mstar.models.heads import head_spec

HEAD_WORK = {"linear": 0.05, "cox_linear": 0.05, "knn": 0.05, "prototype": 0.05}
HEAD_WORK |= {"snn": 0.05, "motcat": 2.0, "cmta": 4.0}
HEAD_WORK |= {"clam_sb": 1.5, "clam_mb": 1.5, "transmil": 4.0, "transmil_plus": 4.0}
"""Work of a head per patch, ABMIL's being 1: for the order of studies, so roughly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A task, or a study of it, that is not run.

    refused: something is wrong with what the user gave; the rest is as it should be.
    """

    task: str
    reason: str
    encoder: str = ""
    head: str = ""
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """All that a sweep will do.

    tasks: data key → the task with the features of one encoder.
    """

    studies: tuple[StudyPlan, ...]
    tasks: Mapping[str, TaskData]
    encoders: Mapping[str, Encoder]
    left_out: tuple[LeftOut, ...]


def plan_sweep(config: SweepConfig) -> SweepPlan:
    """Read labels, splits and listings; nothing is trained.

    Raises:
        ConfigError: the settings contradict themselves or name what is not there.
    """
    known = read_task_registry(config.registry, own_tables(config.own, config.cohort))
    encoders = find_encoders(config)
    spaces = {head: head_space(config, head) for head in config.head_names}
    states = _survey(config, known, encoders)
    plans: list[StudyPlan] = []
    left_out: list[LeftOut] = []
    tasks: dict[str, TaskData] = {}
    for state in states:
        left_out += _troubles(state)
        for name, data in state.data.items():
            key = f"{state.task.task_id}/{name}"
            tasks[key] = data
            made, left = _studies(config, data, encoders[name], spaces, key)
            plans += made
            left_out += left
    plans, orphans = _with_models(plans)
    left_out += orphans
    return SweepPlan(studies=tuple(plans), tasks=tasks, encoders=encoders, left_out=tuple(left_out))


def _with_models(plans: list[StudyPlan]) -> tuple[list[StudyPlan], list[LeftOut]]:
    """Studies without those that test the models of one that is left out."""
    there = {plan.study for plan in plans}
    kept, left_out = [], []
    for plan in plans:
        if plan.models_of is None or plan.models_of in there:
            kept.append(plan)
            continue
        study = plan.study
        reason = f"needs the models of {plan.models_of.key}, which is left out"
        left_out.append(
            LeftOut(task=study.task_id, encoder=study.encoder, head=study.head, reason=reason)
        )
    return kept, left_out


def head_space(config: SweepConfig, head: str) -> Space:
    """A head's space with the options of the command line, tried out once."""
    space = load_space(config.space, head)
    own = {OPTION + name: value for name, value in config.head_options[head].items()}
    search = {name: wanted for name, wanted in space.search.items() if name not in own}
    space = dataclasses.replace(space, base={**space.base, **own}, search=search)
    make_trial(space, head, {}, 1)
    return space


def _survey(
    config: SweepConfig, known: TaskRegistry, encoders: Mapping[str, Encoder]
) -> list[TaskState]:
    """The state of each task, and of those whose heads external ones take."""
    chosen = known.with_required(known.select(config.tasks))
    settings = SurveySettings(
        registry=split_registry(config.cohort),
        split=read_split(config.cohort, config.split) if config.split else None,
        published=frozenset(task.task_id for task in known.select(config.published_split)),
        max_missing=config.max_missing,
        genes=gene_reader(config, config.cohort),
    )
    ids = {name: encoder.sizes.keys() for name, encoder in encoders.items()}
    return survey_tasks(chosen, known, find_label_tables(config.labels), ids, settings)


def _troubles(state: TaskState) -> list[LeftOut]:
    """Why the task, or the task with some encoders, is left out."""
    task_id, refused = state.task.task_id, state.state == "refused"
    if state.reasons:
        return [
            LeftOut(task=task_id, encoder=name, reason=reason, refused=True)
            for name, reason in state.reasons.items()
        ]
    if state.state == "ready":
        return []
    return [LeftOut(task=task_id, reason=state.reason, refused=refused)]


def _studies(
    config: SweepConfig,
    data: TaskData,
    encoder: Encoder,
    spaces: Mapping[str, Space],
    key: str,
) -> tuple[list[StudyPlan], list[LeftOut]]:
    if data.task.kind in FAMILIES:
        return _family_studies(config, data, encoder, key)
    training, protocol = training_kind(data.task.kind), find_protocol(config.protocol)
    settings = _settings(data, encoder, protocol)
    plans, left_out = [], []
    for head, space in spaces.items():
        study = Study(task_id=data.task.task_id, encoder=encoder.name, head=head)
        if reason := _unfit(head, training, data):
            left_out.append(
                LeftOut(task=study.task_id, encoder=encoder.name, head=head, reason=reason)
            )
            continue
        internal = data.task.trained_on
        plans.append(
            StudyPlan(
                study=study,
                data_key=key,
                settings=settings,
                folds=tuple(fold.name for fold in data.folds),
                seeds=tuple(range(1, config.seeds + 1)),
                size=_size(data, encoder) * HEAD_WORK.get(head, 1.0),
                protocol=protocol,
                space=space,
                budgets=budgets(space, head, training, protocol),
                samples=config.trials,
                models_of=dataclasses.replace(study, task_id=internal) if internal else None,
            )
        )
    return plans, left_out


def _unfit(head: str, training: str, data: TaskData) -> str:
    """Why a head cannot be used for a task; empty when it can."""
    spec = head_spec(head)
    if training not in spec.kinds:
        return f"head {head} is not for {training} tasks"
    if spec.genes and data.genes is None:
        return f"head {head} reads gene expression, which {data.task.kind} tasks do not have"
    if spec.genes == "groups" and data.genes is not None and not data.genes.groups:
        return f"head {head} reads genes in groups: give --signatures"
    return ""


def _family_studies(
    config: SweepConfig, data: TaskData, encoder: Encoder, key: str
) -> tuple[list[StudyPlan], list[LeftOut]]:
    """The studies of a task that trains no head, one a method."""
    kind, protocol = data.task.kind, find_protocol(config.protocol)
    of_task: dict[str, Any] = {"task": data.task.task_id, "encoder": encoder.name}
    methods = find_methods(kind, config.methods)
    if not methods:
        reason = f"--methods names none of {', '.join(FAMILIES[kind].methods)}"
        return [], [LeftOut(**of_task, reason=reason)]
    plans, left_out = [], []
    for method in methods:
        study = Study(task_id=data.task.task_id, encoder=encoder.name, head=method)
        if missing := missing_sources(kind, method, config.sources):
            left_out.append(LeftOut(**of_task, head=method, reason=missing))
            continue
        try:
            options = method_options(kind, method, config.option)
            check_task(kind, data.task, config.sources, options, data)
        except MstarError as error:
            left_out.append(LeftOut(**of_task, head=method, reason=str(error), refused=True))
            continue
        given = [options, fingerprint_sources(kind, method, config.sources)]
        internal = data.task.trained_on
        plans.append(
            StudyPlan(
                study=study,
                data_key=key,
                settings=fingerprint([_settings(data, encoder, protocol), given]),
                folds=tuple(fold.name for fold in data.folds),
                seeds=tuple(range(1, config.seeds + 1)),
                size=_size(data, encoder) * (1.0 if internal else FAMILIES[kind].work),
                protocol=protocol,
                space=Space(),
                budgets=(1,),
                models_of=dataclasses.replace(study, task_id=internal) if internal else None,
                family=kind,
            )
        )
    return plans, left_out


def budgets(space: Space, head: str, training: str, protocol: Protocol) -> tuple[int, ...]:
    """Epochs of each round; one round where the protocol fixes the epochs."""
    if training == CLASSIFICATION and protocol.classification_epochs and head_spec(head).trained:
        return (protocol.settled(paper_trial(head), training).epochs,)
    return space.budgets(head)


def _settings(data: TaskData, encoder: Encoder, protocol: Protocol) -> str:
    """All that decides a fit besides its configuration, fold and seed."""
    parts = hashlib.sha256()
    for fold in data.folds:
        for places in (fold.train, fold.val, fold.test):
            parts.update(fold.name.encode() + np.ascontiguousarray(places).tobytes() + b"|")
    used = {s: encoder.sizes.get(s, 0) for sample in data.samples for s in sample.slides}
    features = [encoder.stores, sorted(used.items())]
    genes = [] if data.genes is None else [data.genes.digest]
    return fingerprint(
        [data.digest, data.split_digest, parts.hexdigest(), features, protocol, *genes]
    )


def _size(data: TaskData, encoder: Encoder) -> float:
    return float(sum(encoder.sizes.get(s, 0) for sample in data.samples for s in sample.slides))
