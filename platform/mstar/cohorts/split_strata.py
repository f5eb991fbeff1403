"""The cases and strata that a further split is made of: from the case table or a label table."""

from collections.abc import Iterable, Mapping, Sequence

from mstar.cohorts.split_config import SplitConfig
from mstar.data.barcodes import parse_barcode
from mstar.data.cancer_types import cohort_group
from mstar.data.cases import Case
from mstar.data.splits.held_out import CASE_COLUMN
from mstar.data.splits.leaks import check_known
from mstar.data.splits.preset import known_survival
from mstar.data.splits.schemes import (
    Fold,
    by_ratio,
    check_complete,
    external,
    k_fold,
    label_strata,
    leave_one_site_out,
)
from mstar.data.splits.stratify import Strata, survival_strata
from mstar.data.tables import Column, bad_cell, read_table
from mstar.errors import ConfigError, SplitError

Survival = dict[str, tuple[float, int]]
_TIME = Column(
    name="time_months", kind="number", required=False, nullable=True, aliases=("os_months",)
)
_EVENT = Column(
    name="event",
    kind="integer",
    required=False,
    nullable=True,
    aliases=("os_event",),
    allowed=("0", "1"),
)


def scheme_folds(
    config: SplitConfig, cases: Sequence[Case]
) -> tuple[tuple[Fold, ...], dict[str, int]]:
    """The folds of a scheme, and how many cases were left out by reason."""
    strata, left_out = _strata(config, cases)
    if not strata:
        raise SplitError(f"--scheme {config.scheme}: no case can be split: {left_out}.")
    seed = config.settings.seed
    if config.scheme == "external":
        return external(strata), left_out
    if config.scheme in ("survival", "label"):
        return by_ratio(strata, config.settings.ratio, seed=seed), left_out
    if config.scheme == "kfold":
        folds = k_fold(strata, folds=config.folds, val_share=config.val_share, seed=seed)
        return folds, left_out
    sites = _sites(case for case in cases if case.case_id in strata)
    folds = leave_one_site_out(
        strata,
        sites,
        min_site_cases=config.min_site_cases,
        val_share=config.val_share,
        seed=seed,
    )
    return folds, left_out


def _strata(config: SplitConfig, cases: Sequence[Case]) -> tuple[Strata, dict[str, int]]:
    if config.label is None:
        return _case_strata(config, cases)
    ids, labels, survival = _read_labels(config.label, config.label_column)
    check_known(ids, cases, config.label)
    if config.scheme == "external":
        return {case: () for case in ids}, {}
    if config.scheme == "survival" or not labels:
        if not survival:
            raise ConfigError(
                f"{config.label}: expected a column {config.label_column}, or time_months and "
                "event, with values. Name it with --label-column."
            )
        strata = _by_survival(config, {config.label: survival})
        return strata, {"no survival": len(ids) - len(strata)}
    return label_strata(labels), {"no label": len(ids) - len(labels)}


def _case_strata(config: SplitConfig, cases: Sequence[Case]) -> tuple[Strata, dict[str, int]]:
    """Cohort × survival; where a scheme needs none, cases without survival are strata too."""
    groups: dict[str, Survival] = {}
    unknown: dict[str, tuple[str, ...]] = {}
    known = known_survival(cases)
    for case in cases:
        group = cohort_group(case.cancer_type)
        if case.case_id in known:
            groups.setdefault(group, {})[case.case_id] = known[case.case_id]
        else:
            unknown[case.case_id] = (group, "survival unknown")
    strata = _by_survival(config, groups)
    if config.scheme == "survival":
        return strata, {"no survival": len(unknown)}
    return {**strata, **unknown}, {}


def _by_survival(config: SplitConfig, groups: Mapping[str, Survival]) -> dict[str, tuple[str, ...]]:
    settings = config.settings
    strata: dict[str, tuple[str, ...]] = {}
    for group, survival in groups.items():
        strata |= survival_strata(
            survival, bins=settings.time_bins, seed=settings.seed, within=group
        )
    return strata


def _read_labels(uri: str, label_column: str) -> tuple[list[str], dict[str, str], Survival]:
    """The cases of a label table, their labels and their survival where it has them."""
    label = Column(name=label_column, required=False, nullable=True)
    table = read_table(uri, [CASE_COLUMN, label, _TIME, _EVENT])
    labels: dict[str, str] = {}
    survival: Survival = {}
    seen: dict[str, dict[str, object]] = {}
    for row, cells in enumerate(table.to_pylist()):
        case = cells["case_id"]
        if seen.setdefault(case, cells) != cells:
            expected = f"what an earlier row of case {case} has"
            raise bad_cell(uri, row, "case_id", expected, cells, "Keep one label a case.")
        if cells.get(label_column) is not None:
            labels[case] = cells[label_column]
        if cells.get("time_months") is not None and cells.get("event") is not None:
            survival[case] = (cells["time_months"], cells["event"])
    return list(seen), labels, survival


def _sites(cases: Iterable[Case]) -> dict[str, str]:
    """Case → its site: the column, else the tissue source site of its TCGA barcode."""
    sites: dict[str, str | None] = {}
    for case in cases:
        barcode = parse_barcode(case.case_id)
        sites[case.case_id] = case.site or (barcode.site if barcode else None)
    return check_complete(sites, "site", "Fill the column site of the case table.")
