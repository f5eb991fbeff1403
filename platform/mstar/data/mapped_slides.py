"""The features of a store's slides, mapped: as many at once as is allowed, all of one kind."""

import threading
from collections import OrderedDict

import numpy as np
from jaxtyping import Float

from mstar.errors import FeatureError
from mstar.features.files import map_features
from mstar.features.store import FeatureStore
from mstar.storage.cache import SlideCache, default_cache_dir


class MappedSlides:
    """Maps slides on demand; of one process, its threads may share it."""

    def __init__(
        self, store: str, *, max_open: int, cache_dir: str | None, cache_bytes: int
    ) -> None:
        """Open the store at an address; see `BagReader` for the arguments."""
        assert max_open > 0
        self.store = FeatureStore.open(store)
        self.missing: set[str] = set()
        self._cache = SlideCache(cache_dir or default_cache_dir(), max_bytes=cache_bytes)
        self._max_open = max_open
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Float[np.ndarray, "patch dim"]] = OrderedDict()
        self._num_rows: dict[str, int] = {}
        self._first: tuple[str, tuple[int, str]] | None = None  # the slide that set dim and dtype

    @property
    def kind(self) -> tuple[int, str]:
        """Dim and dtype of the slides; one was mapped before."""
        assert self._first is not None
        return self._first[1]

    @property
    def num_open(self) -> int:
        """Files mapped at this moment."""
        return len(self._open)

    def count(self, case_id: str, slide: str) -> int | None:
        """Rows of a slide; None where the store has no such slide.

        Raises:
            FeatureError: as for `map`.
        """
        if slide not in self._num_rows:
            if slide in self.missing or not self.store.has(slide):
                return None
            self._num_rows[slide] = len(self.map(case_id, slide))
        return self._num_rows[slide]

    def map(self, case_id: str, slide: str) -> Float[np.ndarray, "patch dim"]:
        """The slide's file, mapped; the longest unused one makes room.

        Raises:
            FeatureError: its dim or dtype is not that of the slides before; the case is named.
        """
        with self._lock:
            if slide in self._open:
                self._open.move_to_end(slide)
                return self._open[slide]
        # Staged files may be evicted while they are mapped: the pages stay until the map goes.
        with self._cache.stage(self.store.slide_uri(slide)) as path:
            mapped = map_features(path)
        self._check_kind(case_id, slide, (mapped.shape[1], mapped.dtype.name))
        with self._lock:
            self._open[slide] = mapped
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)
        return mapped

    def close(self) -> None:
        """Let go of all files; the next use maps them again."""
        with self._lock:
            self._open.clear()

    def _check_kind(self, case_id: str, slide: str, kind: tuple[int, str]) -> None:
        """All slides of a store agree in dim and dtype: their bags lie in one batch."""
        with self._lock:
            first, expected = self._first = self._first or (slide, kind)
        if kind != expected:
            raise FeatureError(
                f"case {case_id}, slide {slide}: features: expected {expected[0]} dims of "
                f"{expected[1]} as slide {first} has, got {kind[0]} of {kind[1]}. Delete the file "
                "made otherwise and run `mstar embed` again."
            )
