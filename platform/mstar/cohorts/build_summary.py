"""One screen about a cohort that was built, from its record."""

from collections.abc import Iterator, Mapping
from typing import Any

from mstar.data.cancer_types import CANCER_TYPES

NAMES_SHOWN = 2
NAME_CHARS = 60
OTHERS_SHOWN = 6
REASONS_SHOWN = 6


def summary_lines(record: Mapping[str, Any], out: str, verdict: str) -> Iterator[str]:
    """What the cohort holds, what was left out, and why."""
    counts, exclusions = record["counts"], record["exclusions"]
    yield f"cohort build: {verdict}"
    yield f"  cases     {counts['cases']:,} {_of_clinical(record)}"
    yield f"  cancers   {_cancers(counts['cancer_types'])}"
    yield f"  slides    {counts['slides']:,} of {counts['wsi']:,} cases"
    yield f"  reports   {counts['report']:,} cases{_cleaned(record['report_cleaning'])}"
    yield f"  rna       {counts['rna']:,} cases{_genes(record['expression'])}"
    yield (
        f"  pairs     slide–report {counts['wsi_report']:,}, slide–RNA {counts['wsi_rna']:,}, "
        f"report–RNA {counts['report_rna']:,}, all three {counts['all_three']:,}"
    )
    yield f"  survival  {counts['with_survival']:,} cases{_without(record['without_survival'])}"
    yield f"  sites     {counts['sites']:,}"
    for kind in exclusions:
        yield from _left_out(kind, exclusions[kind])
    for note in (record["expression"] or {}).get("notes", ()):
        yield f"  note      {note}"
    if record["data_source"] != "real":
        yield f"  note      the data are {record['data_source']}, not of patients"
    yield f"  output    {out}"


def _of_clinical(record: Mapping[str, Any]) -> str:
    clinical = record["clinical"]
    return f"of {clinical['rows']:,} in the clinical table ({clinical['dialect']})"


def _cancers(types: Mapping[str, int]) -> str:
    """How many, and those that are not among the 32 by name: a typo would be one of them."""
    others = [f"{name} ({number:,})" for name, number in types.items() if name not in CANCER_TYPES]
    if not others:
        return f"{len(types):,}, all among the {len(CANCER_TYPES)} of TCGA"
    more = f" and {len(others) - OTHERS_SHOWN:,} more" if len(others) > OTHERS_SHOWN else ""
    return f"{len(types):,}; not among TCGA's: {', '.join(others[:OTHERS_SHOWN])}{more}"


def _cleaned(cleaning: Mapping[str, Any] | None) -> str:
    if cleaning is None:
        return ""
    changed = cleaning["reports"] - cleaning["unchanged"]
    return f" ({changed:,} changed by cleaning, {cleaning['taken_as_is']:,} cleaned elsewhere)"


def _genes(expression: Mapping[str, Any] | None) -> str:
    if expression is None:
        return ""
    zero = len(expression["zero_cases"])
    dead = f", {zero:,} of them without any expression" if zero else ""
    return f"{dead}; {expression['num_genes']:,} genes, {expression['unit']}"


def _without(reasons: Mapping[str, int]) -> str:
    if not reasons:
        return ""
    shown = ", ".join(f"{number:,} with {reason}" for reason, number in reasons.items())
    return f"; of the clinical table {shown}"


def _left_out(kind: str, reasons: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The commonest reasons, each with the first names."""
    ranked = sorted(reasons, key=lambda reason: (-reasons[reason]["count"], reason))
    total = sum(reasons[reason]["count"] for reason in ranked)
    yield f"  left out  {total:,} {kind}"
    for reason in ranked[:REASONS_SHOWN]:
        names = reasons[reason]["first"]
        more = " …" if reasons[reason]["count"] > NAMES_SHOWN else ""
        shown = ", ".join(_short(name) for name in names[:NAMES_SHOWN]) + more
        yield f"            {reasons[reason]['count']:,} × {reason}: {shown}"
    if len(ranked) > REASONS_SHOWN:
        yield f"            and {len(ranked) - REASONS_SHOWN:,} more reasons, in cohort.json"


def _short(name: str) -> str:
    """Without the folders of a slide id, which for downloads from the GDC are UUIDs."""
    name = name if " " in name else name.rpartition("/")[2]
    return name if len(name) <= NAME_CHARS else name[:NAME_CHARS] + "…"
