"""`mstar tasks list|show|check`: what tasks there are, what each needs, what is found and missing.

    mstar tasks list [--tasks survival] [--registry mstar-v1] [--own my_tasks.csv]
    mstar tasks show tcga_brca_os
    mstar tasks check --labels C/labels --features mstar=F --cohort C

Nothing is trained and nothing written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tyro

from mstar.data.label_tables.finding import find_label_tables
from mstar.data.splits.registry import SplitRegistry, has_registry, read_registry
from mstar.data.splits.schemes import read_split
from mstar.data.task_data import store_ids
from mstar.data.task_registry import ALL, DEFAULT, REGISTRIES, TaskRegistry, read_task_registry
from mstar.downstream import tasks_report
from mstar.downstream.gene_flags import GeneFlags, gene_reader
from mstar.downstream.task_survey import SurveySettings, TaskState, survey_tasks
from mstar.errors import ConfigError
from mstar.features.store import FeatureStore
from mstar.storage import objects
from mstar.training.exit_codes import ExitCode

_ENCODER = "features"  # the name of stores that are given without one


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksListConfig:
    """List the tasks: kind, unit, regime, split policy, metric, and which come later."""

    tasks: tuple[str, ...] = (ALL,)
    """Ids, groups (a kind, category, type, regime, data set) or all."""

    registry: str = DEFAULT
    """mstar-97 = the tasks of the paper; mstar-v1 = the older list of 43."""

    own: tuple[str, ...] = ()
    """Tables of your own task rows: task_id, kind, metric [, classes, trained_on, …]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksShowConfig:
    """Show one task: every column, and what it needs from you."""

    task: tyro.conf.Positional[str]
    """Id of the task."""

    registry: str = ""
    """mstar-97 or mstar-v1; empty: whichever has the task."""

    own: tuple[str, ...] = ()
    """Tables of your own task rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksCheckConfig(GeneFlags):
    """Check which tasks can be run with your labels and features, and why the others cannot."""

    labels: str
    """Folder of label tables, <task_id>.csv each; local or s3://."""

    features: tuple[str, ...]
    """Feature stores: a label and one store or more, uni=F1,F2 mstar=F3; or a store alone."""

    tasks: tuple[str, ...] = (ALL,)
    """Ids, groups or all."""

    cohort: str = ""
    """Cohort folder whose split registry (splits.csv) the tasks are cut from; empty: the label
    tables say which part a row is in."""

    split: str = ""
    """Name of a further split of the cohort (splits/NAME.csv), k-fold say, in the registry's
    place."""

    published_split: tuple[str, ...] = ()
    """Tasks (ids, groups or all) that run the split of their own table, whatever it leaks: leaking
    patients are counted and the task's row is marked."""

    max_missing: float = 0.0
    """Share of a task's samples (0 to 1) that may lack features; they are left out and counted."""

    registry: str = DEFAULT
    """mstar-97 or mstar-v1."""

    own: tuple[str, ...] = ()
    """Tables of your own task rows; <cohort>/tasks.csv is added where there is one."""

    reasons: bool = True
    """Whether to print why a task cannot be run below the table."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant before a file is read."""
        if not 0 <= self.max_missing < 1:
            raise ConfigError(f"--max-missing {self.max_missing:g}: expected 0 up to below 1.")
        if self.split and not self.cohort:
            raise ConfigError("--split: expected --cohort too, the folder that it lies in.")


def run_list(config: TasksListConfig) -> int:
    """Print the tasks chosen, one line each."""
    registry = read_task_registry(config.registry, config.own)
    print(tasks_report.listing(registry, registry.select(config.tasks)))
    return ExitCode.COMPLETE


def run_show(config: TasksShowConfig) -> int:
    """Print one task."""
    registry = _registry_with(config)
    print(tasks_report.details(registry, registry.get(config.task)))
    return ExitCode.COMPLETE


def run_check(config: TasksCheckConfig) -> int:
    """Print the state of every task chosen.

    Returns:
        EXCLUSIONS when a task with a label table cannot be run, or none can; else COMPLETE.
    """
    states = check_tasks(config)
    print(tasks_report.states(states, reasons=config.reasons))
    ready = any(state.state == "ready" for state in states)
    refused = any(state.state == "refused" for state in states)
    return ExitCode.COMPLETE if ready and not refused else ExitCode.EXCLUSIONS


def check_tasks(config: TasksCheckConfig) -> list[TaskState]:
    """The state of every task that the config chooses."""
    known = read_task_registry(config.registry, own_tables(config.own, config.cohort))
    published = frozenset(task.task_id for task in known.select(config.published_split))
    settings = SurveySettings(
        registry=split_registry(config.cohort),
        split=read_split(config.cohort, config.split) if config.split else None,
        published=published,
        max_missing=config.max_missing,
        genes=gene_reader(config, config.cohort),
    )
    encoders = {
        name: store_ids([FeatureStore.open(root) for root in roots])
        for name, roots in parse_features(config.features).items()
    }
    tables = find_label_tables(config.labels)
    return survey_tasks(known.select(config.tasks), known, tables, encoders, settings)


def parse_features(words: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Encoder label → the addresses of its stores, of `uni=F1,F2 mstar=F3`.

    Raises:
        ConfigError: no store, or a label that comes twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for word in words:
        name, mark, places = word.partition("=")
        name, places = (name, places) if mark else (_ENCODER, word)
        roots = tuple(root for root in places.split(",") if root)
        if not roots or not name or name in found:
            raise ConfigError(
                f"--features {word!r}: expected a label and stores like uni=F1,F2, each label once."
            )
        found[name] = roots
    if not found:
        raise ConfigError("--features: expected a feature store, got none. Give mstar=F.")
    return found


def own_tables(own: Sequence[str], cohort: str) -> tuple[str, ...]:
    """The users' task tables, the one of the cohort folder among them."""
    return (*own, *_table_of_cohort(cohort))


def split_registry(cohort: str) -> SplitRegistry | None:
    """The split registry of a cohort folder, if there is one."""
    return read_registry(cohort) if cohort and has_registry(cohort) else None


def _registry_with(config: TasksShowConfig) -> TaskRegistry:
    """The registry that is named, else the first that has the task."""
    if config.registry:
        return read_task_registry(config.registry, config.own)
    registries = [read_task_registry(name, config.own) for name in REGISTRIES]
    return next((r for r in registries if config.task in r.by_id), registries[0])


def _table_of_cohort(cohort: str) -> tuple[str, ...]:
    """`tasks.csv` of a cohort folder, which a generated one has."""
    uri = objects.join(cohort, "tasks.csv") if cohort else ""
    return (uri,) if uri and objects.exists(uri) else ()
