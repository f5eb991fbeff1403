"""An index of unit vectors: the nearest of a question, exactly or approximately.

    exact     every vector is compared: one matrix product, nothing to build, nothing missed
    approximate   an inverted file of FAISS (package faiss-cpu, optional): the vectors are dealt out
                  to cells, and a question looks into the nearest of them

`auto` is exact up to a million vectors: a question then takes a fraction of a second (measured:
platform/docs/zero-shot.md), and nothing can be missed. Files of a kept index (`case_index`):

    vectors.npy     float32 [entry, dim], unit length
    entries.csv     name of each entry, its slides and cancer type
    index.json      what made it; written last
    cells.faiss     of an approximate index
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int64

from mstar.errors import ConfigError

Kind = Literal["auto", "exact", "approximate"]
EXACT_UP_TO = 1_000_000
BLOCK_ROWS = 262_144  # of vectors compared at once
TRAIN_ROWS = 100_000  # of vectors that the cells are found by
PROBED = 32  # cells that a question looks into


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The nearest entries of each question, best first; of equal ones the first."""

    places: Int64[np.ndarray, "question rank"]
    scores: Float32[np.ndarray, "question rank"]


class VectorIndex:
    """Unit vectors to be searched."""

    def __init__(
        self, vectors: Float32[np.ndarray, "entry dim"], cells: Any = None, probed: int = PROBED
    ) -> None:
        """Vectors of unit length; with `cells`, a FAISS index of them, searches are approximate."""
        self.vectors, self.cells, self._probed = vectors, cells, probed

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.vectors)

    @property
    def is_exact(self) -> bool:
        """Whether nothing can be missed."""
        return self.cells is None

    def search(self, questions: Float32[np.ndarray, "question dim"], k: int) -> Found:
        """The k nearest of each question, by cosine."""
        k = min(k, len(self))
        if self.cells is None:
            return exact_search(self.vectors, questions, k)
        self.cells.nprobe = min(self._probed, self.cells.nlist)
        scores, places = self.cells.search(np.ascontiguousarray(questions), k)
        return Found(places=places.astype(np.int64), scores=scores)


def exact_search(
    vectors: Float32[np.ndarray, "entry dim"],
    questions: Float32[np.ndarray, "question dim"],
    k: int,
) -> Found:
    """Every vector compared, some at a time, so that memory does not grow with their number."""
    places = np.empty((len(questions), 0), np.int64)
    scores = np.empty((len(questions), 0), np.float32)
    for start in range(0, len(vectors), BLOCK_ROWS):
        own = questions @ vectors[start : start + BLOCK_ROWS].T
        kept = min(k, own.shape[1])
        best = np.argpartition(-own, kept - 1, axis=1)[:, :kept]
        scores = np.concatenate([scores, np.take_along_axis(own, best, axis=1)], axis=1)
        places = np.concatenate([places, best + start], axis=1)
    order = np.lexsort((places, -scores), axis=1)[:, :k]
    return Found(
        places=np.take_along_axis(places, order, axis=1),
        scores=np.take_along_axis(scores, order, axis=1),
    )


def build_index(vectors: Float32[np.ndarray, "entry dim"], kind: Kind = "auto") -> VectorIndex:
    """An index of unit vectors.

    Raises:
        ConfigError: an approximate one is asked for and faiss-cpu is not installed.
    """
    wanted = kind
    if kind == "auto":
        wanted = "exact" if len(vectors) <= EXACT_UP_TO or not has_faiss() else "approximate"
    if wanted == "exact":
        return VectorIndex(vectors)
    return VectorIndex(vectors, train_cells(vectors))


def train_cells(vectors: Float32[np.ndarray, "entry dim"]) -> Any:
    """A FAISS inverted file of cosines; its cells are found by some of the vectors."""
    faiss = _import_faiss()
    count = max(1, min(len(vectors), int(np.sqrt(len(vectors)))))
    dim = vectors.shape[1]
    cells = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, count, faiss.METRIC_INNER_PRODUCT)
    cells.cp.niter = 10
    rows = np.random.default_rng(0).permutation(len(vectors))[:TRAIN_ROWS]
    cells.train(np.ascontiguousarray(vectors[np.sort(rows)]))
    cells.add(np.ascontiguousarray(vectors))
    return cells


def cells_to_bytes(cells: Any) -> bytes:
    """A FAISS index as bytes."""
    return bytes(_import_faiss().serialize_index(cells))


def cells_from_bytes(data: bytes) -> Any:
    """A FAISS index from bytes."""
    return _import_faiss().deserialize_index(np.frombuffer(data, np.uint8))


def has_faiss() -> bool:
    """Whether the optional package is there."""
    try:
        _import_faiss()
    except ConfigError:
        return False
    return True


def recall_of(approximate: Found, exact: Found) -> float:
    """Share of the exact answers that an approximate search has found."""
    pairs: Sequence[tuple[Any, Any]] = list(zip(approximate.places, exact.places, strict=True))
    return float(np.mean([len(np.intersect1d(a, e)) / len(e) for a, e in pairs]))


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            "an approximate index needs the package faiss-cpu: pip install 'mstar-platform[faiss]'."
            " Without it take --index-kind exact."
        ) from error
    return faiss
