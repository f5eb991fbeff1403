"""The labels job: published files → one label table a task, and how its counts compare.

    sources/<data set>/… ─▶ derivation of each task ─▶ out/<task_id>.csv, out/labels.json

A task whose files are not there hides nothing of the others. Run again with the same files and
settings it writes nothing; a table that says something else is replaced only when asked.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mstar
from mstar import config as configs
from mstar.cohorts.build_record import digest_of
from mstar.cohorts.labels_config import LabelsBuildConfig
from mstar.cohorts.labels_report import summary_lines
from mstar.cohorts.labels_result import TaskOutcome, compare
from mstar.data.cases import Case
from mstar.data.label_build.datasets import DATASETS
from mstar.data.label_build.derive import Context, derive
from mstar.data.label_build.population import Member, excluded_ids, members_of, read_cohorts
from mstar.data.label_build.recipes import Derivation, read_derivations
from mstar.data.label_build.sources import Sources
from mstar.data.labels import (
    ClassLabel,
    Label,
    SurvivalLabel,
    write_class_labels,
    write_survival_labels,
)
from mstar.data.splits.schemes import by_ratio
from mstar.data.task_registry import TaskRegistry, read_task_registry
from mstar.data.tasks import Task
from mstar.errors import ConfigError, MstarError, SplitError
from mstar.storage import objects
from mstar.training.exit_codes import ExitCode

__all__ = ["LabelsBuildConfig", "TaskOutcome", "build_labels", "run"]

RECORD = "labels.json"
NO_LABELS = {
    "retrieval": "needs no labels: slides and reports of the cohort",
    "report_generation": "needs no labels: the reports of the cohort",
}


def run(config: LabelsBuildConfig) -> int:
    """Build the label tables; returns the exit code (`mstar.training.exit_codes`)."""
    outcomes = build_labels(config)
    built = [outcome for outcome in outcomes if outcome.state == "built"]
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    written = 0
    if not config.dry_run:
        written = _write(config, built)
    print("\n".join(summary_lines(outcomes, config, written)), flush=True)
    return ExitCode.COMPLETE if built and not failed else ExitCode.EXCLUSIONS


def build_labels(config: LabelsBuildConfig) -> list[TaskOutcome]:
    """Derive the labels of every chosen task, without writing them."""
    registry = read_task_registry(config.registry, config.own)
    recipes = read_derivations(config.derivations)
    chosen = _chosen(registry, config.tasks)
    genes = _genes(recipes[task.task_id] for task in chosen if task.task_id in recipes)
    cohort = read_cohorts(config.cohort)
    shelves: dict[str, _Shelf] = {}
    return [_outcome(config, task, recipes, shelves, cohort, genes) for task in chosen]


@dataclass(slots=True, kw_only=True)
class _Shelf:
    """The files of one data set, read once for all its tasks."""

    sources: Sources
    cohort: Sequence[Case]
    members: list[Member] | None = None
    excluded: frozenset[str] = frozenset()

    def all_members(self) -> list[Member]:
        if self.members is None:
            self.members = members_of(self.sources, self.cohort)
            self.excluded = excluded_ids(self.sources)
        return self.members


def _chosen(registry: TaskRegistry, wanted: Sequence[str]) -> list[Task]:
    """The chosen tasks that can be had by everybody, and those that train heads for others."""
    tasks = list(registry.select(wanted))
    if "all" in wanted:
        tasks += registry.auxiliary
    named = set(wanted)
    return [task for task in tasks if task.access != "private" or task.task_id in named]


def _genes(recipes: Iterable[Derivation]) -> tuple[str, ...]:
    texts = (recipe.arguments.get("gene", "") for recipe in recipes)
    return tuple(sorted({gene for text in texts for gene in text.split("+") if gene}))


def _outcome(
    config: LabelsBuildConfig,
    task: Task,
    recipes: Mapping[str, Derivation],
    shelves: dict[str, _Shelf],
    cohort: Sequence[Case],
    genes: tuple[str, ...],
) -> TaskOutcome:
    if task.kind in NO_LABELS:
        return TaskOutcome(task=task, state="no labels needed", reason=NO_LABELS[task.kind])
    recipe = recipes.get(task.task_id)
    if recipe is None:
        return TaskOutcome(task=task, state="no derivation", reason=_unnamed(task))
    shelf = shelves.setdefault(
        recipe.dataset,
        _Shelf(sources=Sources(config.sources, DATASETS[recipe.dataset]), cohort=cohort),
    )
    sources = shelf.sources
    needs_files = recipe.derivation != "cancer_type"
    if not (sources.is_there if needs_files else cohort):
        where = sources.folder if needs_files else "--cohort"
        return TaskOutcome(task=task, state="no files", reason=f"nothing in {where}")
    sources.used = {}
    try:
        derived = derive(_context(config, task, recipe, shelf, genes))
    except MstarError as error:
        return TaskOutcome(task=task, state="failed", reason=str(error))
    if not derived.labels:
        reason = f"every case is dropped: {_counted(derived.dropped)}"
        return TaskOutcome(task=task, state="failed", reason=reason, derived=derived)
    derived.labels = _with_parts(config, task, derived.labels)
    return TaskOutcome(
        task=task,
        state="built",
        derived=derived,
        comparison=compare(task, derived.labels),
        files=tuple(sources.used),
    )


def _counted(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} × {reason}" for reason, count in dropped.items()) or "no case"


def _unnamed(task: Task) -> str:
    if task.source_certainty == "unlisted":
        return "the paper does not name gene and cancer type; name them with --derivations"
    return "no row says how its labels are made; add one with --derivations"


def _context(
    config: LabelsBuildConfig,
    task: Task,
    recipe: Derivation,
    shelf: _Shelf,
    genes: tuple[str, ...],
) -> Context:
    members = shelf.all_members()
    if recipe.cancer_types:
        members = [m for m in members if m.cancer_type in recipe.cancer_types]
    if not members:
        types = ", ".join(recipe.cancer_types) or recipe.dataset
        raise ConfigError(f"--cohort: expected cases of {types}, got none.")
    return Context(
        task=task,
        recipe=recipe,
        sources=shelf.sources,
        members=members,
        settings=config.settings,
        excluded=shelf.excluded,
        genes=genes,
    )


def _with_parts(config: LabelsBuildConfig, task: Task, labels: Sequence[Label]) -> list[Label]:
    """The labels, cut into parts where the task has a split of its own."""
    if config.ratio is None or task.split_policy not in ("own", "test_fold"):
        return list(labels)
    strata: dict[str, set[str]] = {}
    for label in labels:
        name = label.label if isinstance(label, ClassLabel) else str(label.event)
        strata.setdefault(task.patient_of(label.case_id, label.slides), set()).add(name)
    by_patient = {patient: tuple(sorted(names)) for patient, names in strata.items()}
    (fold,) = by_ratio(by_patient, config.ratio, seed=config.seed)
    return [
        replace(label, split=fold.parts[task.patient_of(label.case_id, label.slides)])
        for label in labels
    ]


def _write(config: LabelsBuildConfig, built: Sequence[TaskOutcome]) -> int:
    """Write what is new; returns how many tables were written.

    Raises:
        SplitError: a table is there and says something else.
    """
    tables = {outcome.task.task_id: _table_bytes(outcome.derived.labels) for outcome in built}
    changed = []
    for task_id, data in tables.items():
        uri = objects.join(config.out, f"{task_id}.csv")
        if objects.exists(uri) and objects.read_bytes(uri) != data:
            changed.append(task_id)
    if changed and not config.replace:
        raise SplitError(
            f"{config.out}: {len(changed)} label tables say something else: "
            f"{', '.join(changed[:6])}. Predictions may have been made with them: choose another "
            "--out, or give --replace."
        )
    written = 0
    for task_id, data in tables.items():
        uri = objects.join(config.out, f"{task_id}.csv")
        if task_id in changed or not objects.exists(uri):
            objects.write_whole(uri, data)
            written += 1
    if built:
        record = configs.to_json(_record(config, built)) + "\n"
        objects.write_whole(objects.join(config.out, RECORD), record.encode())
    return written


def _table_bytes(labels: Sequence[Label]) -> bytes:
    with TemporaryDirectory(prefix="mstar-") as folder:
        path = Path(folder) / "labels.csv"
        classes = [label for label in labels if isinstance(label, ClassLabel)]
        times = [label for label in labels if isinstance(label, SurvivalLabel)]
        if classes:
            write_class_labels(str(path), classes)
        else:
            write_survival_labels(str(path), times)
        return path.read_bytes()


def _record(config: LabelsBuildConfig, built: Sequence[TaskOutcome]) -> dict[str, Any]:
    """What made the tables: settings, files and their digests, counts, what was dropped."""
    uris = sorted({uri for outcome in built for uri in outcome.files})
    cohorts = [objects.join(folder, "cases.csv") for folder in config.cohort]
    return {
        "job": "labels build",
        "mstar_version": mstar.__version__,
        "registry": config.registry,
        "settings": configs.to_dict(config.settings),
        "parts": config.parts,
        "seed": config.seed,
        "sources": {uri: digest_of(uri) for uri in [*cohorts, *uris]},
        "tasks": {
            outcome.task.task_id: {
                "samples": len(outcome.derived.labels),
                "cases": len({label.case_id for label in outcome.derived.labels}),
                "counts": configs.to_dict(outcome.comparison),
                "dropped": dict(sorted(outcome.derived.dropped.items())),
                "notes": outcome.derived.notes,
                "files": sorted(outcome.files),
                "sha256": hashlib.sha256(_table_bytes(outcome.derived.labels)).hexdigest(),
            }
            for outcome in built
        },
    }
