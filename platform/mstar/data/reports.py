"""Pathology reports: read from tables of three kinds, cleaned, written, never logged.

    case_id, text                          one report a case
    patient_filename, text                 the public TCGA-Reports table, as published (also zipped)
    case_id, text, model, prompt_digest    cleaned elsewhere by a language model: taken as it is

A case has one report; a second one is an error that names both rows. Reports without any text are
not in the table's mapping, but listed in `empty`. The paper: "Report pre-processing".
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

from mstar.data import tables
from mstar.data.barcodes import parse_barcode
from mstar.data.report_cleaning import STEPS, clean_report, run_steps
from mstar.data.tables import Column, bad_cell
from mstar.errors import TableError

__all__ = [
    "CleaningCounts",
    "Report",
    "ReportTable",
    "clean_report",
    "clean_reports",
    "read_reports",
    "write_reports",
]

TCGA_ID = "patient_filename"
_TEXT = Column(name="text", nullable=True)
_CLEANED_ELSEWHERE = (
    Column(name="model", required=False, nullable=True),
    Column(name="prompt_digest", required=False, nullable=True),
)
_DIGEST = re.compile(r"(sha256:)?[0-9a-fA-F]{8,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The report of one case.

    text: never empty, never shown by `repr` (reports do not belong in logs).
    model: the language model that cleaned it; empty: none did.
    prompt_digest: hash of the prompt that the model was given; empty: none.
    """

    text: str = field(repr=False)
    model: str = ""
    prompt_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ReportTable(Mapping[str, Report]):
    """Case id → report, in the order of the file.

    reports: the reports that have text.
    empty: cases whose report has none, sorted.
    """

    reports: Mapping[str, Report]
    empty: tuple[str, ...] = ()

    def __getitem__(self, case_id: str) -> Report:
        """The report of a case."""
        return self.reports[case_id]

    def __iter__(self) -> Iterator[str]:
        """Case ids with a report."""
        return iter(self.reports)

    def __len__(self) -> int:
        """Number of reports with text."""
        return len(self.reports)

    def __repr__(self) -> str:
        """Counts only."""
        return f"ReportTable({len(self)} reports, {len(self.empty)} empty)"

    @property
    def models(self) -> dict[str, int]:
        """Language model → number of reports that it cleaned; "" for those that none did."""
        return dict(sorted(Counter(report.model for report in self.reports.values()).items()))

    @property
    def digest(self) -> str:
        """Hash of every report with its case, whatever the order of rows or the kind of file."""
        total = hashlib.sha256()
        for case_id in sorted(self.reports):
            report = self.reports[case_id]
            row = [case_id, report.text, report.model, report.prompt_digest]
            total.update(json.dumps(row).encode() + b"\n")
        return total.hexdigest()

    def only(self, case_ids: Collection[str]) -> "ReportTable":
        """The table without the cases that are not asked for."""
        wanted = frozenset(case_ids)
        reports = {case_id: report for case_id, report in self.items() if case_id in wanted}
        return ReportTable(reports=reports, empty=tuple(c for c in self.empty if c in wanted))


@dataclass(frozen=True, slots=True, kw_only=True)
class CleaningCounts:
    """What cleaning did to a table of reports.

    reports: how many were cleaned.
    changed: step → how many reports it changed, for every step, in their order.
    unchanged: how many no step changed.
    emptied: how many had no text left.
    taken_as_is: how many were not touched, because a language model had cleaned them.
    """

    reports: int
    changed: dict[str, int]
    unchanged: int
    emptied: int
    taken_as_is: int


def read_reports(uri: str) -> ReportTable:
    """Read a table of reports (CSV, TSV, Parquet; `.gz`, `.zip`) as it is, without cleaning.

    Raises:
        TableError: a column is missing, a case has two reports, a TCGA file name cannot be parsed,
            or a model is named without its prompt's digest; names the row, never shows the text.
    """
    try:
        names = {name.lower() for name in tables.column_names(uri)}
        if TCGA_ID in names and "case_id" not in names:
            return _read_tcga(uri)
        table = tables.read_table(uri, (Column(name="case_id"), _TEXT, *_CLEANED_ELSEWHERE))
    except TableError as error:
        raise TableError(_without_cells(str(error))) from None  # the cause shows them too
    ids = _unique_ids(uri, "case_id", table.column("case_id").to_pylist())
    models, digests = (_cells(table, column.name) for column in _CLEANED_ELSEWHERE)
    return _collect(uri, zip(ids, _cells(table, "text"), models, digests, strict=True))


def clean_reports(table: ReportTable) -> tuple[ReportTable, CleaningCounts]:
    """Clean what no language model has cleaned; says how many reports each step changed."""
    changed: Counter[str] = Counter()
    reports, emptied, untouched = {}, [], 0
    raw = {case_id: report for case_id, report in table.items() if not report.model}
    for case_id, report in table.items():
        if report.model:
            reports[case_id] = report
            continue
        cleaned = run_steps(report.text)
        changed.update(cleaned.changed_by)
        untouched += not cleaned.changed_by
        if _says_nothing(cleaned.text):
            emptied.append(case_id)
        else:
            reports[case_id] = replace(report, text=cleaned.text)
    counts = CleaningCounts(
        reports=len(raw),
        changed={step.__name__: changed[step.__name__] for step in STEPS},
        unchanged=untouched,
        emptied=len(emptied),
        taken_as_is=len(table) - len(raw),
    )
    return ReportTable(reports=reports, empty=tuple(sorted([*table.empty, *emptied]))), counts


def write_reports(uri: str, reports: Mapping[str, Report]) -> None:
    """Write `case_id,text`, and `model,prompt_digest` when any report has them, sorted by case."""
    ids = sorted(reports)
    columns = {"case_id": ids, "text": [reports[i].text for i in ids]}
    if any(report.model for report in reports.values()):
        columns["model"] = [reports[i].model for i in ids]
        columns["prompt_digest"] = [reports[i].prompt_digest for i in ids]
    tables.write_table(uri, pa.table({n: pa.array(c, pa.string()) for n, c in columns.items()}))


def _read_tcga(uri: str) -> ReportTable:
    table = tables.read_table(uri, (Column(name=TCGA_ID), _TEXT))
    ids = _unique_ids(uri, TCGA_ID, _patients(uri, table.column(TCGA_ID).to_pylist()))
    rows = zip(ids, _cells(table, "text"), strict=True)
    return _collect(uri, ((case_id, text, "", "") for case_id, text in rows))


def _cells(table: pa.Table, name: str) -> list[str]:
    """A column's cells, empty where there is nothing."""
    if name not in table.column_names:
        return [""] * len(table)
    return [cell or "" for cell in table.column(name).to_pylist()]


def _patients(uri: str, names: list[str]) -> list[str]:
    """The patient of each `TCGA-XX-YYYY.<UUID>`."""
    barcodes = [parse_barcode(name) for name in names]
    for row, barcode in enumerate(barcodes):
        if barcode is None:
            raise bad_cell(
                uri,
                row,
                TCGA_ID,
                "TCGA-XX-YYYY.<UUID>",
                names[row],
                "Correct the cell, or name the column case_id when it holds case ids.",
            )
    return [barcode.patient for barcode in barcodes if barcode is not None]


def _unique_ids(uri: str, column: str, ids: list[str]) -> list[str]:
    """The ids, refused when one comes twice or has blanks around it (it would join nothing)."""
    rows: dict[str, int] = {}
    for row, case_id in enumerate(ids):
        if case_id in rows:
            expected = f"a case not given before (row {rows[case_id] + 1:,} has it)"
            raise bad_cell(uri, row, column, expected, case_id, "Keep one report of the case.")
        if case_id != case_id.strip():
            raise bad_cell(uri, row, column, "an id without blanks", case_id, "Trim the cell.")
        rows[case_id] = row
    return ids


def _collect(uri: str, rows: Iterator[tuple[str, str, str, str]]) -> ReportTable:
    reports, empty = {}, []
    for row, (case_id, text, model, digest) in enumerate(rows):
        if bool(model) != bool(digest) or not _DIGEST.fullmatch(digest or "0" * 8):
            raise bad_cell(
                uri,
                row,
                "prompt_digest",
                "a hash in hex beside each model, and none without a model",
                digest,
                "Give the sha256 of the prompt, or leave both cells empty.",
            )
        if _says_nothing(text):
            empty.append(case_id)
        else:
            reports[case_id] = Report(text=text, model=model, prompt_digest=digest)
    return ReportTable(reports=reports, empty=tuple(sorted(empty)))


def _says_nothing(text: str) -> bool:
    """Whether there is no word; a table could not hold `NA` as a text either."""
    return text in tables.NULLS or not any(character.isalnum() for character in text)


def _without_cells(message: str) -> str:
    """A table's error without the beginning of a report that it may show."""
    shown = re.compile(r"(column text: expected [^,]*), got .*(\. [^.]+\.)$", re.DOTALL)
    return shown.sub(r"\1, got something else\2", message)
