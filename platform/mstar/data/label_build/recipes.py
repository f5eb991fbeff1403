"""Which derivation makes the labels of which task: `derivations.csv` beside this file.

    task_id        of the registry
    derivation     mutation | burden | survival | category | cancer_type
    dataset        a key of datasets.DATASETS
    cancer_types   TCGA codes joined by |; empty: all of the data set
    arguments      name=value joined by |: gene, endpoint, attribute, rna

Users add rows with --derivations: of the six unnamed pairs of gene and cancer, or tasks of their
own. A row of theirs takes the place of ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mstar.data.label_build.attributes import ATTRIBUTES
from mstar.data.label_build.datasets import DATASETS
from mstar.data.label_build.endpoints import ENDPOINTS
from mstar.data.tables import Column, bad_cell, read_table

KINDS: Mapping[str, str] = {
    "mutation": "gene",
    "burden": "",
    "survival": "endpoint",
    "category": "attribute",
    "cancer_type": "",
}
"""Derivation → the argument that it needs."""
_KNOWN: Mapping[str, Sequence[str]] = {
    "endpoint": tuple(ENDPOINTS),
    "attribute": tuple(ATTRIBUTES),
}
_OPTIONAL = ("rna",)
_PACKAGED = Path(__file__).with_name("derivations.csv")
_COLUMNS = (
    Column(name="task_id", unique=True),
    Column(name="derivation", allowed=tuple(KINDS)),
    Column(name="dataset", allowed=tuple(DATASETS)),
    Column(name="cancer_types", required=False, nullable=True),
    Column(name="arguments", required=False, nullable=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """One row."""

    task_id: str
    derivation: str
    dataset: str
    cancer_types: tuple[str, ...] = ()
    arguments: Mapping[str, str] = field(default_factory=dict)


def read_derivations(own: Sequence[str] = ()) -> dict[str, Derivation]:
    """Task → how its labels are made.

    Raises:
        TableError: a row is not what it should be.
    """
    found: dict[str, Derivation] = {}
    for uri in (str(_PACKAGED), *own):
        for row, cells in enumerate(read_table(uri, _COLUMNS).to_pylist()):
            found[cells["task_id"]] = _derivation(uri, row, cells)
    return found


def _derivation(uri: str, row: int, cells: Mapping[str, str | None]) -> Derivation:
    text = cells.get("arguments") or ""
    arguments = dict(part.partition("=")[::2] for part in text.split("|") if part)
    kind = cells["derivation"] or ""
    needed = [KINDS[kind]] if KINDS[kind] else []
    if set(arguments) - {*needed, *_OPTIONAL} or not set(needed) <= set(arguments):
        expected = f"{', '.join(f'{name}=…' for name in needed) or 'nothing'} for {kind}"
        raise bad_cell(uri, row, "arguments", expected, text, "Write name=value joined by |.")
    for name, known in _KNOWN.items():
        if name in arguments and arguments[name] not in known:
            expected = f"{name}= one of {', '.join(known)}"
            raise bad_cell(uri, row, "arguments", expected, arguments[name], "Correct the name.")
    types = tuple(part for part in (cells.get("cancer_types") or "").split("|") if part)
    return Derivation(
        task_id=cells["task_id"] or "",
        derivation=kind,
        dataset=cells["dataset"] or "",
        cancer_types=types,
        arguments=arguments,
    )
