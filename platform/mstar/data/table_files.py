"""The files that tables come in: what separates their cells, and how they are unpacked.

CSV and TSV by their name, as they are, as .gz or as a .zip with one file in it. Every trouble is a
TableError.
"""

import gzip
import io
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

from mstar.errors import TableError
from mstar.storage import objects

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t", ".tab": "\t"}
_NAMES = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a bar"}
_SHOWN_CHARS = 60
_BROKEN_PACKING = (
    gzip.BadGzipFile,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    NotImplementedError,  # a compression zipfile does not know
    RuntimeError,  # an encrypted member
)


def bad_cell(
    uri: str, row: int, column: str, expected: str, found: object, way_out: str
) -> TableError:
    """The TableError of one cell; row counted from 0 here, from 1 in the message."""
    shown = "None (an empty cell)" if found is None else repr(found)
    shown = shown if len(shown) <= _SHOWN_CHARS else shown[:_SHOWN_CHARS] + "…"
    return TableError(
        f"{uri}: row {row + 1:,}, column {column}: expected {expected}, got {shown}. {way_out}"
    )


def open_text(uri: str) -> io.BufferedIOBase:
    """The bytes of a text table, unpacked when its name ends in .gz or .zip; closing closes all."""
    file = open_table(uri)
    if uri.endswith(".gz"):
        return io.BufferedReader(_Unpacked(uri, gzip.GzipFile(fileobj=file), file))
    if not uri.endswith(".zip"):
        return file
    try:
        archive = zipfile.ZipFile(file)
        return io.BufferedReader(_Unpacked(uri, archive.open(_member(uri, archive)), archive, file))
    except _BROKEN_PACKING as error:
        file.close()
        raise _cannot_unpack(uri, error) from error
    except TableError:
        file.close()
        raise


def open_table(uri: str) -> io.BufferedReader:
    """The file as it lies there."""
    try:
        return objects.open_read(uri)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise TableError(f"{uri}: there is no such table. Check the path.") from error


def delimiter_of(uri: str) -> str:
    """What separates the cells, by the table's name."""
    name = uri.removesuffix(".gz").removesuffix(".zip")
    suffix = name[name.rfind(".") :].lower() if "." in name.rpartition("/")[2] else ""
    if suffix not in DELIMITERS and suffix:
        raise TableError(
            f"{uri}: expected a name that ends in {', '.join(DELIMITERS)} (with .gz or .zip, or "
            "not) or .parquet. Rename it, or save it as one of these."
        )
    return DELIMITERS.get(suffix, ",")


def separator_hint(uri: str, names: Sequence[str]) -> str:
    """What to say when a header looks as if it were cut at the wrong character."""
    if len(names) != 1:
        return ""
    others = [mark for mark in _NAMES if mark in names[0]]
    if not others:
        return ""
    wanted = _NAMES[delimiter_of(uri)]
    return f" The columns are separated by {_NAMES[others[0]]}: separate them by {wanted}."


class _Unpacked(io.RawIOBase):
    """An unpacked stream that closes what it was unpacked from."""

    def __init__(self, uri: str, *files: Any) -> None:
        self._uri = uri
        self._files = files

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As of the stream."""
        try:
            data = self._files[0].read(len(buffer))
        except _BROKEN_PACKING as error:
            raise _cannot_unpack(self._uri, error) from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the stream and what it came from."""
        if not self.closed:
            for file in self._files:
                file.close()
        super().close()


def _member(uri: str, archive: zipfile.ZipFile) -> str:
    """The one table in an archive; what macOS adds beside it is passed over."""
    names = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX/")]
    if len(names) != 1:
        raise TableError(
            f"{uri}: expected one file in the archive, got {len(names)}. Unpack it and name one."
        )
    return names[0]


def _cannot_unpack(uri: str, error: BaseException) -> TableError:
    kind = "gzip" if uri.endswith(".gz") else "zip"
    return TableError(f"{uri}: expected {kind} data, got {error}. Fetch the file again.")
