"""What is true of each case as reports could say it, for scoring generated reports.

    truth/facts.csv           case_id, fact, level
    truth/fact_phrases.csv    fact, level, phrase
    truth/reports_shown.csv   case_id, text: the findings of each report that slides show

The facts that slides show: cancer type, grade, mutation, pathway. A fact's level is that of the
case's own factor, whatever its report says or leaves out.
"""

from collections.abc import Sequence

import pyarrow as pa

from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.factors import CaseFactors
from mstar.cohorts.generated.grammar import CANCER_TYPE_PHRASES, FINDINGS
from mstar.cohorts.generated.reports import compose_shown, levels_of
from mstar.data.tables import write_table
from mstar.storage import objects

SHOWN = ("grade", "mutation", "pathway")
LEVELS = {
    "grade": ("1", "2", "3"),
    "mutation": ("wildtype", "mutated"),
    "pathway": ("low", "medium", "high"),
}


def write_facts(folder: str, config: GenerateConfig, cases: Sequence[CaseFactors]) -> None:
    """Write the three tables."""
    shown = [(case.case_id, compose_shown(config, case)) for case in cases if case.has_report]
    _write(folder, "reports_shown.csv", ("case_id", "text"), [row for row in shown if row[1]])
    _write(folder, "facts.csv", ("case_id", "fact", "level"), fact_rows(config, cases))
    _write(folder, "fact_phrases.csv", ("fact", "level", "phrase"), phrase_rows(config))


def fact_rows(config: GenerateConfig, cases: Sequence[CaseFactors]) -> list[tuple[str, str, str]]:
    """Case, fact and level."""
    rows = []
    for case in cases:
        levels = levels_of(config, case)
        rows.append((case.case_id, "cancer_type", case.cancer_type))
        rows += [(case.case_id, fact, LEVELS[fact][levels[fact][0]]) for fact in SHOWN]
    return rows


def phrase_rows(config: GenerateConfig) -> list[tuple[str, str, str]]:
    """Fact, level and each phrase that reports say it with."""
    rows = [
        ("cancer_type", name, phrase)
        for name in config.cancer_types
        for phrase in CANCER_TYPE_PHRASES[name]
    ]
    for fact in SHOWN:
        for level, phrases in zip(LEVELS[fact], FINDINGS[fact], strict=True):
            rows += [(fact, level, phrase) for phrase in phrases]
    return rows


def _write(folder: str, name: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    cells = {column: [row[at] for row in rows] for at, column in enumerate(columns)}
    write_table(objects.join(folder, "truth", name), pa.table(cells))
