"""What the tables of a data set say of each case or slide, one value each.

Rows of several samples of a case: those of the sample type that counts first (primary tumours
before metastases, recurrences last) decide; rows of that type that contradict one another decide
nothing, and the case is dropped for it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from mstar.data.label_build.attributes import ATTRIBUTES, UNCLEAR, UNKNOWN, Attribute
from mstar.data.label_build.settings import LabelSettings
from mstar.data.label_build.sources import Sources
from mstar.errors import ConfigError

CONTRADICTION = "rows that contradict one another"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A class, or why there is none."""

    label: str | None = None
    reason: str = ""

    @property
    def is_unclear(self) -> bool:
        """Tested without a result."""
        return self.label is None and self.reason.rpartition(": ")[2].lower() in UNCLEAR


def attribute_of(name: str, settings: LabelSettings) -> Attribute:
    """An attribute as the settings want it."""
    if name == "cms" and settings.cms_call != "final":
        name = {"network": "cms_network", "classifier": "cms_rf"}[settings.cms_call]
    found = ATTRIBUTES[name]
    if name == "metastasis" and settings.isolated_cells != "metastasis":
        others = {value: label for value, label in found.values.items() if value != "itc"}
        normal = {"itc": "normal"} if settings.isolated_cells == "normal" else {}
        found = replace(found, values=others | normal)
    return found


def find_all(
    sources: Sources, attribute: Attribute, settings: LabelSettings
) -> tuple[dict[str, Finding], list[str]]:
    """Name of a case or slide → what is found of it; and which columns it was found in.

    Raises:
        ConfigError: no table has any of the columns.
    """
    found, columns = _found(sources, attribute)
    unclear = [name for name, finding in found.items() if finding.is_unclear]
    if settings.equivocal == "settle" and attribute.settle and unclear:
        second = replace(attribute, columns=attribute.settle)
        try:
            settled, more = _found(sources, second)
        except ConfigError:
            return found, columns
        decided = {name: settled[name] for name in unclear if name in settled}
        found |= {name: finding for name, finding in decided.items() if finding.label}
        columns += more
    return found, columns


def of_slide_name(attribute: Attribute, name: str) -> Finding | None:
    """What the name of a slide says, for data sets whose names say it."""
    for pattern, label in attribute.slide_names:
        if re.search(pattern, name.lower()):
            return Finding(label=label)
    return None


def _found(sources: Sources, attribute: Attribute) -> tuple[dict[str, Finding], list[str]]:
    if attribute.each_table:
        pairs = sources.with_any_column(attribute.columns)
    else:
        column, sheets = sources.with_column(attribute.columns)
        pairs = [(column, sheet) for sheet in sheets]
    rows: dict[str, list[tuple[int, Finding]]] = {}
    for column, sheet in pairs:
        own = sheet.find(column) or column
        cells = zip(sheet.columns[sheet.id_column], sheet.columns[own], strict=True)
        for text, cell in cells:
            key = sources.key(text)
            if key is not None and not _is_second_header(text, cell, column):
                finding = classify(attribute, column, cell)
                rows.setdefault(key.name, []).append((key.rank, finding))
    columns = [f"{column} of {sheet.uri.rpartition('/')[2]}" for column, sheet in pairs]
    return {name: decide(several) for name, several in rows.items()}, columns


def decide(rows: Iterable[tuple[int, Finding]]) -> Finding:
    """One finding of several: the best rank that has a label, if its labels agree."""
    ordered = sorted(rows, key=lambda row: row[0])
    labelled = [(rank, finding) for rank, finding in ordered if finding.label is not None]
    if not labelled:
        return ordered[0][1]
    best = labelled[0][0]
    labels = {finding.label for rank, finding in labelled if rank == best}
    return labelled[0][1] if len(labels) == 1 else Finding(reason=CONTRADICTION)


def classify(attribute: Attribute, column: str, cell: str | None) -> Finding:
    """The class that a value stands for, or why it stands for none."""
    if cell is None or normal(cell) in UNKNOWN:
        return Finding(reason=f"{column} unknown")
    value = normal(cell)
    label = attribute.values.get(value)
    if label is None:
        fits = (label for pattern, label in attribute.patterns if re.search(pattern, value))
        label = next(fits, None)
    return Finding(label=label) if label else Finding(reason=f"{column}: {' '.join(cell.split())}")


def normal(cell: str) -> str:
    """Lower case, single spaces."""
    return " ".join(cell.lower().split())


def _is_second_header(text: str | None, cell: str | None, column: str) -> bool:
    """GDC's clinical tables repeat their header, and the number of each element, as rows."""
    return (cell or "").startswith("CDE_ID") or normal(cell or "") == normal(column)


def by_case(found: Mapping[str, Finding], slides: Iterable[str], missing: Finding) -> Finding:
    """The finding of a case whose slides are found one by one."""
    findings = [found.get(slide, missing) for slide in slides]
    labels = {finding.label for finding in findings if finding.label is not None}
    if len(labels) > 1:
        return Finding(reason="slides of one case that differ")
    return next((f for f in findings if f.label is not None), findings[0] if findings else missing)
