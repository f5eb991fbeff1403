"""Makes the split registry of the method (`--preset mstar`; article, Pretraining dataset curation).

The large cohorts are split 7:1:2 at patient level, stratified by survival. Their training cases,
their cases without survival labels and all other cohorts are pretrained on, except patients that
any task validates or tests on.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mstar.config import to_dict
from mstar.data.cancer_types import PAPER_COHORTS, cohort_group
from mstar.data.cases import Case
from mstar.data.modalities import pair_counts
from mstar.data.splits.held_out import TaskTable
from mstar.data.splits.leaks import PARTS, check_patients, check_slides, patient_of
from mstar.data.splits.registry import SplitRegistry, SplitRow, cases_digest
from mstar.data.splits.stratify import assign, extend, survival_strata
from mstar.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetConfig:
    """What the split registry depends on, besides the cases and the tasks."""

    cohorts: str = "paper"
    """Cohorts to split: paper (its nine), all, or names with commas (BRCA,CRC)."""
    min_cases: int = 400
    """Cohorts are split that have more cases than this."""
    ratio: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of train, val and test, taken relative to their sum."""
    time_bins: int = 4
    """Quantile bins of the survival time, for events and for censored cases each."""
    seed: int = 0
    """Another seed gives another split."""


def make_registry(
    cases: Sequence[Case],
    config: PresetConfig,
    tasks: Sequence[TaskTable] = (),
    *,
    kept: SplitRegistry | None = None,
) -> SplitRegistry:
    """The registry of a case table.

    Args:
        cases: in any order; the order does not matter.
        config: the settings.
        tasks: their validation and test patients are not pretrained on, wherever they are.
        kept: a registry whose cases keep their part and whose cohorts are split or not as they
            were; only new cases are placed.

    Raises:
        SplitError: two cases are of one patient or share a slide.
        ConfigError: a setting makes no sense for these cases.
    """
    check_patients(cases, "case table")
    check_slides(cases, "case table")
    groups = {case.case_id: cohort_group(case.cancer_type) for case in cases}
    chosen = _chosen_before(groups, config, kept) if kept else choose_cohorts(groups, config)
    parts: dict[str, str] = {}
    for group in chosen:
        members = [case for case in cases if groups[case.case_id] == group]
        parts |= _split_group(group, members, config, kept)
    held = frozenset[str]().union(*(table.patients for table in tasks))
    rows = tuple(
        SplitRow(
            case_id=case,
            cohort=group,
            part=parts.get(case, ""),
            pretraining=parts.get(case, "") in ("", "train") and patient_of(case) not in held,
        )
        for case, group in sorted(groups.items())
    )
    return SplitRegistry(
        name="mstar",
        seed=kept.seed if kept else config.seed,
        rows=rows,
        cases_digest=cases_digest(cases),
        config=to_dict(config),
        counts=_counts(cases, rows, chosen, tasks),
    )


def choose_cohorts(groups: Mapping[str, str], config: PresetConfig) -> list[str]:
    """The cohorts that are split, sorted.

    groups: case → its cohort.

    Raises:
        ConfigError: a cohort that was named is not there, or is too small.
    """
    sizes = Counter(groups.values())
    large = {group for group, size in sizes.items() if size > config.min_cases}
    if config.cohorts in ("all", "paper"):
        return sorted(large if config.cohorts == "all" else large & set(PAPER_COHORTS))
    names = [name.strip() for name in config.cohorts.split(",") if name.strip()]
    for name in names:
        if name not in sizes:
            raise ConfigError(
                f"--cohorts {name}: expected paper, all, or cohorts of the case table, which are "
                f"{', '.join(sorted(sizes))}."
            )
        if name not in large:
            raise ConfigError(
                f"--cohorts {name}: expected more than {config.min_cases:,} cases, got "
                f"{sizes[name]:,}. Leave it out, or lower --min-cases."
            )
    return sorted(set(names))


def _chosen_before(
    groups: Mapping[str, str], config: PresetConfig, kept: SplitRegistry
) -> list[str]:
    """Cohorts stay split or unsplit as they were; new ones are chosen by the settings."""
    before = {row.cohort for row in kept.rows}
    fresh = {case: group for case, group in groups.items() if group not in before}
    split = {row.cohort for row in kept.rows if row.part}
    return sorted(split.union(choose_cohorts(fresh, config) if fresh else ()))


def _split_group(
    group: str, members: Sequence[Case], config: PresetConfig, kept: SplitRegistry | None
) -> dict[str, str]:
    """Case → part of one cohort; cases without survival labels have none."""
    rows = kept.rows if kept else ()
    seed = kept.seed if kept else config.seed
    parts = {row.case_id: row.part for row in rows if row.cohort == group}
    survival = known_survival(case for case in members if parts.get(case.case_id) != "")
    strata = survival_strata(survival, bins=config.time_bins, seed=seed, within=group)
    ratio = dict(zip(PARTS, config.ratio, strict=True))
    if kept is None:
        return assign(strata, ratio, seed=seed, purpose="parts")
    return extend(parts, strata, ratio, seed=seed, purpose="parts")


def known_survival(cases: Iterable[Case]) -> dict[str, tuple[float, int]]:
    """Case → (months, event) of the cases that have both."""
    return {
        case.case_id: (case.os_months, case.os_event)
        for case in cases
        if case.os_months is not None and case.os_event is not None
    }


def _counts(
    cases: Sequence[Case],
    rows: Sequence[SplitRow],
    chosen: Sequence[str],
    tasks: Sequence[TaskTable],
) -> dict[str, object]:
    patients = {patient_of(case.case_id) for case in cases}
    seen = {row.case_id for row in rows if row.pretraining}
    return {
        "split_cohorts": list(chosen),
        "cohorts": {group: _cohort_counts(rows, group) for group in sorted(_cohorts(rows))},
        "tasks": {table.uri: len(table.patients & patients) for table in tasks if table.has_parts},
        "pairs_before": to_dict(pair_counts(cases)),
        "pairs_after": to_dict(pair_counts(case for case in cases if case.case_id in seen)),
    }


def _cohorts(rows: Iterable[SplitRow]) -> set[str]:
    return {row.cohort for row in rows}


def _cohort_counts(rows: Iterable[SplitRow], group: str) -> dict[str, int]:
    here = [row for row in rows if row.cohort == group]
    return {
        "cases": len(here),
        **{part: sum(row.part == part for row in here) for part in PARTS},
        "no_part": sum(not row.part for row in here),
        "pretraining": sum(row.pretraining for row in here),
        "held_out_by_tasks": sum(not row.pretraining and row.part in ("", "train") for row in here),
    }
