"""What a check found, on one screen and as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mstar.cohorts.check_problems import KINDS, Problem
from mstar.cohorts.check_result import ALL, USABLE, CohortCheck
from mstar.data.modalities import PairCounts

_PAIR_COLUMNS = (
    ("cases", "cases"),
    ("WSI", "wsi"),
    ("report", "report"),
    ("RNA", "rna"),
    ("WSI–report", "wsi_report"),
    ("WSI–RNA", "wsi_rna"),
    ("report–RNA", "report_rna"),
    ("pairs", "pairs"),
    ("all three", "all_three"),
)
_SHOWN_TYPES = 8
_SHOWN_IDS = 3
_JSON_IDS = 100  # of each kind; the count tells of the rest
_SHOWN_CHARS = 160


def screen(check: CohortCheck) -> str:
    """Counts, the table of pairs, and the problems with their first examples."""
    lines = [f"cohort {check.cohort} (data: {check.data_source})", *_counts(check), ""]
    lines += _pair_table(check.pairs)
    lines.append("")
    if not check.problems:
        lines.append("  no problem found")
    for problem in check.problems:
        lines += _problem(problem)
    return "\n".join(lines)


def to_json(check: CohortCheck) -> bytes:
    """The same as JSON; equal cohorts give equal bytes."""
    content = {
        "cohort": check.cohort,
        "data_source": check.data_source,
        "cases": check.pairs[ALL].cases,
        "slides": check.num_slides,
        "patches": check.patches.total if check.patches.source != "none" else None,
        "patches_from": {"kind": check.patches.source, "store": check.patches.root},
        "feature_dims": check.patches.dims,
        "genes": check.num_genes,
        "label_tables": check.num_label_tables,
        "cancer_types": {name: asdict(counts) for name, counts in check.cancer_types.items()},
        "pairs": {
            name: asdict(pairs) | {"pairs": pairs.pairs} for name, pairs in check.pairs.items()
        },
        "registry_digest": check.registry_digest,
        "errors": check.num_errors,
        "problems": [_plain(problem) for problem in check.problems],
    }
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _counts(check: CohortCheck) -> list[str]:
    pairs = check.pairs[ALL]
    slides = f"{check.num_slides:,} of {pairs.wsi:,} cases"
    patches = "not counted: give --features, or --grids"
    if check.patches.source != "none":
        dims = f", {check.patches.dims:,} dims" if check.patches.dims else ""
        patches = f"{check.patches.total:,} in {len(check.patches.per_slide):,} slides"
        patches += f" ({check.patches.source} {check.patches.root}{dims})"
    genes = f", {check.num_genes:,} genes" if check.num_genes else ""
    registry = check.registry_digest[:12] or "none: run `mstar cohort split C --preset mstar`"
    return [
        f"  cases     {pairs.cases:,}",
        f"  slides    {slides}",
        f"  patches   {patches}",
        f"  reports   {pairs.report:,}",
        f"  RNA       {pairs.rna:,}{genes}",
        f"  cancers   {_types(check)}",
        f"  registry  {registry}",
        f"  labels    {check.num_label_tables:,} tables",
    ]


def _types(check: CohortCheck) -> str:
    shown = [f"{name} {n.cases:,}" for name, n in list(check.cancer_types.items())[:_SHOWN_TYPES]]
    more = len(check.cancer_types) - len(shown)
    return f"{len(check.cancer_types)}: " + ", ".join(shown) + (f", {more} more" if more else "")


def _pair_table(pairs: Mapping[str, PairCounts]) -> list[str]:
    """The rows of the paper's table; `usable` only where it differs from all."""
    rows = {name: row for name, row in pairs.items() if name != USABLE or row != pairs[ALL]}
    widths = [max(len(title), 7) for title, _ in _PAIR_COLUMNS]
    first = max(map(len, rows))
    titles = "  ".join(t.rjust(w) for (t, _), w in zip(_PAIR_COLUMNS, widths, strict=True))
    lines = [f"  {'':{first}}  {titles}"]
    for name, row in rows.items():
        values = (f"{getattr(row, field):,}" for _, field in _PAIR_COLUMNS)
        cells = "  ".join(v.rjust(w) for v, w in zip(values, widths, strict=True))
        lines.append(f"  {name:{first}}  {cells}")
    return lines


def _problem(problem: Problem) -> list[str]:
    kind = KINDS[problem.kind]
    shown = [_short(text) for text in problem.ids[:_SHOWN_IDS]]
    more = len(problem.ids) - len(shown)
    examples = ", ".join(shown) + (f" and {more:,} more" if more else "")
    head = f"  {problem.severity.upper():8} {len(problem.ids):,} {kind.what}"
    return [f"{head}: {examples}", f"           {kind.way_out}"]


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def _plain(problem: Problem) -> dict[str, Any]:
    kind = KINDS[problem.kind]
    return {
        "kind": problem.kind,
        "severity": kind.severity,
        "count": len(problem.ids),
        "what": kind.what,
        "way_out": kind.way_out,
        "examples": list(problem.ids[:_JSON_IDS]),
    }
