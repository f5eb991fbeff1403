"""`mstar cohort check C`: what a cohort holds, and every problem found, before anything is trained.

One screen, the same as C/check.json and as a figure C/check.png. Nothing of the cohort is changed.
The exit code is 0 when nothing is wrong but for warnings, 3 when some of the data cannot be used,
2 when a table cannot be read.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import tyro

from mstar.cohorts import check_figure, check_report
from mstar.cohorts.check_features import Patches, check_features, count_grids
from mstar.cohorts.check_problems import Findings, exit_code
from mstar.cohorts.check_result import (
    ALL,
    PRETRAINING,
    USABLE,
    CohortCheck,
    Combination,
    TypeCounts,
)
from mstar.cohorts.check_tables import (
    Modality,
    check_case_table,
    check_expression,
    check_labels,
    check_manifest,
    check_registry,
    check_reports,
    find_absent_files,
    find_split_names,
    read_case_table,
    read_facts,
)
from mstar.data.cases import Case
from mstar.data.modalities import PairCounts, pair_counts
from mstar.data.splits.leaks import HELD_OUT
from mstar.data.splits.registry import SplitRegistry
from mstar.errors import CohortError
from mstar.storage import objects

NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckConfig:
    """Check a cohort: counts, modality pairs, and every problem found."""

    cohort: tyro.conf.Positional[str]
    """The cohort folder (with cases.csv), local or s3://…"""

    features: str = ""
    """A feature store: every slide of a case must be in it, and patches are counted by it."""

    grids: str = ""
    """A grid store to count patches by, when there are no features; empty: the cohort's own
    grids/ or features/_grids/, if there is one."""

    json: str = ""
    """Where the result goes as JSON; empty: check.json in the cohort; none: nowhere."""

    figure: str = ""
    """Where the figure goes (PNG); empty: check.png in the cohort; none: nowhere."""

    strict: bool = False
    """Whether warnings count as errors in the exit code."""


def run(config: CheckConfig) -> int:
    """Check, print, write; returns the exit code."""
    check = check_cohort(config)
    print(check_report.screen(check))
    outputs = (
        (config.json, "check.json", check_report.to_json),
        (config.figure, "check.png", check_figure.draw),
    )
    for chosen, name, made in outputs:
        if chosen != NONE:
            uri = chosen or objects.join(config.cohort, name)
            objects.write_whole(uri, made(check))
            print(f"  written   {uri}")
    return int(exit_code(check.problems, strict=config.strict))


def check_cohort(config: CheckConfig) -> CohortCheck:
    """Everything that can be told of a cohort folder without training on it.

    Raises:
        CohortError: the folder is none.
        FeatureError: `features` or `grids` is no store.
    """
    cohort, found = config.cohort, Findings()
    if not objects.exists(objects.join(cohort, "cases.csv")):
        raise CohortError(
            f"{cohort}: expected a cohort folder with cases.csv, found none. Make one with "
            "`mstar cohort build` or `mstar cohort generate`."
        )
    facts = read_facts(cohort, found)
    cases = read_case_table(cohort, found)
    check_case_table(cases, find_split_names(cohort, found), found)
    manifest = check_manifest(cohort, cases, found)
    claimed = {slide for case in cases for slide in case.slides}
    patches = _patches(config, claimed, found)
    absent = find_absent_files(manifest[slide] for slide in sorted(claimed & manifest.keys()))
    with_features = set(patches.per_slide) if patches.source == "features" else set()
    found.add("missing_slide_file", absent - with_features)
    found.add("slide_file_gone", absent & with_features)
    reports = check_reports(cohort, cases, found)
    expression = check_expression(cohort, cases, found)
    registry = check_registry(cohort, cases, found)
    num_label_tables = check_labels(cohort, cases, registry, found)
    sound = claimed & manifest.keys() - absent
    if patches.source == "features":
        sound = {slide for slide, rows in patches.per_slide.items() if rows}
    usable = [_usable(case, sound, reports, expression) for case in cases]
    bare = (case.case_id for case in usable if _combination(case) == (False, False, False))
    found.add("case_without_modality", bare)
    return CohortCheck(
        cohort=cohort,
        data_source=str(facts.get("data_source", "not stated")),
        cancer_types=_cancer_types(cases, registry),
        num_slides=len(claimed),
        patches=patches,
        num_genes=expression.size,
        num_label_tables=num_label_tables,
        pairs=_pairs(cases, usable, registry),
        overlap=Counter(_combination(case) for case in usable),
        registry_digest=registry.digest if registry else "",
        problems=found.problems(),
    )


def _patches(config: CheckConfig, slides: set[str], found: Findings) -> Patches:
    if config.features:
        return check_features(config.features, slides, found)
    return count_grids(config.cohort, config.grids, slides)


def _usable(case: Case, slides: set[str], reports: Modality, expression: Modality) -> Case:
    """The case without what it names but what is not there, or holds nothing."""
    return replace(
        case,
        slides=tuple(slide for slide in case.slides if slide in slides),
        report=case.report if case.report in reports.usable else None,
        rna=case.rna if case.rna in expression.usable else None,
    )


def _combination(case: Case) -> Combination:
    return bool(case.slides), bool(case.report), bool(case.rna)


def _cancer_types(cases: Sequence[Case], registry: SplitRegistry | None) -> dict[str, TypeCounts]:
    """The most frequent first."""
    rows = registry.rows if registry else ()
    held = {row.case_id for row in rows if row.part in HELD_OUT}
    total = Counter(case.cancer_type for case in cases)
    held_out = Counter(case.cancer_type for case in cases if case.case_id in held)
    names = sorted(total, key=lambda name: (-total[name], name))
    return {name: TypeCounts(cases=total[name], held_out=held_out[name]) for name in names}


def _pairs(
    cases: Sequence[Case], usable: Sequence[Case], registry: SplitRegistry | None
) -> dict[str, PairCounts]:
    pairs = {ALL: pair_counts(cases), USABLE: pair_counts(usable)}
    if registry is not None:
        seen = registry.pretraining
        pairs[PRETRAINING] = pair_counts(case for case in usable if case.case_id in seen)
    return pairs
