"""Reads a cohort: which slides there are, from a manifest, a folder, a pattern or a single file.

A manifest is a .csv (UTF-8, comma) or .parquet with the columns

    path        absolute, relative to the manifest's folder, or s3://…; the only one required
    slide_id    unique; default: the path relative to the folder that all slides share, no extension
    mpp         microns per pixel at level 0, where the file states none or a wrong one
    case_id     the patient

Others are ignored. Ids are text: `007` stays `007`. A row that cannot be used does not stop the
rest: it comes out as a `BadRow`. What makes the whole manifest doubtful (a missing column, another
encoding, an id that comes twice) is a ManifestError. Rows are streamed; a million need 10 MB.
"""

import hashlib
import logging
import math
import os
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from mstar.errors import ConfigError, ManifestError
from mstar.schema import SlideRef
from mstar.storage import objects
from mstar.storage.confine import SLIDE_ROOTS, outside, slide_roots
from mstar.storage.ids import check_slide_id, slide_id_problem
from mstar.storage.manifest_rows import Row, csv_rows, parquet_rows
from mstar.storage.slide_listing import FoundSlide, find_slides, plain_stem

__all__ = ["BadRow", "check_slide_id", "read_slides"]

_log = logging.getLogger(__name__)

MIN_MPP, MAX_MPP = 0.05, 10.0
_MANIFESTS: dict[str, Callable[[str], Iterator[Row]]] = {".csv": csv_rows, ".parquet": parquet_rows}
_OTHER_TABLES = (".tsv", ".txt", ".xls", ".xlsx", ".json", ".jsonl", ".feather")
_RECENT_IDS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A slide that the manifest, or the name of its file, makes unusable, and why."""

    slide_id: str
    uri: str
    reason: str


Entry = SlideRef | BadRow


def read_slides(spec: str | Path, *, slide_mpp: float | None = None) -> Iterator[Entry]:
    """The slides that `spec` names, in the manifest's order, or sorted by name.

    Args:
        spec: a slide, a folder, a pattern, `s3://…` of these, or a manifest .csv or .parquet.
        slide_mpp: microns per pixel of every slide for which the manifest states none.

    Raises:
        ManifestError: the manifest cannot be read, or two slides have one id.
        ConfigError: nothing was found, or the spec makes no sense.
    """
    text = str(spec)
    if slide_mpp is not None and (problem := _mpp_problem(slide_mpp)):
        raise ConfigError(f"--slide-mpp: {problem}")
    kind = Path(text).suffix.lower()
    if kind in _OTHER_TABLES and objects.exists(text):
        raise ConfigError(f"{text}: {kind} is not read. Save the manifest as .csv or .parquet.")
    if kind in _MANIFESTS:
        entries = _manifest_entries(_absolute(text), _MANIFESTS[kind], slide_mpp)
    else:
        entries = _listed_entries(text, slide_mpp)
    roots = slide_roots()
    for entry in _without_duplicates(entries, text):
        yield _confined(entry, roots)


def _confined(entry: Entry, roots: tuple[str, ...]) -> Entry:
    """The entry, or why its slide may not be opened."""
    if isinstance(entry, BadRow) or not outside(entry.uri, roots):
        return entry
    reason = f"it lies outside {SLIDE_ROOTS} ({', '.join(roots)}), where slides may be read"
    return BadRow(slide_id=entry.slide_id, uri=entry.uri, reason=reason)


Labelled = Callable[[], Iterator[tuple[str, Entry]]]  # each entry with where it is stated


def _manifest_entries(
    uri: str, rows: Callable[[str], Iterator[Row]], slide_mpp: float | None
) -> Labelled:
    """The entries of a manifest; read from the start at each call."""
    folder = posixpath.dirname(uri)

    @cache
    def root() -> str:
        """Found by reading the whole manifest, when the first row without an id comes."""
        return _common_folder(_resolve(folder, row.path) for row in rows(uri) if row.path)

    def entries() -> Iterator[tuple[str, Entry]]:
        for row in rows(uri):
            yield row.label, _entry(row, folder, root, slide_mpp)

    return entries


def _listed_entries(spec: str, slide_mpp: float | None) -> Labelled:
    """The entries of a folder, a pattern or one file; listed once."""
    found = find_slides(spec)
    return lambda: ((slide.uri, _listed(slide, slide_mpp)) for slide in found)


def _without_duplicates(entries: Labelled, spec: str) -> Iterator[Entry]:
    seen = _SeenIds()
    empty = True
    for label, entry in entries():
        empty = False
        if isinstance(entry, SlideRef) and not seen.add(entry.slide_id):
            first = next(at for at, earlier in entries() if earlier.slide_id == entry.slide_id)
            if first != label:  # else two ids with one digest
                raise ManifestError(
                    f"{spec}: slide_id {entry.slide_id!r} comes twice, in {first} and in {label}. "
                    "Give each slide an id of its own in a manifest's column slide_id."
                )
        yield entry
    if empty:
        raise ManifestError(f"{spec}: expected rows, got none. Check that it was written fully.")


def _entry(row: Row, folder: str, root: Callable[[], str], slide_mpp: float | None) -> Entry:
    """One row, checked."""
    if row.problem or not row.path:
        reason = row.problem or "column path is empty"
        return BadRow(slide_id=row.slide_id or row.label, uri=row.path or "", reason=reason)
    uri = _resolve(folder, row.path)
    slide_id = plain_stem(_relative(uri, root())) if row.slide_id is None else row.slide_id
    mpp, mpp_problem = _parse_mpp(row.mpp, slide_mpp)
    problem = _path_problem(row.path) or _id_problem(slide_id) or mpp_problem
    if problem:
        return BadRow(slide_id=slide_id or row.label, uri=uri, reason=f"{row.label}: {problem}")
    return SlideRef(slide_id=slide_id, uri=uri, mpp=mpp, case_id=row.case_id)


def _listed(found: FoundSlide, slide_mpp: float | None) -> Entry:
    problem = _id_problem(found.slide_id)
    if problem:
        reason = f"its name gives no usable id: {problem}"
        return BadRow(slide_id=found.slide_id, uri=found.uri, reason=reason)
    return SlideRef(
        slide_id=found.slide_id, uri=found.uri, mpp=slide_mpp, size_bytes=found.size_bytes
    )


def _id_problem(slide_id: str) -> str | None:
    problem = slide_id_problem(slide_id)
    if problem is None:
        return None
    return f"slide_id {slide_id!r}: {problem}. Give another one in the manifest's slide_id"


def _path_problem(path: str) -> str | None:
    if any(ord(char) < 32 for char in path):
        return f"path {path!r} holds a control character"
    try:
        objects.is_local(path)
    except ConfigError as error:
        return str(error)
    return None


def _parse_mpp(cell: str | None, slide_mpp: float | None) -> tuple[float | None, str | None]:
    """The number, and what is wrong with it."""
    if cell is None:
        return slide_mpp, None
    try:
        mpp = float(cell)
    except ValueError:
        return None, f"mpp {cell!r} is not a number. Write it like 0.25"
    return (slide_mpp, None) if math.isnan(mpp) else (mpp, _mpp_problem(mpp))


def _mpp_problem(mpp: float) -> str | None:
    if MIN_MPP <= mpp <= MAX_MPP:
        return None
    return f"mpp {mpp} is outside {MIN_MPP}–{MAX_MPP}. State microns per pixel at level 0"


def _absolute(path: str) -> str:
    """An address that means the same in every process: workers start in other folders."""
    return os.path.abspath(objects.local_path(path)) if objects.is_local(path) else path


def _resolve(folder: str, path: str) -> str:
    """The address of a manifest's path, `..` worked out."""
    if "://" in path:
        return path
    if path.startswith("/") or objects.is_local(folder):
        return os.path.normpath(os.path.join(folder, path))
    return "s3:/" + posixpath.normpath(posixpath.join(folder.removeprefix("s3:/"), path))


def _common_folder(uris: Iterator[str]) -> str:
    """The deepest folder that holds all of them, with its slash; empty when there is none."""
    common: list[str] | None = None
    for uri in uris:
        steps = uri.split("/")[:-1]
        if common is None:
            common = steps
        elif steps[: len(common)] != common:
            same = [a == b for a, b in zip(common, steps, strict=False)]
            common = common[: [*same, False].index(False)]
    return "/".join([*common, ""]) if common else ""


def _relative(uri: str, root: str) -> str:
    return uri.removeprefix(root).removeprefix("s3:").lstrip("/")


class _SeenIds:
    """Tells ids that came before by 8-byte digests, sorted in one array: 8 MB a million."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._recent: set[int] = set()

    def add(self, slide_id: str) -> bool:
        """Take an id in; False when it (or, very rarely, another one) was there."""
        digest = int.from_bytes(hashlib.blake2b(slide_id.encode(), digest_size=8).digest(), "big")
        at = int(np.searchsorted(self._sorted, np.uint64(digest)))
        old = at < len(self._sorted) and int(self._sorted[at]) == digest
        if old or digest in self._recent:
            return False
        self._recent.add(digest)
        if len(self._recent) >= _RECENT_IDS:
            fresh = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, fresh]))
            self._recent.clear()
        return True
