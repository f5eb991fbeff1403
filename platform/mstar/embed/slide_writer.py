"""From chunks to a slide's one file: directly, or through parts when the slide was split."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mstar.embed.packing import ChunkRows
from mstar.errors import FeatureError
from mstar.features import parts
from mstar.features.files import FeatureProvenance, cast_features, coords_digest, leave_out
from mstar.features.store import FeatureStore
from mstar.schema import Grid
from mstar.storage import objects


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideWriter:
    """Writes the features of one store."""

    store: FeatureStore
    provenance: FeatureProvenance
    dim: int
    dtype: str

    def missing_chunks(self, grid: Grid, chunk_patches: int) -> list[tuple[int, int]]:
        """Ranges of grid rows still to be encoded; usable parts of an earlier try are kept."""
        usable = [part for part in self._parts(grid) if self._usable(part, grid)]
        gaps = parts.uncovered(usable, len(grid))
        return [
            (first, min(first + chunk_patches, stop))
            for start, stop in gaps
            for first in range(start, stop, chunk_patches)
        ]

    def write(self, grid: Grid, chunk: ChunkRows | None, *, last: bool) -> None:
        """Write one chunk; with the `last` one, the slide."""
        if chunk is not None and (chunk.start, chunk.stop) == (0, len(grid)):
            self._write_slide(grid, self._rows(chunk), chunk.unreadable)
            return
        if chunk is not None:
            self._write_part(grid, chunk)
        if last:
            self._assemble(grid)

    def _rows(self, chunk: ChunkRows) -> np.ndarray:
        readable = np.ones(chunk.stop - chunk.start, bool)
        readable[[row - chunk.start for row in chunk.unreadable]] = False
        return cast_features(chunk.features[readable], self.dtype)

    def _write_part(self, grid: Grid, chunk: ChunkRows) -> None:
        part = parts.make_part(
            grid,
            chunk.start,
            chunk.stop,
            self._rows(chunk),
            fingerprint=self.provenance.fingerprint,
            unreadable=chunk.unreadable,
        )
        parts.write_part(self.store.root, part)

    def _assemble(self, grid: Grid) -> None:
        whole = parts.assemble(
            self.store.root,
            grid,
            fingerprint=self.provenance.fingerprint,
            dim=self.dim,
            dtype=self.dtype,
        )
        self._write_slide(grid, whole.features, whole.unreadable)
        parts.drop_parts(self.store.root, grid.slide_id)

    def _write_slide(
        self, grid: Grid, rows: Float[np.ndarray, "patch dim"], unreadable: dict[int, str]
    ) -> None:
        kept, left_out = leave_out(grid, unreadable)
        self.store.write(grid.slide_id, kept, rows, self.provenance, unreadable=left_out)

    def _parts(self, grid: Grid) -> list[parts.PartRange]:
        return parts.list_parts(self.store.root, grid.slide_id)

    def _usable(self, part: parts.PartRange, grid: Grid) -> bool:
        """A part of the same settings and coordinates; others are removed."""
        try:
            header = parts.read_header(part.uri)
            same = header.coords_sha256 == coords_digest(grid.coords[part.start : part.stop])
            if same and header.fingerprint == self.provenance.fingerprint:
                return True
        except FeatureError:
            pass  # damaged, so of no use
        objects.delete(part.uri)
        return False
