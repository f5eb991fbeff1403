"""Which slides, reports and samples a cohort takes; everything else is counted by its reason.

TCGA names are parsed (`mstar.data.barcodes`) and taken by these rules; a name that does not parse
is reported, never guessed at:

slides    sections of the kinds asked for (DX), of tumours (sample types 01 to 09)
reports   one a case, by its patient
samples   of the types asked for: 01; SKCM 06, where there is none 01; LAML 03. Of several aliquots
          of a case the first by: sample type in the order asked for; earlier vial (the later ones
          of a patient are mostly repeats from paraffin); analyte H before R before T; later plate;
          the name that sorts last, so the later portion. From the analyte on this is the rule of
          Broad's Firehose ("Replicate Samples").

With plain ids, names are case ids, and nothing is parsed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mstar.data.barcodes import (
    ANALYTES,
    SAMPLE_TYPES,
    SECTIONS,
    Barcode,
    parse_barcode,
    parse_file_name,
)
from mstar.data.cases import SLIDES_JOINED_BY
from mstar.errors import ConfigError
from mstar.schema import SlideRef
from mstar.storage.manifest import BadRow

IdKind = Literal["tcga", "plain"]
RNA_ANALYTES = "HRT"  # best first
NAMES_KEPT = 5
NO_CASE = "its case is not in the clinical table"
NO_BARCODE = "not a TCGA barcode: unknown pattern"
ANY_TYPE = ""


@dataclass(slots=True)
class Exclusions:
    """What was left out: kind of thing → reason → how many, and the first names."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    first: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def add(self, kind: str, reason: str, name: str) -> None:
        """Count one thing."""
        counts = self.counts.setdefault(kind, {})
        counts[reason] = counts.get(reason, 0) + 1
        names = self.first.setdefault(kind, {}).setdefault(reason, [])
        if len(names) < NAMES_KEPT:
            names.append(name)

    def of(self, kind: str) -> int:
        """How many of a kind were left out."""
        return sum(self.counts.get(kind, {}).values())

    def to_dict(self) -> dict[str, Any]:
        """Kind → reason → count and first names, in sorted order."""
        return {
            kind: {
                reason: {"count": reasons[reason], "first": self.first[kind][reason]}
                for reason in sorted(reasons)
            }
            for kind, reasons in sorted(self.counts.items())
        }


def parse_rna_samples(rules: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """`01`, `SKCM:06,01` → cancer type → sample types in order; ANY_TYPE holds for the others."""
    parsed: dict[str, tuple[str, ...]] = {}
    for rule in rules:
        cancer_type, _, codes = rule.rpartition(":")
        types = tuple(code.strip() for code in codes.split(","))
        unknown = [code for code in types if code not in SAMPLE_TYPES]
        if unknown or cancer_type in parsed:
            problem = f"no sample type {unknown[0]!r}" if unknown else "one cancer type twice"
            raise ConfigError(
                f"--rna-samples {rule!r}: {problem}. Write two-digit TCGA sample types, as 01 for "
                "all cancer types, SKCM:06,01 for one."
            )
        parsed[cancer_type] = types
    return parsed


def select_slides(
    entries: Iterable[SlideRef | BadRow],
    case_ids: Mapping[str, object],
    out: Exclusions,
    *,
    ids: IdKind,
    sections: tuple[str, ...],
) -> dict[str, list[SlideRef]]:
    """Case → its slides, by slide id; sorted by case."""
    chosen: dict[str, list[SlideRef]] = {}
    seen: set[Barcode] = set()
    for entry in sorted(entries, key=lambda entry: (entry.slide_id, entry.uri)):
        if isinstance(entry, BadRow):
            out.add("slides", "unusable in the manifest", f"{entry.slide_id} ({entry.reason})")
            continue
        barcode = _slide_barcode(entry) if ids == "tcga" else None
        case_id = barcode.patient if barcode else entry.case_id
        reason = _slide_problem(entry, barcode, ids, sections)
        if reason is None and case_id not in case_ids:
            reason = NO_CASE
        if reason is None and barcode in seen:
            reason = "the same slide is there under another id"
        if reason is not None or case_id is None:
            out.add("slides", reason or NO_CASE, entry.slide_id)
            continue
        seen |= {barcode} if barcode else set()
        chosen.setdefault(case_id, []).append(entry)
    return dict(sorted(chosen.items()))


def select_samples(
    names: Iterable[str],
    cancer_types: Mapping[str, str],
    out: Exclusions,
    *,
    ids: IdKind,
    sample_types: Mapping[str, tuple[str, ...]],
) -> dict[str, str]:
    """Name in the expression matrix → case, for the one sample that each case gets."""
    if ids == "plain":
        return _plain_samples(names, cancer_types, out)
    candidates: dict[str, list[tuple[tuple[Any, ...], str]]] = {}
    for name in names:
        barcode = parse_barcode(name)
        wanted = _wanted_types(barcode, cancer_types, sample_types)
        reason = _sample_problem(barcode, cancer_types, wanted)
        if reason is not None or barcode is None:
            out.add("rna", reason or NO_BARCODE, name)
        else:
            rank = _aliquot_rank(barcode, name, wanted)
            candidates.setdefault(barcode.patient, []).append((rank, name))
    chosen = {}
    for case_id in sorted(candidates):
        (_, best), *others = sorted(candidates[case_id], reverse=True)
        chosen[best] = case_id
        for _, name in others:
            out.add("rna", "another aliquot of the case is taken", name)
    return chosen


def select_reports(
    keys: Iterable[str], case_ids: Mapping[str, object], out: Exclusions, *, ids: IdKind
) -> dict[str, str]:
    """Case → key of its report."""
    chosen: dict[str, str] = {}
    for key in sorted(keys):
        barcode = parse_barcode(key) if ids == "tcga" else None
        case_id = barcode.patient if barcode else key
        if ids == "tcga" and barcode is None:
            out.add("reports", NO_BARCODE, key)
        elif case_id not in case_ids:
            out.add("reports", NO_CASE, key)
        elif case_id in chosen:
            out.add("reports", "another report of the case is taken", key)
        else:
            chosen[case_id] = key
    return chosen


def _slide_barcode(slide: SlideRef) -> Barcode | None:
    """Of the id, else of the file."""
    return parse_file_name(slide.slide_id) or parse_file_name(slide.uri)


def _slide_problem(
    slide: SlideRef, barcode: Barcode | None, ids: IdKind, sections: tuple[str, ...]
) -> str | None:
    if SLIDES_JOINED_BY in slide.slide_id:
        return f"its id holds {SLIDES_JOINED_BY!r}, which joins ids in the case table"
    if ids == "plain":
        return None if slide.case_id else "the manifest gives no case_id"
    if barcode is None:
        return NO_BARCODE
    if any(patient != barcode.patient for patient in _stated_patients(slide)):
        return "slide id, file name and case_id are not of one patient"
    if barcode.section is None:
        return "a TCGA barcode, but not of a slide"
    if barcode.section not in sections:
        return f"section {barcode.section} ({SECTIONS[barcode.section]})"
    return None if barcode.is_tumor else _of_type(barcode)


def _stated_patients(slide: SlideRef) -> list[str]:
    """The patients that the file's name and the manifest state; a case_id may be any text."""
    file = parse_file_name(slide.uri)
    stated = parse_barcode(slide.case_id) if slide.case_id else None
    patients = [file.patient] if file else []
    return patients + ([stated.patient if stated else slide.case_id] if slide.case_id else [])


def _wanted_types(
    barcode: Barcode | None,
    cancer_types: Mapping[str, str],
    sample_types: Mapping[str, tuple[str, ...]],
) -> tuple[str, ...]:
    cancer_type = cancer_types.get(barcode.patient, ANY_TYPE) if barcode else ANY_TYPE
    return sample_types.get(cancer_type, sample_types.get(ANY_TYPE, ()))


def _sample_problem(
    barcode: Barcode | None, cancer_types: Mapping[str, str], wanted: tuple[str, ...]
) -> str | None:
    if barcode is None:
        return NO_BARCODE
    if barcode.section is not None:
        return "a TCGA barcode, but of a slide"
    if barcode.analyte is not None and barcode.analyte not in RNA_ANALYTES:
        return f"analyte {barcode.analyte} ({ANALYTES[barcode.analyte]})"
    if barcode.sample_type is None:
        return "a TCGA barcode without a sample type"
    if barcode.patient not in cancer_types:
        return NO_CASE
    return None if barcode.sample_type in wanted else _of_type(barcode)


def _of_type(barcode: Barcode) -> str:
    assert barcode.sample_type is not None
    return f"sample type {barcode.sample_type} ({SAMPLE_TYPES[barcode.sample_type]})"


def _aliquot_rank(barcode: Barcode, name: str, wanted: tuple[str, ...]) -> tuple[Any, ...]:
    """The greatest is taken; what a short barcode does not say comes last."""
    assert barcode.sample_type is not None
    analyte = RNA_ANALYTES.find(barcode.analyte) if barcode.analyte else len(RNA_ANALYTES)
    return (
        -wanted.index(barcode.sample_type),
        -ord(barcode.vial) if barcode.vial else -ord("Z") - 1,
        -analyte,
        barcode.plate or "",
        name,
    )


def _plain_samples(
    names: Iterable[str], cancer_types: Mapping[str, str], out: Exclusions
) -> dict[str, str]:
    chosen = {}
    for name in names:
        if name in cancer_types:
            chosen[name] = name
        else:
            out.add("rna", NO_CASE, name)
    return chosen
