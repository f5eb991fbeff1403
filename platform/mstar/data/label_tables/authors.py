"""The mSTAR authors' tables.

    classification   case, slide, label by position; then `fold` (train, val, test), or fold1,
                     fold2 … (train, test): a validation part is cut from the training one later
    survival         Study, ID, Event (months), Status (1: the event), WSI, split
    multimodal       the same with RNA

Several slides are joined by `;`. Of WSI and RNA the base names count, so that tables with folders
of another machine can be used; an empty cell is a missing modality.
"""

import re
from typing import Any

from mstar.data.label_tables.samples import (
    INDEX_NAMES,
    ONE_FOLD,
    LabelRow,
    Rows,
    base_name,
    folds_of,
    shared,
    split_slides,
)
from mstar.data.tables import Column, column_names, read_table
from mstar.errors import TableError

_NUMBERED = re.compile(r"fold(\d+)", re.IGNORECASE)
_POSITIONS = ("case", "slide", "label")


def is_classification(names: list[str]) -> bool:
    """Whether a header is that of the classification tables."""
    return bool(_fold_columns(names)) and not shared(names, ("slides",))


def read_classification(uri: str) -> Rows:
    """A classification table, its first three columns by position."""
    names = [name for name in column_names(uri) if name not in INDEX_NAMES]
    _check_positions(uri, names)
    case, slide, label = names[:3]
    folds = _fold_columns(names)
    columns = [
        Column(name=case),
        Column(name=slide, nullable=True),
        Column(name=label),
        *(Column(name=name, nullable=True) for name in folds),
        Column(name="patient_id", aliases=("patient",), required=False, nullable=True),
    ]
    columns = [c for c in columns if c.required or c.name not in (case, slide, label)]
    rows = tuple(
        LabelRow(
            row=row,
            case_id=cells[case],
            slides=split_slides(cells[slide]),
            label=cells[label],
            folds=folds_of(uri, row, cells, folds),
            patient=cells.get("patient_id"),
        )
        for row, cells in enumerate(read_table(uri, columns).to_pylist())
    )
    return Rows(
        dialect="mstar-classification",
        rows=rows,
        folds=tuple(folds.values()),
        label=label,
        fold=next(iter(folds)),
    )


def is_survival(names: list[str]) -> bool:
    """Whether a header is that of the survival tables, with gene expression or without."""
    return shared(names, ("ID", "Event", "Status", "WSI"))


def read_survival(uri: str) -> Rows:
    """A survival or multimodal table."""
    columns = [
        Column(name="ID"),
        Column(name="Event", kind="number"),
        Column(name="Status", kind="integer", allowed=("0", "1")),
        Column(name="WSI", nullable=True),
        Column(name="RNA", required=False, nullable=True),
        Column(name="split", required=False, nullable=True),
    ]
    table = read_table(uri, columns)
    has_split = "split" in table.column_names
    rows = tuple(_survival_row(uri, row, cells) for row, cells in enumerate(table.to_pylist()))
    return Rows(
        dialect="mstar-multimodal" if "RNA" in table.column_names else "mstar-survival",
        rows=rows,
        folds=(ONE_FOLD,) if has_split else (),
        time="Event",
        event="Status",
    )


def _survival_row(uri: str, row: int, cells: dict[str, Any]) -> LabelRow:
    split = {"split": ONE_FOLD} if "split" in cells else {}
    rna = cells.get("RNA")
    return LabelRow(
        row=row,
        case_id=cells["ID"],
        slides=tuple(base_name(slide) for slide in split_slides(cells["WSI"])),
        time_months=cells["Event"],
        event=str(cells["Status"]),
        rna=None if rna is None else base_name(rna),
        folds=folds_of(uri, row, cells, split),
    )


def _fold_columns(names: list[str]) -> dict[str, str]:
    """Column → fold: `fold` alone, else fold1, fold2 … in the order of their numbers."""
    one = next((name for name in names if name.lower() == "fold"), None)
    if one is not None:
        return {one: ONE_FOLD}
    numbered = [(int(match[1]), name) for name in names if (match := _NUMBERED.fullmatch(name))]
    return {name: str(number) for number, name in sorted(numbered)}


def _check_positions(uri: str, names: list[str]) -> None:
    """Columns are taken by position, so names that say otherwise are not passed over."""
    for place, wanted in enumerate(_POSITIONS):
        other = next((at for at, name in enumerate(names) if name.lower() == wanted), place)
        if other != place or len(names) < len(_POSITIONS):
            raise TableError(
                f"{uri}: expected case, slide, label as the first three columns, got "
                f"{', '.join(names[:6])}. They are read by position: put them first, in this order."
            )
