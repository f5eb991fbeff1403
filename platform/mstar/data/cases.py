"""The case table: which slides, report and row of gene expression belong to a patient.

    case_id      unique
    cancer_type  a TCGA code (mstar.data.cancer_types) or any other text
    slides       slide ids joined by `;`, empty: none       (in Parquet a list is taken too)
    report       key in the report table, empty: none
    rna          key of the row in the expression store, empty: none
    split        empty, or the name of a part
    site         where the patient was treated; optional column
    os_months    overall survival in months; optional column, empty: unknown
    os_event     1 died, 0 alive when last heard of; optional column, empty: unknown

A missing modality is an empty cell, never a missing column.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mstar.data.tables import Column, bad_cell, read_table, write_table

SLIDES_JOINED_BY = ";"
CASE_COLUMNS = (
    Column(name="case_id", unique=True),
    Column(name="cancer_type"),
    Column(name="slides", nullable=True),
    Column(name="report", nullable=True),
    Column(name="rna", nullable=True),
    Column(name="split", nullable=True),
    Column(name="site", required=False, nullable=True),
    Column(name="os_months", kind="number", required=False, nullable=True),
    Column(name="os_event", kind="integer", required=False, nullable=True, allowed=("0", "1")),
)
_TYPES = {"text": pa.string(), "number": pa.float64(), "integer": pa.int64()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One patient: slides, report and gene expression, each of which may be missing.

    slides: their ids in a stated order; a case's bag is their features one after the other.
    report, rna: keys into the report table and the expression store.
    os_months, os_event: overall survival, both or neither; event 1 is death.
    """

    case_id: str
    cancer_type: str
    slides: tuple[str, ...] = ()
    report: str | None = None
    rna: str | None = None
    split: str | None = None
    site: str | None = None
    os_months: float | None = None
    os_event: int | None = None


def read_cases(uri: str, *, allow_shared_slides: bool = False) -> list[Case]:
    """The cases of a table, in its order.

    Args:
        uri: CSV, TSV or Parquet, local or s3://.
        allow_shared_slides: take a slide that two cases claim, for a caller that reports it itself.

    Raises:
        TableError: names the row and column that is not what it should be.
    """
    rows = read_table(uri, CASE_COLUMNS).to_pylist()
    cases = [_case(uri, number, row) for number, row in enumerate(rows)]
    if not allow_shared_slides:
        _refuse_shared_slides(uri, cases)
    return cases


def write_cases(uri: str, cases: Iterable[Case]) -> None:
    """Write the table whole; equal cases in equal order give equal bytes."""
    rows = [{**_cells(case), "slides": _joined(case)} for case in cases]
    columns = {
        column.name: pa.array([row[column.name] for row in rows], _TYPES[column.kind])
        for column in CASE_COLUMNS
    }
    write_table(uri, pa.table(columns))


def _cells(case: Case) -> dict[str, Any]:
    return {column.name: getattr(case, column.name) for column in CASE_COLUMNS}


def _joined(case: Case) -> str | None:
    bad = next((slide for slide in case.slides if SLIDES_JOINED_BY in slide), None)
    assert bad is None, f"{bad}: slide ids with {SLIDES_JOINED_BY!r} cannot be in a case table"
    return SLIDES_JOINED_BY.join(case.slides) or None


def _case(uri: str, number: int, row: dict[str, Any]) -> Case:
    slides = _slides(uri, number, row["slides"])
    months, event = row.get("os_months"), row.get("os_event")
    if (months is None) != (event is None):
        column = "os_months" if months is None else "os_event"
        way_out = "Fill it in, or empty both os_months and os_event."
        raise bad_cell(uri, number, column, "a value beside the other's", None, way_out)
    if months is not None and (months < 0 or not math.isfinite(months)):
        way_out = "Correct it, or empty both os_months and os_event."
        raise bad_cell(uri, number, "os_months", "months from 0 on", months, way_out)
    return Case(**{**row, "slides": slides})


def _slides(uri: str, number: int, cell: str | None) -> tuple[str, ...]:
    slides = tuple(slide.strip() for slide in (cell or "").split(SLIDES_JOINED_BY) if slide.strip())
    twice = next((slide for slide in slides if slides.count(slide) > 1), None)
    if twice is not None:
        expected = f"slide {twice} once"
        raise bad_cell(uri, number, "slides", expected, cell, "Name each slide once.")
    return slides


def _refuse_shared_slides(uri: str, cases: list[Case]) -> None:
    owners: dict[str, int] = {}
    for number, case in enumerate(cases):
        for slide in case.slides:
            first = owners.setdefault(slide, number)
            if first != number:
                raise bad_cell(
                    uri,
                    number,
                    "slides",
                    f"slides of this case alone (row {first + 1:,}, case {cases[first].case_id}, "
                    f"has {slide} too)",
                    SLIDES_JOINED_BY.join(case.slides),
                    "Give the slide to the case it is of.",
                )
