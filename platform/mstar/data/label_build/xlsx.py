"""Excel workbooks as tables of text: sheets, shared and inline strings, numbers; no formulas.

A workbook is a zip of XML. What is read of it is plain (`<c r="B3" t="s"><v>17</v></c>`), so it is
matched and not parsed: no entity is ever expanded and no library is needed.
"""

import html
import io
import re
import zipfile
from collections.abc import Iterator
from typing import Final

from mstar.errors import TableError
from mstar.storage import objects

_ROW = re.compile(r"<row\b[^>]*?(?:/>|>(.*?)</row>)", re.DOTALL)
_CELL = re.compile(r"<c\b([^>]*?)(?:/>|>(.*?)</c>)", re.DOTALL)
_VALUE = re.compile(r"<v\b[^>]*>(.*?)</v>", re.DOTALL)
_TEXT = re.compile(r"<t\b[^>]*?(?:/>|>(.*?)</t>)", re.DOTALL)
_STRING = re.compile(r"<si\b[^>]*?(?:/>|>(.*?)</si>)", re.DOTALL)
_SHEET = re.compile(r"<sheet\b([^>]*)/?>")
_LINK = re.compile(r"<Relationship\b([^>]*)/?>")
_ATTRIBUTE = re.compile(r'([\w:]+)="([^"]*)"')
_PHONETIC = re.compile(r"<rPh\b.*?</rPh>", re.DOTALL)
_MAX_BYTES: Final = 1 << 30  # of one unpacked part: more is no table of labels

Rows = list[list[str | None]]


def read_workbook(uri: str) -> dict[str, Rows]:
    """Name of each sheet → its rows, cells as text, empty ones None.

    Raises:
        TableError: it is no workbook, or part of it is missing.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(objects.read_bytes(uri))) as archive:
            strings = _shared_strings(archive)
            return {
                name: list(_rows(_part(archive, part), strings))
                for name, part in _sheets(archive).items()
            }
    except (zipfile.BadZipFile, KeyError, IndexError, ValueError) as error:
        raise TableError(
            f"{uri}: expected an Excel workbook (.xlsx), got {type(error).__name__}: {error}. "
            "Fetch it again, or save its sheet as CSV."
        ) from error
    except FileNotFoundError as error:
        raise TableError(f"{uri}: there is no such workbook. Check the path.") from error


def _part(archive: zipfile.ZipFile, name: str) -> str:
    size = archive.getinfo(name).file_size
    if size > _MAX_BYTES:
        raise ValueError(f"{name} unpacks to {size:,} bytes, more than {_MAX_BYTES:,}")
    return archive.read(name).decode()


def _sheets(archive: zipfile.ZipFile) -> dict[str, str]:
    """Name of each sheet → its part, in the order of the workbook."""
    links = {}
    for match in _LINK.finditer(_part(archive, "xl/_rels/workbook.xml.rels")):
        link = dict(_ATTRIBUTE.findall(match[1]))
        links[link["Id"]] = link["Target"]
    found = {}
    for match in _SHEET.finditer(_part(archive, "xl/workbook.xml")):
        sheet = dict(_ATTRIBUTE.findall(match[1]))
        target = links[sheet["r:id"]]
        place = target.removeprefix("/") if target.startswith("/") else f"xl/{target}"
        found[html.unescape(sheet["name"])] = place
    return found


def _shared_strings(archive: zipfile.ZipFile) -> list[str]:
    if "xl/sharedStrings.xml" not in archive.namelist():
        return []
    text = _part(archive, "xl/sharedStrings.xml")
    return [_joined(match[1] or "") for match in _STRING.finditer(text)]


def _joined(fragment: str) -> str:
    """The text of a string that may be in several runs, without its reading aid."""
    parts = _TEXT.finditer(_PHONETIC.sub("", fragment))
    return html.unescape("".join(part[1] or "" for part in parts))


def _rows(text: str, strings: list[str]) -> Iterator[list[str | None]]:
    for match in _ROW.finditer(text):
        row: list[str | None] = []
        for cell in _CELL.finditer(match[1] or ""):
            attributes = dict(_ATTRIBUTE.findall(cell[1]))
            place = _column(attributes["r"]) if "r" in attributes else len(row)
            row += [None] * (place + 1 - len(row))
            row[place] = _value(attributes.get("t", "n"), cell[2] or "", strings)
        yield row


def _column(reference: str) -> int:
    """The place of `B3` in its row, from 0."""
    place = 0
    for letter in reference.rstrip("0123456789"):
        place = place * 26 + ord(letter.upper()) - 64
    return place - 1


def _value(kind: str, content: str, strings: list[str]) -> str | None:
    if kind == "inlineStr":
        return _joined(content).strip() or None
    found = _VALUE.search(content)
    if found is None:
        return None
    text = html.unescape(found[1])
    if kind == "s":
        return strings[int(text)].strip() or None
    return _plain_number(text) if kind == "n" else text.strip() or None


def _plain_number(text: str) -> str:
    """`7.0` is written as 7, as whoever typed the id saw it."""
    number = float(text)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else text
