"""Finished pieces of a slide that is not complete yet.

A giant slide is encoded in chunks, by several workers perhaps. Each chunk's rows are one part,
`_state/parts/<slide_id>/<start>-<stop>.part` below the store: written whole or not at all, so that
it survives a crash and tells by its name alone which rows exist. The worker that completes the set
writes the slide's file and drops the parts. Rows do not depend on how a slide was cut, so parts of
different chunk sizes (an earlier run's) may overlap and are used together.

A part is: a magic line, the length and the sha256 of a JSON header, the header, the raw rows.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from mstar.errors import FeatureError
from mstar.features.grid_files import coords_digest
from mstar.features.hdf5 import wrong
from mstar.schema import Grid
from mstar.storage import objects

PARTS = "_state/parts"

_MAGIC = b"mstar part 1\n"
_PREFIX_BYTES = len(_MAGIC) + 8 + 32  # magic, length of the header, sha256 of the header
_MAX_HEADER_BYTES = 1 << 30
_NAME = re.compile(r"(?:(?P<slide_id>.+)/)?(?P<start>\d+)-(?P<stop>\d+)\.part")
_REDO = "Delete the part and run `mstar embed` again."


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PartRange:
    """The rows [start, stop) of a slide's grid that one part holds."""

    start: int
    stop: int
    uri: str = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartHeader:
    """What a part says about its rows."""

    slide_id: str
    start: int
    stop: int
    fingerprint: str
    coords_sha256: str  # of grid.coords[start:stop]
    unreadable: dict[int, str]  # row of the whole grid -> reason
    dtype: str
    dim: int
    rows_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One part: the rows of every patch of its range but the unreadable ones."""

    header: PartHeader
    rows: Float[np.ndarray, "patch dim"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Assembled:
    """A slide put together from its parts."""

    features: Float[np.ndarray, "patch dim"]
    unreadable: dict[int, str]


def make_part(
    grid: Grid,
    start: int,
    stop: int,
    rows: Float[np.ndarray, "patch dim"],
    *,
    fingerprint: str,
    unreadable: Mapping[int, str] | None = None,
) -> Part:
    """A part of `grid`, rows [start, stop), with `rows` for all of them but the unreadable ones."""
    reasons = {int(row): str(reason) for row, reason in sorted((unreadable or {}).items())}
    assert 0 <= start < stop <= len(grid)
    assert all(start <= row < stop for row in reasons)
    assert rows.ndim == 2
    assert len(rows) == stop - start - len(reasons)
    header = PartHeader(
        slide_id=grid.slide_id,
        start=start,
        stop=stop,
        fingerprint=fingerprint,
        coords_sha256=coords_digest(grid.coords[start:stop]),
        unreadable=reasons,
        dtype=rows.dtype.name,
        dim=rows.shape[1],
        rows_sha256=hashlib.sha256(_raw(rows)).hexdigest(),
    )
    return Part(header=header, rows=rows)


def write_part(root: str, part: Part) -> None:
    """Writes a part under its name, whole or not at all, over whatever was there."""
    header = part.header
    fields = {name: getattr(header, name) for name in PartHeader.__slots__}
    text = json.dumps(fields, sort_keys=True).encode()
    length, check = len(text).to_bytes(8, "little"), hashlib.sha256(text).digest()
    data = b"".join((_MAGIC, length, check, text, _raw(part.rows)))
    objects.write_whole(part_uri(root, header.slide_id, header.start, header.stop), data)


def part_uri(root: str, slide_id: str, start: int, stop: int) -> str:
    """Where the part of rows [start, stop) lies."""
    return objects.join(root, PARTS, slide_id, f"{start}-{stop}.part")


def list_parts(root: str, slide_id: str) -> list[PartRange]:
    """The parts of one slide, by start; told by their names, no file is opened."""
    folder = objects.join(root, PARTS, slide_id)
    ranges = []
    for info in objects.list_files(folder, suffix=".part"):
        match = _NAME.fullmatch(info.rel)
        if match and match["slide_id"] is None:  # not those of a slide in a folder of that name
            ranges.append(
                PartRange(start=int(match["start"]), stop=int(match["stop"]), uri=info.uri)
            )
    return sorted(ranges)


def read_part(uri: str) -> Part:
    """Reads one part; a damaged one is a FeatureError."""
    data = objects.read_bytes(uri)
    header, offset = _parse_header(data, uri)
    num_rows = header.stop - header.start - len(header.unreadable)
    raw = data[offset:]
    if hashlib.sha256(raw).hexdigest() != header.rows_sha256:
        raise wrong(uri, "rows", f"sha256 {header.rows_sha256}", f"{len(raw)} other bytes", _REDO)
    rows = np.frombuffer(raw, dtype=header.dtype).reshape(num_rows, header.dim)
    return Part(header=header, rows=rows)


def read_header(uri: str) -> PartHeader:
    """Reads what a part says about itself, without its rows."""
    with objects.open_read(uri) as file:
        prefix = file.read(_PREFIX_BYTES)
        length = _header_bytes(prefix, uri)
        return _parse_header(prefix + file.read(length), uri)[0]


def uncovered(ranges: list[PartRange], num_patches: int) -> list[tuple[int, int]]:
    """The ranges of rows that no part holds, so what is left to do."""
    gaps, reached = [], 0
    for part in sorted(ranges):
        if part.start > reached:
            gaps.append((reached, min(part.start, num_patches)))
        reached = max(reached, part.stop)
    if reached < num_patches:
        gaps.append((reached, num_patches))
    return [(start, stop) for start, stop in gaps if start < stop]


def complete(root: str, slide_id: str, num_patches: int) -> bool:
    """Whether parts exist for all of a slide's rows."""
    return not uncovered(list_parts(root, slide_id), num_patches)


def assemble(
    root: str, grid: Grid, *, fingerprint: str, dim: int, dtype: str = "float16"
) -> Assembled:
    """Puts a slide together from its parts, in the grid's row order.

    Parts that are missing, stale or damaged are a FeatureError that names them; `collect_stale`
    removes the stale ones. A part that vanishes meanwhile (FileNotFoundError) was dropped by
    another worker, which has then written the slide.
    """
    pieces: list[np.ndarray] = [np.empty((0, dim), dtype)]
    unreadable: dict[int, str] = {}
    reached = 0
    for chosen in _chain(list_parts(root, grid.slide_id), grid):
        part = read_part(chosen.uri)
        _check_fits(part.header, grid, fingerprint, dim, dtype, chosen.uri)
        reasons = part.header.unreadable
        readable = np.array([r for r in range(chosen.start, chosen.stop) if r not in reasons])
        pieces.append(part.rows[readable >= reached] if len(readable) else part.rows)
        unreadable |= {row: reason for row, reason in reasons.items() if row >= reached}
        reached = chosen.stop
    return Assembled(features=np.concatenate(pieces), unreadable=unreadable)


def drop_parts(root: str, slide_id: str) -> int:
    """Removes the parts of one slide and says how many there were."""
    ranges = list_parts(root, slide_id)
    for part in ranges:
        objects.delete(part.uri)
    return len(ranges)


def collect_stale(
    root: str,
    *,
    is_done: Callable[[str], bool],
    fingerprint: str,
    grid_of: Callable[[str], Grid | None],
) -> int:
    """Removes parts that nobody will use, and says how many.

    Stale is a part whose slide is done, that another configuration or another grid made, or that is
    damaged. A slide whose grid is not known (yet) keeps its parts.
    """
    removed = 0
    for info in list(objects.list_files(objects.join(root, PARTS), suffix=".part")):
        match = _NAME.fullmatch(info.rel)
        if match is None or match["slide_id"] is None:  # nothing of ours: leave it
            continue
        if is_done(match["slide_id"]) or _is_stale(info.uri, fingerprint, grid_of):
            objects.delete(info.uri)
            removed += 1
    return removed


def _is_stale(uri: str, fingerprint: str, grid_of: Callable[[str], Grid | None]) -> bool:
    """Whether a part of an unfinished slide fits neither the configuration nor the grid."""
    try:
        header = read_header(uri)
    except FeatureError:
        return True
    if header.fingerprint != fingerprint:
        return True
    grid = grid_of(header.slide_id)
    return grid is not None and not _same_coords(header, grid)


def _chain(ranges: list[PartRange], grid: Grid) -> list[PartRange]:
    """The fewest parts that cover the grid from row 0 on, in order."""
    gaps = uncovered(ranges, len(grid))
    if gaps:
        name, expected = grid.slide_id, f"all of rows 0 to {len(grid)}"
        raise wrong(name, "parts", expected, f"none for {gaps}", "Run `mstar embed` again.")
    chosen: list[PartRange] = []
    reached = 0
    while reached < len(grid):
        best = max((r for r in ranges if r.start <= reached), key=lambda r: (r.stop, r.start))
        chosen.append(best)
        reached = best.stop
    return chosen


def _check_fits(
    header: PartHeader, grid: Grid, fingerprint: str, dim: int, dtype: str, uri: str
) -> None:
    """Refuses a part of another configuration, grid, width or type."""
    if header.fingerprint != fingerprint:
        raise wrong(uri, "fingerprint", fingerprint, header.fingerprint, _REDO)
    if not _same_coords(header, grid):
        expected = coords_digest(grid.coords[header.start : header.stop])
        raise wrong(uri, "digest of coords", expected, header.coords_sha256, _REDO)
    if (header.dim, header.dtype) != (dim, dtype):
        raise wrong(uri, "rows", f"{dtype} of {dim}", f"{header.dtype} of {header.dim}", _REDO)


def _same_coords(header: PartHeader, grid: Grid) -> bool:
    """Whether the part's range exists in the grid and has the same coordinates."""
    inside = header.stop <= len(grid)
    expected = coords_digest(grid.coords[header.start : header.stop])
    return inside and expected == header.coords_sha256


def _header_bytes(prefix: bytes, uri: str) -> int:
    """The length of the header that follows a part's first bytes."""
    if len(prefix) < _PREFIX_BYTES or not prefix.startswith(_MAGIC):
        raise wrong(uri, "part", f"to start with {_MAGIC!r}", repr(prefix[: len(_MAGIC)]), _REDO)
    length = int.from_bytes(prefix[len(_MAGIC) : len(_MAGIC) + 8], "little")
    if length > _MAX_HEADER_BYTES:
        raise wrong(uri, "header", f"at most {_MAX_HEADER_BYTES} bytes", length, _REDO)
    return length


def _parse_header(data: bytes, uri: str) -> tuple[PartHeader, int]:
    """The header at the start of a part, and where its rows begin."""
    stop = _PREFIX_BYTES + _header_bytes(data[:_PREFIX_BYTES], uri)
    text = data[_PREFIX_BYTES:stop]
    if hashlib.sha256(text).digest() != data[_PREFIX_BYTES - 32 : _PREFIX_BYTES]:
        raise wrong(uri, "header", "its sha256", f"{len(text)} other bytes", _REDO)
    fields: dict[str, Any] = json.loads(text)
    fields["unreadable"] = {int(row): reason for row, reason in fields["unreadable"].items()}
    return PartHeader(**fields), stop


def _raw(rows: np.ndarray) -> bytes:
    """Rows as little-endian bytes."""
    return np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<")).tobytes()
