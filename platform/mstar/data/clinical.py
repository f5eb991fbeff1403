"""Clinical tables: which cases there are, their cancer type and their overall survival.

    ours         case_id, cancer_type [, site, split, os_months, os_event]
    cBioPortal   PATIENT_ID, CANCER_TYPE_ACRONYM [, OS_MONTHS, OS_STATUS]    `#` lines at the head
    TCGA-CDR     bcr_patient_barcode, type [, OS.time, OS]                   days
    UCSC Xena    _PATIENT, cancer type abbreviation [, OS.time, OS]          days; a row a sample

Which of them a table is, its id column tells. Days become months of 365.25 / 12 days. A case whose
survival time or status is missing has neither: it is kept, and counted.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mstar.data.cancer_types import cancer_code
from mstar.data.table_files import separator_hint
from mstar.data.tables import Column, bad_cell, column_names, read_table
from mstar.errors import TableError

DAYS_PER_MONTH = 365.25 / 12
COMMENT = "#"
UNKNOWN = ("[Not Available]", "[Not Applicable]", "[Unknown]", "[Discrepancy]", "[Not Evaluated]")
_EVENTS = {
    "0": 0,
    "0.0": 0,
    "0:LIVING": 0,
    "LIVING": 0,
    "1": 1,
    "1.0": 1,
    "1:DECEASED": 1,
    "DECEASED": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClinicalRow:
    """What is known of a case beside its slides, report and expression."""

    case_id: str
    cancer_type: str
    site: str | None = None
    split: str | None = None
    os_months: float | None = None
    os_event: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClinicalTable:
    """The rows by case, in the order of the file.

    dialect: which kind of table it was.
    without_survival: why → how many cases have no survival.
    """

    rows: Mapping[str, ClinicalRow]
    dialect: str
    without_survival: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dialect:
    """The column names of one kind of table; repeats: a case may have several, equal rows."""

    name: str
    case_id: str
    cancer_type: tuple[str, ...]
    time: str
    event: str
    units_per_month: float = 1.0
    repeats: bool = False


_DIALECTS = (
    _Dialect(
        name="mstar",
        case_id="case_id",
        cancer_type=("cancer_type",),
        time="os_months",
        event="os_event",
    ),
    _Dialect(
        name="cBioPortal",
        case_id="PATIENT_ID",
        cancer_type=("CANCER_TYPE_ACRONYM", "cancer_type"),
        time="OS_MONTHS",
        event="OS_STATUS",
    ),
    _Dialect(
        name="TCGA-CDR",
        case_id="bcr_patient_barcode",
        cancer_type=("type", "cancer_type"),
        time="OS.time",
        event="OS",
        units_per_month=DAYS_PER_MONTH,
    ),
    _Dialect(
        name="UCSC Xena",
        case_id="_PATIENT",
        cancer_type=("cancer type abbreviation", "cancer_type"),
        time="OS.time",
        event="OS",
        units_per_month=DAYS_PER_MONTH,
        repeats=True,
    ),
)


def read_clinical(uri: str) -> ClinicalTable:
    """Read a clinical table of any of the four kinds.

    Raises:
        TableError: names the row and column that is not what it should be.
    """
    dialect = _find_dialect(uri, column_names(uri, comment=COMMENT))
    cells = read_table(uri, _columns(dialect), comment=COMMENT).to_pylist()
    rows: dict[str, ClinicalRow] = {}
    reasons: Counter[str] = Counter()
    for number, raw in enumerate(cells):
        row, reason = _row(uri, dialect, number, raw)
        first = rows.setdefault(row.case_id, row)
        if first is row and reason:
            reasons[reason] += 1
        if first != row:
            expected = "what an earlier row says of the case"
            raise bad_cell(uri, number, dialect.case_id, expected, row.case_id, "Keep one of them.")
    return ClinicalTable(rows=rows, dialect=dialect.name, without_survival=dict(reasons))


def _find_dialect(uri: str, names: Sequence[str]) -> _Dialect:
    lower = {name.lower() for name in names}
    for dialect in _DIALECTS:
        if dialect.case_id.lower() in lower:
            return dialect
    others = ", ".join(dialect.case_id for dialect in _DIALECTS[1:])
    shown = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
    way_out = separator_hint(uri, names) or " Rename the column that holds it."
    raise TableError(f"{uri}: expected a column case_id (or {others}), got {shown[:200]}.{way_out}")


def _columns(dialect: _Dialect) -> tuple[Column, ...]:
    cancer_type, *others = dialect.cancer_type
    return (
        Column(name=dialect.case_id, unique=not dialect.repeats),
        Column(name=cancer_type, aliases=tuple(others)),
        Column(name="site", required=False, nullable=True),
        Column(name="split", required=False, nullable=True),
        Column(name=dialect.time, required=False, nullable=True),
        Column(name=dialect.event, required=False, nullable=True),
    )


def _row(
    uri: str, dialect: _Dialect, number: int, raw: Mapping[str, str | None]
) -> tuple[ClinicalRow, str | None]:
    """One row, and why it has no survival."""
    months = _months(uri, dialect, number, raw.get(dialect.time))
    event = _event(uri, dialect, number, raw.get(dialect.event))
    reason = _no_survival(months, event)
    row = ClinicalRow(
        case_id=raw[dialect.case_id] or "",
        cancer_type=cancer_code(raw[dialect.cancer_type[0]] or ""),
        site=raw.get("site"),
        split=raw.get("split"),
        os_months=None if reason else months,
        os_event=None if reason else event,
    )
    return row, reason


def _no_survival(months: float | None, event: int | None) -> str | None:
    if months is None and event is None:
        return "no survival time and status"
    if months is None or event is None:
        return "no survival time" if months is None else "no survival status"
    return "a negative survival time" if months < 0 else None


def _months(uri: str, dialect: _Dialect, number: int, cell: str | None) -> float | None:
    if cell is None or cell in UNKNOWN:
        return None
    try:
        time = float(cell)
    except ValueError:
        time = math.nan
    if not math.isfinite(time):
        raise bad_cell(uri, number, dialect.time, "a number", cell, "Correct the cell.")
    return time / dialect.units_per_month


def _event(uri: str, dialect: _Dialect, number: int, cell: str | None) -> int | None:
    if cell is None or cell in UNKNOWN:
        return None
    if cell.upper() not in _EVENTS:
        expected = "1, 1:DECEASED, 0 or 0:LIVING"
        raise bad_cell(uri, number, dialect.event, expected, cell, "Correct the cell.")
    return _EVENTS[cell.upper()]
