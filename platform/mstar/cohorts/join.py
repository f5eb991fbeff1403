"""Joins the sources of a cohort to its cases, reading everything but the expression values."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mstar.cohorts.build_config import BuildConfig
from mstar.cohorts.selection import (
    NO_BARCODE,
    Exclusions,
    parse_rna_samples,
    select_reports,
    select_samples,
    select_slides,
)
from mstar.config import to_dict
from mstar.data.barcodes import parse_barcode
from mstar.data.cases import Case
from mstar.data.clinical import ClinicalRow, ClinicalTable, read_clinical
from mstar.data.reports import ReportTable, clean_reports, read_reports
from mstar.data.rna import matrix
from mstar.errors import CohortError
from mstar.schema import SlideRef
from mstar.storage.manifest import BadRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What goes into the cohort, and what does not.

    samples: name in the expression matrix → case.
    """

    cases: list[Case]
    slides: dict[str, list[SlideRef]]
    reports: ReportTable | None
    samples: dict[str, str]
    exclusions: Exclusions
    notes: dict[str, Any]


def select(config: BuildConfig, entries: Sequence[SlideRef | BadRow]) -> Selection:
    """Decide what the cohort takes.

    Args:
        config: the sources and the rules.
        entries: the slides of the manifest.

    Raises:
        TableError: a source is malformed.
        CohortError: no case is left.
    """
    exclusions = Exclusions()
    table = read_clinical_tables(config.clinical_uris)
    rows = _rows_by_case(config, table, exclusions)
    slides = select_slides(entries, rows, exclusions, ids=config.ids, sections=config.sections)
    reports, cleaning = _reports(config, rows, exclusions)
    samples = _samples(config, rows, exclusions)
    _refuse_unused(config, slides, reports, samples, exclusions)
    with_rna = frozenset(samples.values())
    cases = []
    for case_id, row in sorted(rows.items()):
        case = _case(row, case_id, slides.get(case_id, ()), reports or {}, with_rna)
        if case.slides or case.report or case.rna:
            cases.append(case)
        else:
            exclusions.add("cases", "no slide, report or expression", case_id)
    if not cases:
        raise CohortError(
            f"{config.clinical_uris[0]}: no case has a slide, a report or expression. "
            + _left_out(config, exclusions)
        )
    notes = {
        "clinical": {"dialect": table.dialect, "rows": len(table.rows)},
        "without_survival": dict(sorted(table.without_survival.items())),
        "report_cleaning": cleaning,
    }
    return Selection(
        cases=cases,
        slides=slides,
        reports=reports,
        samples=samples,
        exclusions=exclusions,
        notes=notes,
    )


def read_clinical_tables(uris: Sequence[str]) -> ClinicalTable:
    """One clinical table of several, whose cases must differ.

    Raises:
        TableError: a table is malformed.
        CohortError: a case is in two tables.
    """
    rows: dict[str, ClinicalRow] = {}
    missing: Counter[str] = Counter()
    tables = [read_clinical(uri) for uri in uris]
    for number, table in enumerate(tables):
        twice = next((case_id for case_id in table.rows if case_id in rows), None)
        if twice is not None:
            first = next(i for i, earlier in enumerate(tables) if twice in earlier.rows)
            raise CohortError(
                f"{uris[number]}: case {twice} is in {uris[first]} too. Keep one of the rows."
            )
        rows |= table.rows
        missing.update(table.without_survival)
    kinds = ", ".join(dict.fromkeys(table.dialect for table in tables))
    return ClinicalTable(rows=rows, dialect=kinds, without_survival=dict(missing))


def _rows_by_case(
    config: BuildConfig, table: ClinicalTable, exclusions: Exclusions
) -> dict[str, ClinicalRow]:
    """The clinical rows under the ids that the other sources have too."""
    if config.ids == "plain":
        return dict(table.rows)
    rows: dict[str, ClinicalRow] = {}
    for case_id, row in table.rows.items():
        barcode = parse_barcode(case_id)
        if barcode is None:
            exclusions.add("cases", NO_BARCODE, case_id)
        elif barcode.patient in rows:
            exclusions.add("cases", "another clinical row of the patient is taken", case_id)
        else:
            rows[barcode.patient] = row
    if not rows:
        first = ", ".join(list(table.rows)[:3]) or "no rows"
        raise CohortError(
            f"{config.clinical_uris[0]}: expected TCGA barcodes as case ids, got {first}. With "
            "case ids of your own, use --ids plain."
        )
    return rows


def _reports(
    config: BuildConfig, rows: Mapping[str, ClinicalRow], exclusions: Exclusions
) -> tuple[ReportTable | None, Any]:
    """The cleaned reports by case, and what the cleaning did."""
    if config.reports is None:
        return None, None
    raw = read_reports(config.reports)
    keys = select_reports([*raw, *raw.empty], rows, exclusions, ids=config.ids)
    chosen = {case_id: raw[key] for case_id, key in keys.items() if key in raw}
    without_text = tuple(case_id for case_id, key in keys.items() if key not in raw)
    cleaned, counts = clean_reports(ReportTable(reports=chosen, empty=without_text))
    for case_id in cleaned.empty:
        reason = "without text" if case_id in without_text else "without text once cleaned"
        exclusions.add("reports", reason, keys[case_id])
    return cleaned, to_dict(counts)


def _samples(
    config: BuildConfig, rows: Mapping[str, ClinicalRow], exclusions: Exclusions
) -> dict[str, str]:
    names = [
        name for uri in config.rna_uris for name in matrix.sample_names(uri, config.expression)
    ]
    return select_samples(
        dict.fromkeys(names),
        {case_id: row.cancer_type for case_id, row in rows.items()},
        exclusions,
        ids=config.ids,
        sample_types=parse_rna_samples(config.rna_samples),
    )


def _case(
    row: ClinicalRow,
    case_id: str,
    slides: Sequence[SlideRef],
    reports: Mapping[str, object],
    with_rna: frozenset[str],
) -> Case:
    barcode = parse_barcode(case_id)
    return Case(
        case_id=case_id,
        cancer_type=row.cancer_type,
        slides=tuple(slide.slide_id for slide in slides),
        report=case_id if case_id in reports else None,
        rna=case_id if case_id in with_rna else None,
        split=row.split,
        site=row.site or (barcode.site if barcode else None),
        os_months=row.os_months,
        os_event=row.os_event,
    )


def _refuse_unused(
    config: BuildConfig, slides: object, reports: object, samples: object, exclusions: Exclusions
) -> None:
    """A source of which nothing is used was not meant to be given like this."""
    given = {
        "slides": (config.slides, slides),
        "reports": (config.reports, reports),
        "rna": (", ".join(config.rna_uris), samples),
    }
    for kind, (source, used) in given.items():
        if source and not used:
            raise CohortError(
                f"--{kind} {source}: nothing of it belongs to a case. "
                + _left_out(config, exclusions)
            )


def _left_out(config: BuildConfig, exclusions: Exclusions) -> str:
    reasons = [
        f"{count:,} {kind}: {reason} ({exclusions.first[kind][reason][0]} …)"
        for kind, reasons in exclusions.counts.items()
        for reason, count in reasons.items()
    ]
    return f"Left out: {'; '.join(reasons) or 'nothing'}. Check the ids (--ids {config.ids})."
