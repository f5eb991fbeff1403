"""The files of one data set, as tables of text that are found by the columns they have.

A folder may hold more than is needed (a whole study of cBioPortal, say): headers are looked at, and
a table is read when a column of it is asked for. Files without an id column are no tables of cases.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mstar.data.barcodes import parse_barcode
from mstar.data.label_build.datasets import EXCLUDE, SLIDES, Dataset
from mstar.data.label_build.mutations import is_case_list, is_maf
from mstar.data.label_build.xlsx import Rows, read_workbook
from mstar.data.label_tables.matching import without_extension
from mstar.data.table_text import NULLS, read_as_text
from mstar.data.tables import column_names
from mstar.errors import ConfigError, TableError
from mstar.storage import objects

COMMENT = "#"
SUFFIXES = (".csv", ".tsv", ".txt", ".tab", ".parquet")
_HEADER_ROWS = 10  # of a workbook's sheet that may stand before its header
_SAMPLE_ORDER = ("01", "03", "09", "06", "02", "04", "05", "07")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What a row is of.

    name: case or slide, as the data set is keyed.
    rank: of its sample among those of a case; the lowest counts.
    """

    name: str
    rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """One table of a file.

    columns: name → its cells, all of one length.
    id_column: the one that says what a row is of.
    """

    uri: str
    columns: dict[str, list[str | None]]
    id_column: str

    def find(self, name: str) -> str | None:
        """The column of that name, in any case."""
        return next((own for own in self.columns if own.lower() == name.lower()), None)


class Sources:
    """The published files of a data set, below `<sources>/<folder>`."""

    def __init__(self, root: str, dataset: Dataset) -> None:
        self.dataset = dataset
        self.folder = objects.join(root, dataset.folder)
        infos = sorted(objects.list_files(self.folder), key=lambda info: info.rel)
        kept = [i.rel for i in infos if i.rel not in (SLIDES, EXCLUDE)]
        self.uris = [objects.join(self.folder, rel) for rel in kept]
        self.used: dict[str, None] = {}
        self.alterations: tuple[frozenset[str], Any] | None = None  # kept by gene_status
        self._patients: dict[str, str] | None = None
        self._names: dict[str, list[str]] | None = None
        self._sheets: dict[str, list[Sheet]] = {}

    @property
    def is_there(self) -> bool:
        """Whether there is any file of the data set."""
        return bool(self.uris)

    @property
    def maf_uris(self) -> list[str]:
        """Tables of mutations, one row each."""
        return [uri for uri in self.uris if is_maf(uri)]

    @property
    def case_list_uris(self) -> list[str]:
        """Lists of sequenced samples, as cBioPortal has them."""
        return [uri for uri in self.uris if is_case_list(uri)]

    def with_column(self, wanted: Sequence[str]) -> tuple[str, list[Sheet]]:
        """The first of these columns that a table has, and all tables that have it.

        Raises:
            ConfigError: no table has any; names the files that were looked at.
        """
        for name in wanted:
            sheets = [sheet for sheet in self._having((name,)) if sheet.find(name)]
            if sheets:
                self.used |= dict.fromkeys(sheet.uri for sheet in sheets)
                return name, sheets
        looked = ", ".join(uri.rpartition("/")[2] for uri in list(self._headers())[:6])
        raise ConfigError(
            f"{self.folder}: expected a table with a column {' or '.join(wanted)} beside one of "
            f"{', '.join(self.dataset.ids[:4])}, got {looked or 'no table'}. platform/docs/"
            "labels.md says which file has it."
        )

    def with_any_column(self, wanted: Sequence[str]) -> list[tuple[str, Sheet]]:
        """Every table that has one of these columns, with the first that it has."""
        found: dict[int, tuple[str, Sheet]] = {}
        for name in wanted:
            for sheet in self._having((name,)):
                if sheet.find(name):
                    found.setdefault(id(sheet), (name, sheet))
        if not found:
            self.with_column(wanted)  # says what was looked at
        self.used |= dict.fromkeys(sheet.uri for _, sheet in found.values())
        return list(found.values())

    def with_columns(self, wanted: Sequence[str]) -> list[Sheet]:
        """The tables that have all of these columns; none is no error."""
        sheets = [s for s in self._having(wanted) if all(s.find(name) for name in wanted)]
        self.used |= dict.fromkeys(sheet.uri for sheet in sheets)
        return sheets

    def all_sheets(self) -> list[Sheet]:
        """Every table with an id column."""
        return [sheet for uri in self._headers() for sheet in self._read(uri)]

    def key(self, text: str | None) -> Key | None:
        """What an id is of; None for rows that are of no case: headers below headers, normals."""
        if text is None or not text.strip():
            return None
        text = text.strip()
        if not self.dataset.barcodes:
            is_slide = self.dataset.keyed == "slide"
            return Key(name=without_extension(text) if is_slide else self._patient(text))
        barcode = parse_barcode(text)
        if barcode is None or (barcode.sample_type is not None and not barcode.is_tumor):
            return None
        if barcode.sample_type is None:
            return Key(name=barcode.patient)
        known = barcode.sample_type in _SAMPLE_ORDER
        rank = _SAMPLE_ORDER.index(barcode.sample_type) if known else len(_SAMPLE_ORDER)
        return Key(name=barcode.patient, rank=rank)

    def _patient(self, sample: str) -> str:
        """The case of a sample, where a table of cBioPortal names both; else the name itself."""
        if self._patients is None:
            self._patients = {}
            for sheet in self.with_columns(("SAMPLE_ID", "PATIENT_ID")):
                samples, cases = (sheet.find(name) for name in ("SAMPLE_ID", "PATIENT_ID"))
                pairs = zip(sheet.columns[samples or ""], sheet.columns[cases or ""], strict=True)
                self._patients |= {name: case for name, case in pairs if name and case}
        return self._patients.get(sample, sample)

    def _headers(self) -> dict[str, list[str]]:
        """Every table with an id column → its columns; read once."""
        if self._names is None:
            self._names = {}
            for uri in self.uris:
                names = self._header(uri)
                if any(self._id_column(names)):
                    self._names[uri] = names
        return self._names

    def _header(self, uri: str) -> list[str]:
        if uri.endswith((".xlsx", ".json")) or self._is_headerless(uri):
            return [name for sheet in self._read(uri) for name in sheet.columns]
        if not _is_text_table(uri) or is_case_list(uri) or is_maf(uri):
            return []
        try:
            return column_names(uri, comment=COMMENT)
        except TableError:  # a read-me, a licence: no table
            return []

    def _having(self, wanted: Sequence[str]) -> Iterator[Sheet]:
        lower = {name.lower() for name in wanted}
        for uri, names in self._headers().items():
            if lower <= {name.lower() for name in names}:
                yield from self._read(uri)

    def _read(self, uri: str) -> list[Sheet]:
        if uri not in self._sheets:
            self._sheets[uri] = list(self._parsed(uri))
        return self._sheets[uri]

    def _parsed(self, uri: str) -> Iterator[Sheet]:
        if uri.endswith(".xlsx"):
            for rows in read_workbook(uri).values():
                yield from self._of_rows(uri, rows)
        elif uri.endswith(".json"):
            yield from self._of_records(uri)
        elif self._is_headerless(uri):
            table = read_as_text(uri)
            rows = [list(table.column_names), *(list(r.values()) for r in table.to_pylist())]
            names: Rows = [[*self.dataset.headerless[: len(rows[0])]]]
            yield from self._of_rows(uri, names + rows)
        else:
            table = read_as_text(uri, comment=COMMENT)
            columns = {name: table.column(name).to_pylist() for name in table.column_names}
            yield from self._sheet(uri, columns)

    def _is_headerless(self, uri: str) -> bool:
        if not self.dataset.first_cell or not _is_text_table(uri):
            return False
        try:
            first = column_names(uri)[0]
        except TableError:
            return False
        return re.fullmatch(self.dataset.first_cell, first) is not None

    def _of_rows(self, uri: str, rows: Rows) -> Iterator[Sheet]:
        """A sheet below its header: the first row that names an id column."""
        for at, row in enumerate(rows[:_HEADER_ROWS]):
            names = [str(cell or "").strip() for cell in row]
            if any(self._id_column(names)):
                places = {name: place for place, name in enumerate(names) if name}
                body = [cells for cells in rows[at + 1 :] if any(cells)]
                columns = {
                    name: [_cell(cells[place]) if place < len(cells) else None for cells in body]
                    for name, place in places.items()
                }
                yield from self._sheet(uri, columns)
                return

    def _of_records(self, uri: str) -> Iterator[Sheet]:
        try:
            records: Any = json.loads(objects.read_bytes(uri))
        except ValueError as error:
            raise TableError(f"{uri}: expected JSON ({error}). Fetch the file again.") from error
        if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            return  # another file of the data set
        names = list(dict.fromkeys(name for record in records for name in record))
        columns = {name: [_cell(record.get(name)) for record in records] for name in names}
        yield from self._sheet(uri, columns)

    def _sheet(self, uri: str, columns: dict[str, list[str | None]]) -> Iterator[Sheet]:
        for id_column in self._id_column(list(columns)):
            yield Sheet(uri=uri, columns=columns, id_column=id_column)

    def _id_column(self, names: Sequence[str]) -> Iterator[str]:
        """The best id column of a header, none when it has none."""
        lower = {name.lower(): name for name in names}
        found = (lower[name.lower()] for name in self.dataset.ids if name.lower() in lower)
        yield from [name for name in [next(found, None)] if name is not None]


def _is_text_table(uri: str) -> bool:
    return uri.removesuffix(".gz").removesuffix(".zip").endswith(SUFFIXES)


def _cell(value: Any) -> str | None:
    """A cell as text; what is written for nothing is None."""
    if value is None or isinstance(value, (list, dict)):
        return None
    text = str(value).strip()
    return None if text in NULLS else text
