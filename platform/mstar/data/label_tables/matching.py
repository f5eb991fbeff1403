"""Slide ids as a label table writes them → slide ids of a feature store.

Three rules, in this order; a slide takes the first that finds it:

    exact                  the id as it is written
    without extension      TCGA-…-DX1.UUID.svs, a.pt → TCGA-…-DX1.UUID, a
    TCGA id without UUID   TCGA-…-DX1.UUID, folder/TCGA-…-DX1.UUID.svs → TCGA-…-DX1

Two slides of the store for one of the table, or one for two, are ambiguous: refused, never guessed.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from mstar.data.barcodes import parse_barcode
from mstar.data.label_tables.samples import LabelTable, Sample
from mstar.data.tables import bad_cell

_EXTENSION = re.compile(
    r"\.(svs|tiff?|ndpi|mrxs|scn|dcm|svslide|bif|vms|vmu|isyntax|czi|pt|pth|h5|hdf5|npy|jpe?g|png)$",
    re.IGNORECASE,
)
_NONE = "none"


def without_extension(slide: str) -> str:
    """The id without the extension of a slide or feature file."""
    return _EXTENSION.sub("", slide)


def without_uuid(slide: str) -> str:
    """The TCGA barcode of a slide, without folder, UUID and extension; other ids as they are."""
    name = without_extension(slide).rpartition("/")[2]
    return name.partition(".")[0] if parse_barcode(name) else slide


RULES: dict[str, Callable[[str], str]] = {
    "exact": lambda slide: slide,
    "without extension": without_extension,
    "TCGA id without UUID": without_uuid,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """How the slides of a table were found in a store.

    rule: the last rule that was needed; "none" when nothing was found.
    counts: rule → slides that it found.
    rate: slides found of those named, 0 to 1.
    resolved: slide of the table → slide of the store.
    ambiguous: slide of the table → what it might be.
    missing: slides of the table that the store does not have.
    """

    rule: str
    counts: Mapping[str, int]
    rate: float
    resolved: Mapping[str, str]
    ambiguous: Mapping[str, tuple[str, ...]]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        """One line: the rule that was used and the match rate."""
        total = len(self.resolved) + len(self.ambiguous) + len(self.missing)
        used = ", ".join(f"{count:,} {rule}" for rule, count in self.counts.items() if count)
        found = len(self.resolved)
        return f"{found:,} of {total:,} slides found ({self.rate:.1%}), by rule: {used or _NONE}"

    def refuse_ambiguity(self, table: LabelTable) -> None:
        """Raises TableError when a slide of the table might be several of the store."""
        for sample in table.samples:
            for slide in sample.slides:
                if slide in self.ambiguous:
                    choice = ", ".join(self.ambiguous[slide][:3])
                    expected = f"an id of one slide (it may mean {choice})"
                    way_out = (
                        f"Write the id as the store has it; {len(self.ambiguous):,} ids like this."
                    )
                    raise bad_cell(table.uri, sample.row - 1, "slide", expected, slide, way_out)


def match_slides(samples: Iterable[Sample], ids: Iterable[str]) -> Match:
    """Find the slides of samples among the ids of a store; see the module for the rules."""
    wanted = list(dict.fromkeys(slide for sample in samples for slide in sample.slides))
    stored = list(dict.fromkeys(ids))
    candidates: dict[str, tuple[str, ...]] = {}
    counts = dict.fromkeys(RULES, 0)
    for rule, key in RULES.items():
        if len(candidates) == len(wanted):
            break  # the later rules cost a parse of every id of the store
        by_key: dict[str, list[str]] = {}
        for name in stored:
            by_key.setdefault(key(name), []).append(name)
        for slide in wanted:
            if slide not in candidates and key(slide) in by_key:
                candidates[slide] = tuple(by_key[key(slide)])
                counts[rule] += 1
    resolved, ambiguous = _settled(candidates)
    return Match(
        rule=next((rule for rule in reversed(RULES) if counts[rule]), _NONE),
        counts=counts,
        rate=len(resolved) / len(wanted) if wanted else 1.0,
        resolved=resolved,
        ambiguous=ambiguous,
        missing=tuple(slide for slide in wanted if slide not in candidates),
    )


def _settled(
    candidates: Mapping[str, tuple[str, ...]],
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Slides that are one of the store, and those that may be several or share one."""
    claims: dict[str, list[str]] = {}
    for slide, names in candidates.items():
        for name in names:
            claims.setdefault(name, []).append(slide)
    resolved, ambiguous = {}, {}
    for slide, names in candidates.items():
        rivals = [other for other in claims[names[0]] if other != slide]
        if len(names) > 1:
            ambiguous[slide] = names
        elif rivals:
            ambiguous[slide] = (f"{names[0]}, which {rivals[0]} means too",)
        else:
            resolved[slide] = names[0]
    return resolved, ambiguous
