"""`mstar cohort split C`: makes the split registry of a cohort, or a further split, and freezes it.

    mstar cohort split C --preset mstar                          C/splits.csv, C/splits.json
    mstar cohort split C --scheme kfold --name cv5 --folds 5     C/splits/cv5.csv, .json

The case table stays as it is: the registry is the one place that says who is in which part.
"""

from collections.abc import Sequence
from dataclasses import replace

from mstar.cohorts.split_config import SplitConfig
from mstar.cohorts.split_report import registry_report, split_report
from mstar.cohorts.split_strata import scheme_folds
from mstar.config import to_dict
from mstar.data.cases import Case, read_cases
from mstar.data.splits.held_out import TaskTable, read_task_tables
from mstar.data.splits.leaks import (
    check_known,
    check_patients,
    check_slides,
    find_seen,
)
from mstar.data.splits.preset import make_registry
from mstar.data.splits.registry import (
    SplitRegistry,
    cases_digest,
    has_registry,
    read_registry,
    registry_file,
    write_registry,
)
from mstar.data.splits.schemes import Split, check_against, check_split, split_file, write_split
from mstar.storage import objects
from mstar.training.exit_codes import ExitCode

__all__ = ["SplitConfig", "make_split", "plan_registry", "run"]


def run(config: SplitConfig) -> int:
    """Make the split that the config asks for, write it and print a summary."""
    cases = read_cases(objects.join(config.cohort, "cases.csv"), allow_shared_slides=True)
    if config.preset is not None:
        return _run_preset(config, cases)
    split = make_split(config, cases)
    file = split_file(config.cohort, split.name)
    state = "not written: --dry-run"
    if not config.dry_run:
        written = write_split(config.cohort, split, replace=config.replace)
        state = "written" if written else "unchanged: these rows were there"
    print(split_report(file.csv, state, split))
    return ExitCode.COMPLETE


def plan_registry(config: SplitConfig, cases: Sequence[Case]) -> SplitRegistry:
    """The registry that the config asks for, not yet written."""
    kept = read_registry(config.cohort) if config.extend else None
    if kept is not None:
        check_known((row.case_id for row in kept.rows), cases, "--extend")
    return make_registry(cases, config.settings, _tasks(config), kept=kept)


def make_split(config: SplitConfig, cases: Sequence[Case]) -> Split:
    """The further split that the config asks for, checked for leaks, not yet written."""
    assert config.scheme is not None
    table = objects.join(config.cohort, "cases.csv")
    check_patients(cases, table)
    check_slides(cases, table)
    folds, left_out = scheme_folds(config, cases)
    facts = {
        "config": {**to_dict(config.settings), **_scheme_settings(config)},
        "seed": config.settings.seed,
        "cases_digest": cases_digest(cases),
        "left_out": left_out,
    }
    split = Split(name=config.name or config.scheme, scheme=config.scheme, folds=folds, facts=facts)
    registry = read_registry(config.cohort) if has_registry(config.cohort) else None
    check_split(split)
    check_against(split, cases, registry)
    if registry is None:
        return split
    seen = len(find_seen(split.held_out, registry.pretraining))
    known = {"registry_digest": registry.digest, "seen_in_pretraining": seen}
    return replace(split, facts={**facts, **known})


def _run_preset(config: SplitConfig, cases: Sequence[Case]) -> int:
    registry = plan_registry(config, cases)
    state = "not written: --dry-run"
    if not config.dry_run:
        written = write_registry(
            config.cohort, registry, replace=config.replace, only_adds=config.extend
        )
        state = "written" if written else "unchanged: these rows were there"
    print(registry_report(registry_file(config.cohort).csv, state, registry))
    return ExitCode.COMPLETE


def _tasks(config: SplitConfig) -> list[TaskTable]:
    """The task tables; addresses below the cohort are made relative to it, as it may move."""
    places = list(config.tasks)
    if places == ["none"]:
        return []
    if not places:
        labels = objects.join(config.cohort, "labels")
        if next(iter(objects.list_files(labels)), None) is None:
            return []
        places = [labels]
    root = objects.join(config.cohort, "")
    return [
        replace(table, uri=table.uri.removeprefix(f"{root}/")) for table in read_task_tables(places)
    ]


def _scheme_settings(config: SplitConfig) -> dict[str, object]:
    """The settings that further splits have besides those of the preset."""
    names = ("scheme", "label_column", "folds", "val_share", "min_site_cases", "allow_seen")
    return {name: getattr(config, name) for name in names}
