"""The tables of a cohort folder, read so that what is wrong in one hides nothing of the others."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mstar.cohorts.check_problems import Findings
from mstar.data.cases import CASE_COLUMNS, SLIDES_JOINED_BY, Case, read_cases
from mstar.data.reports import read_reports
from mstar.data.rna.store import ExpressionStore
from mstar.data.splits.held_out import read_task_table
from mstar.data.splits.leaks import PART_NAMES, find_seen, patient_of
from mstar.data.splits.registry import (
    SplitRegistry,
    cases_digest,
    has_registry,
    read_registry,
    registry_file,
)
from mstar.data.splits.schemes import read_split
from mstar.data.tables import Column, read_table
from mstar.errors import CohortError, ConfigError, ManifestError, MstarError, SplitError, TableError
from mstar.schema import SlideRef
from mstar.storage import objects
from mstar.storage.manifest import read_slides

STAT_THREADS = 16
_ROWS_AT_ONCE = 256  # of gene expression: 20,000 genes each are 20 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Modality:
    """The keys that one source offers, and those of them that hold something usable."""

    keys: frozenset[str] = frozenset()
    usable: frozenset[str] = frozenset()
    size: int = 0  # genes of a row; 0 where it means nothing


def read_case_table(cohort: str, found: Findings) -> list[Case]:
    """The cases; of a case with two rows the first one, of an unreadable table none."""
    uri = objects.join(cohort, "cases.csv")
    try:
        return read_cases(uri, allow_shared_slides=True)
    except TableError as error:
        cases = _first_rows(uri, found)
        if not found.ids("duplicate_case"):
            found.add("unreadable_table", [str(error)])
        return cases


def check_case_table(cases: Sequence[Case], split_names: Iterable[str], found: Findings) -> None:
    """What the case table says of itself."""
    claims = Counter(slide for case in cases for slide in set(case.slides))
    found.add("shared_slide", (slide for slide, count in claims.items() if count > 1))
    patients = Counter(patient_of(case.case_id) for case in cases)
    found.add("two_cases_of_one_patient", (name for name, count in patients.items() if count > 1))
    known = {*PART_NAMES, *split_names}
    splits = {case.split for case in cases if case.split}
    found.add("unknown_split", (name for name in splits if name.strip().lower() not in known))


def check_manifest(cohort: str, cases: Sequence[Case], found: Findings) -> dict[str, SlideRef]:
    """The slides of slides.csv by id, held against the cases' own."""
    owner = {slide: case.case_id for case in cases for slide in case.slides}
    uri = objects.join(cohort, "slides.csv")
    slides: dict[str, SlideRef] = {}
    if not owner and not objects.exists(uri):
        return slides
    try:
        for entry in read_slides(uri):
            if isinstance(entry, SlideRef):
                slides[entry.slide_id] = entry
            else:
                found.add("unusable_slide", [f"{entry.slide_id}: {entry.reason}"])
    except (ManifestError, FileNotFoundError) as error:
        message = (
            str(error) if isinstance(error, ManifestError) else f"{uri}: there is no such table."
        )
        found.add("unreadable_table", [message])
        return slides
    found.add("unlisted_slide", owner.keys() - slides.keys())
    found.add("slide_without_case", slides.keys() - owner.keys())
    stated = {slide_id: ref.case_id for slide_id, ref in slides.items() if ref.case_id}
    shared = found.ids("shared_slide")
    found.add(
        "slide_of_other_case",
        (s for s, case in stated.items() if owner.get(s, case) != case and s not in shared),
    )
    return slides


def find_absent_files(slides: Iterable[SlideRef]) -> set[str]:
    """Ids of the slides whose file is not there."""

    def absent(slide: SlideRef) -> bool:
        # a DICOM slide may be a folder
        return not objects.exists(slide.uri) and next(objects.list_files(slide.uri), None) is None

    refs = list(slides)
    with ThreadPoolExecutor(STAT_THREADS, thread_name_prefix="slide-stat") as pool:
        return {
            ref.slide_id for ref, gone in zip(refs, pool.map(absent, refs), strict=True) if gone
        }


def check_reports(cohort: str, cases: Sequence[Case], found: Findings) -> Modality:
    """The reports, held against the cases' keys."""
    wanted = {case.report for case in cases if case.report}
    uri = objects.join(cohort, "reports.csv")
    if not wanted and not objects.exists(uri):
        return Modality()
    try:
        table = read_reports(uri)
    except TableError as error:
        found.add("unreadable_table", [str(error)])
        return Modality()
    found.add("missing_report", wanted - table.keys() - set(table.empty))
    found.add("empty_report", wanted & set(table.empty))
    found.add("report_without_case", table.keys() - wanted)
    usable = frozenset(table)
    return Modality(keys=usable | frozenset(table.empty), usable=usable)


def check_expression(cohort: str, cases: Sequence[Case], found: Findings) -> Modality:
    """The expression store, held against the cases' keys; every row that a case names is read."""
    wanted = {case.rna for case in cases if case.rna}
    folder = objects.join(cohort, "expression")
    if not wanted and not objects.exists(objects.join(folder, "expression.json")):
        return Modality()
    try:
        store = ExpressionStore(folder)
        keys = frozenset(store.case_ids)
        _check_rows(store, sorted(wanted & keys), found)
    except (CohortError, TableError, FileNotFoundError, ValueError) as error:
        message = str(error) if isinstance(error, MstarError) else f"{folder}: {error!r}."
        found.add("unreadable_table", [message])
        return Modality()
    found.add("missing_rna", wanted - keys)
    found.add("rna_without_case", keys - wanted)
    bad = found.ids("zero_rna") | found.ids("not_finite_rna")
    return Modality(keys=keys, usable=keys - bad, size=len(store.genes))


def find_split_names(cohort: str, found: Findings) -> set[str]:
    """Names of the further splits, each read and held against its digest."""
    names = [uri.rpartition("/")[2].removesuffix(".csv") for uri in _tables_in(cohort, "splits")]
    for name in names:
        try:
            read_split(cohort, name)
        except (TableError, SplitError, ConfigError) as error:
            found.add("bad_registry", [str(error)])
    return {name.lower() for name in names}


def check_registry(cohort: str, cases: Sequence[Case], found: Findings) -> SplitRegistry | None:
    """The split registry, held against the case table; None when there is none to rely on."""
    try:
        if not has_registry(cohort) and not objects.exists(registry_file(cohort).csv):
            return None
        registry = read_registry(cohort)
    except (TableError, SplitError) as error:
        found.add("bad_registry", [str(error)])
        return None
    in_table, parts = {case.case_id for case in cases}, {r.case_id: r.part for r in registry.rows}
    found.add("case_not_in_registry", in_table - parts.keys())
    found.add("registry_case_unknown", parts.keys() - in_table)
    if in_table == parts.keys() and cases_digest(cases) != registry.cases_digest:
        found.add("registry_of_other_table", [registry.cases_digest[:12]])
    for case in cases:
        part = PART_NAMES.get((case.split or "").strip().lower())
        if part and parts.get(case.case_id, part) != part:
            found.add("split_contradicts_registry", [case.case_id])
    return registry


def check_labels(
    cohort: str, cases: Sequence[Case], registry: SplitRegistry | None, found: Findings
) -> int:
    """The label tables, held against cases and pretraining; returns how many there are."""
    known = {case.case_id for case in cases}
    tables = list(_tables_in(cohort, "labels"))
    for uri in tables:
        name = uri.rpartition("/")[2]
        try:
            ids = read_table(uri, [Column(name="case_id")]).column("case_id").to_pylist()
            held_out = read_task_table(uri).patients
        except (TableError, SplitError) as error:
            found.add("unreadable_table", [str(error)])
            continue
        found.add("label_without_case", (f"{name}: {case}" for case in set(ids) - known))
        if registry is not None:
            seen = find_seen(held_out, registry.pretraining)
            found.add("seen_in_pretraining", (f"{name}: {case}" for case in seen))
    return len(tables)


def read_facts(cohort: str, found: Findings) -> Mapping[str, Any]:
    """What cohort.json says made the cohort; nothing without one."""
    uri = objects.join(cohort, "cohort.json")
    try:
        facts = json.loads(objects.read_bytes(uri))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        found.add("unreadable_table", [f"{uri}: expected JSON, got {error}."])
        return {}
    return facts if isinstance(facts, dict) else {}


def _first_rows(uri: str, found: Findings) -> list[Case]:
    """The cases when nothing but uniqueness is asked for; none when even that fails."""
    try:
        rows = read_table(uri, [replace(c, unique=False) for c in CASE_COLUMNS]).to_pylist()
    except TableError:
        return []
    cases: dict[str, Case] = {}
    for row in rows:
        if row["case_id"] in cases:
            found.add("duplicate_case", [row["case_id"]])
            continue
        named = (slide.strip() for slide in (row["slides"] or "").split(SLIDES_JOINED_BY))
        slides = tuple(dict.fromkeys(slide for slide in named if slide))
        cases[row["case_id"]] = Case(**{**row, "slides": slides})
    return list(cases.values())


def _check_rows(store: ExpressionStore, keys: Sequence[str], found: Findings) -> None:
    for start in range(0, len(keys), _ROWS_AT_ONCE):
        block = keys[start : start + _ROWS_AT_ONCE]
        values = store.rows(block)
        not_finite, zero = ~np.isfinite(values).all(axis=1), ~values.any(axis=1)
        found.add("not_finite_rna", (block[row] for row in np.flatnonzero(not_finite).tolist()))
        found.add("zero_rna", (block[row] for row in np.flatnonzero(zero).tolist()))


def _tables_in(cohort: str, folder: str) -> list[str]:
    """The .csv right below a folder of the cohort, sorted."""
    root = objects.join(cohort, folder)
    found = objects.list_files(root, suffix=".csv")
    return sorted(objects.join(root, info.rel) for info in found if "/" not in info.rel)
