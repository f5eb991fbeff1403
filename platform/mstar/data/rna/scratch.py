"""Blocks of a matrix set aside on disk, and read back by case: the transpose of a large matrix.

Each block is written as it comes, case-major, so that any range of cases is one contiguous read per
block. Plain reads and writes: pages of a memory map would count as this process's memory.
"""

import tempfile
from dataclasses import dataclass
from typing import IO

import numpy as np
from jaxtyping import Float32

_ITEM_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    offset: int
    case: int
    row: int
    num_cases: int
    num_rows: int


class Scratch:
    """A [case, row] float32 matrix of any size, written block by block in any order."""

    def __init__(self, folder: str) -> None:
        """Opens a file without a name, which goes when the process does."""
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder or None, prefix="mstar_rna_")
        self._places: list[_Place] = []
        self._end = 0

    def __enter__(self) -> "Scratch":
        """The matrix itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Gives the disk space back."""
        self.close()

    def close(self) -> None:
        """Gives the disk space back."""
        self._file.close()

    def write(self, case: int, row: int, values: Float32[np.ndarray, "case row"]) -> None:
        """Sets a block aside whose first cell is (case, row)."""
        data = np.ascontiguousarray(values)
        self._file.seek(self._end)
        self._file.write(data.tobytes())
        num_cases, num_rows = data.shape
        self._places.append(
            _Place(offset=self._end, case=case, row=row, num_cases=num_cases, num_rows=num_rows)
        )
        self._end += data.nbytes

    def read(self, start: int, stop: int, num_rows: int) -> Float32[np.ndarray, "case row"]:
        """All rows of the cases [start, stop)."""
        values = np.full((stop - start, num_rows), np.nan, dtype=np.float32)
        for place in self._places:
            first, last = max(start, place.case), min(stop, place.case + place.num_cases)
            if first < last and place.num_rows:
                part = self._part(place, first - place.case, last - first)
                values[first - start : last - start, place.row : place.row + place.num_rows] = part
        return values

    def _part(self, place: _Place, skipped: int, num_cases: int) -> Float32[np.ndarray, "case row"]:
        line_bytes = place.num_rows * _ITEM_BYTES
        self._file.seek(place.offset + skipped * line_bytes)
        data = self._file.read(num_cases * line_bytes)
        assert len(data) == num_cases * line_bytes
        return np.frombuffer(data, dtype=np.float32).reshape(num_cases, place.num_rows)
