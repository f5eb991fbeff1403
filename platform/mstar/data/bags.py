"""Bags: the features of a case's slides, or of one slide, as arrays of a fixed number of rows.

    reader = BagReader("F", BagConfig(size=4096, seed=0))
    bag = reader.read("TCGA-A2-A0T2", ("slide-1", "slide-2"), epoch=3)
    bag.features                        # [4096, D] as stored, bag.mask says which rows are real

The slides are concatenated in the order given; of more than `size` rows that many are drawn for
the case and epoch (see `bag_rows`), fewer are filled up. Files are mapped and the rows gathered
from their pages: nothing else is copied, and at most `max_open` files are held. That is 2 to 4
times faster than reading a file whole that is in the page cache, and as fast from a cold disk up to
some 20,000 patches (tests/benchmarks/bench_case_bags.py). Features in an object store come through
the node's cache.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64

from mstar.data.bag_rows import partition_rows, sample_rows
from mstar.data.bag_values import NO_ROW, Fill, check_finite, fill_up, make_buffer
from mstar.data.mapped_slides import MappedSlides
from mstar.errors import ConfigError, FeatureError
from mstar.features.store import FeatureStore

__all__ = ["NO_ROW", "BagConfig", "BagReader", "CaseBag", "make_buffer"]

MAX_OPEN = 64
CACHE_BYTES = 100_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BagConfig:
    """How the rows of a bag are chosen and filled up."""

    size: int | None = 4096
    """Rows of every bag, drawn without replacement where a case has more; None takes all rows."""

    fill: Fill = "mean"
    """What fills up a smaller case. mean: the mean of its features (as the paper is read). masked:
    zeros. Both are invalid in the mask. repeat: its rows again in order, valid in the mask."""

    seed: int = 0
    """Seed of the draws; the case and the epoch are mixed in."""

    missing: Literal["error", "skip"] = "error"
    """A slide without features: an error, or left out and counted."""

    check_finite: bool = True
    """Whether NaN and infinity are an error that names case, slide and row (0.3 ms a bag)."""

    def __post_init__(self) -> None:
        """Refuses a size that holds nothing."""
        if self.size is not None and self.size < 1:
            raise ConfigError(f"bag size: expected at least 1 row, got {self.size}. Use 4096.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CaseBag:
    """The bag of one case: rows of its slides, and where each is from.

    slides: as asked for; `slide_index` counts in it.
    missing: those of them without features, left out.
    num_rows: of all the case's slides together, before the draw.
    mask: True where the row is valid.
    row_index: the row in the slide's file, hence of its `coords`.
    """

    case_id: str
    slides: tuple[str, ...]
    missing: tuple[str, ...]
    num_rows: int
    features: Float[np.ndarray, "row dim"]
    mask: Bool[np.ndarray, " row"]
    slide_index: Int32[np.ndarray, " row"]
    row_index: Int64[np.ndarray, " row"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where the rows of each slide begin in the concatenation; the last entry is the total."""

    starts: tuple[int, ...]
    missing: tuple[str, ...]

    @property
    def num_rows(self) -> int:
        return self.starts[-1]


class BagReader:
    """Reads bags from one feature store; of one process, its threads may share it."""

    def __init__(
        self,
        store: str,
        config: BagConfig | None = None,
        *,
        max_open: int = MAX_OPEN,
        cache_dir: str | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Open the store at an address.

        Args:
            store: a folder or `s3://…` that `mstar embed` or `mstar import` wrote.
            config: how bags are drawn.
            max_open: files kept mapped, each of which holds a file handle.
            cache_dir: where remote features are staged; this node's default when not given.
            cache_bytes: how much may lie there.
        """
        self.config = config or BagConfig()
        self._arguments = (store, self.config, max_open, cache_dir, cache_bytes)
        self._slides = MappedSlides(
            store, max_open=max_open, cache_dir=cache_dir, cache_bytes=cache_bytes
        )

    @property
    def store(self) -> FeatureStore:
        """The store that is read."""
        return self._slides.store

    @property
    def missing_slides(self) -> tuple[str, ...]:
        """Slides without features that were left out so far, sorted."""
        return tuple(sorted(self._slides.missing))

    @property
    def num_open(self) -> int:
        """Files mapped at this moment."""
        return self._slides.num_open

    def num_rows(self, case_id: str, slides: Sequence[str]) -> int:
        """How many rows the case's slides have together."""
        return self._layout(case_id, slides).num_rows

    def read(
        self,
        case_id: str,
        slides: Sequence[str],
        *,
        epoch: int = 0,
        out: Float[np.ndarray, "size dim"] | None = None,
    ) -> CaseBag:
        """The case's bag in an epoch: the same rows whoever reads it, and whenever.

        Args:
            case_id: names the case in errors and is part of the seed.
            slides: concatenated in this order.
            epoch: another epoch, another draw.
            out: filled and returned as the bag's features (see `make_buffer`); new when not given.

        Raises:
            FeatureError: a slide has no features, or others than the rest; a value is not finite;
                the case has no row at all.
        """
        layout = self._layout(case_id, slides)
        total, seed = layout.num_rows, self.config.seed
        size = total if self.config.size is None else self.config.size
        rows = sample_rows(total, size, seed=seed, case_id=case_id, epoch=epoch)
        return self._gather(case_id, slides, layout, rows, size, out)

    def windows(self, case_id: str, slides: Sequence[str], *, epoch: int = 0) -> Iterator[CaseBag]:
        """The whole case in random windows of at most `size` rows, every row once, none filled."""
        layout = self._layout(case_id, slides)
        window = self.config.size or layout.num_rows
        seed = self.config.seed
        parts = partition_rows(layout.num_rows, window, seed=seed, case_id=case_id, epoch=epoch)
        for rows in parts:
            yield self._gather(case_id, slides, layout, rows, len(rows), None)

    def views(
        self, case_id: str, slides: Sequence[str]
    ) -> tuple[Float[np.ndarray, "patch dim"], ...]:
        """Each slide's features as a read-only view of its file: nothing is copied or checked.

        A view keeps its file mapped as long as it lives, beyond what the reader holds.
        """
        layout = self._layout(case_id, slides)
        return tuple(
            self._slides.map(case_id, slide) for slide in slides if slide not in layout.missing
        )

    def close(self) -> None:
        """Let go of all files; the next read opens them again."""
        self._slides.close()

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: how to open the store, and none of what is open here."""
        return {"arguments": self._arguments}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the store anew."""
        store, config, max_open, cache_dir, cache_bytes = state["arguments"]
        self.__init__(  # type: ignore[misc]
            store, config, max_open=max_open, cache_dir=cache_dir, cache_bytes=cache_bytes
        )

    def _layout(self, case_id: str, slides: Sequence[str]) -> _Layout:
        """Where each slide's rows are, missing slides treated as the config says."""
        if len(set(slides)) < len(slides):
            raise FeatureError(
                f"case {case_id}: a slide comes twice in {list(slides)}. Name it once."
            )
        counts = [self._slides.count(case_id, slide) for slide in slides]
        missing = tuple(slide for slide, count in zip(slides, counts, strict=True) if count is None)
        if missing and self.config.missing == "error":
            raise FeatureError(
                f"case {case_id}, slide {missing[0]}: expected features in {self.store.root}, "
                f"got none ({len(missing)} of its {len(slides)} slides). Run `mstar embed` again, "
                "or leave such slides out (missing=skip)."
            )
        self._slides.missing.update(missing)
        starts = tuple(accumulate((count or 0 for count in counts), initial=0))
        if not starts[-1]:
            raise FeatureError(
                f"case {case_id}: expected patches, got none in its {len(slides)} slides "
                f"({len(missing)} without features). Leave the case out."
            )
        return _Layout(starts=starts, missing=missing)

    def _gather(
        self,
        case_id: str,
        slides: Sequence[str],
        layout: _Layout,
        rows: Int64[np.ndarray, " row"],
        size: int,
        out: Float[np.ndarray, "size dim"] | None,
    ) -> CaseBag:
        """The bag of the rows chosen (ascending), filled up to `size`."""
        out = self._output(size, out)
        slide_index = np.full(size, NO_ROW, np.int32)
        row_index = np.full(size, NO_ROW, np.int64)
        cuts = np.searchsorted(rows, layout.starts)
        for index, (start, stop) in enumerate(pairwise(cuts.tolist())):
            if start == stop:
                continue
            local = rows[start:stop] - layout.starts[index]
            mapped = self._slides.map(case_id, slides[index])
            # `clip` skips a copy of the result; the rows are within by construction
            np.take(np.asarray(mapped), local, axis=0, out=out[start:stop], mode="clip")
            slide_index[start:stop], row_index[start:stop] = index, local
        taken = len(rows)
        if self.config.check_finite:
            check_finite(case_id, slides, out[:taken], slide_index, row_index)
        valid = fill_up(self.config.fill, taken, out, slide_index, row_index)
        return CaseBag(
            case_id=case_id,
            slides=tuple(slides),
            missing=layout.missing,
            num_rows=layout.num_rows,
            features=out,
            mask=np.arange(size) < valid,
            slide_index=slide_index,
            row_index=row_index,
        )

    def _output(
        self, size: int, out: Float[np.ndarray, "size dim"] | None
    ) -> Float[np.ndarray, "size dim"]:
        dim, dtype = self._slides.kind
        if out is None:
            return np.empty((size, dim), dtype)
        if out.shape != (size, dim) or out.dtype != dtype or not out.flags.c_contiguous:
            raise FeatureError(
                f"bag buffer: expected contiguous {dtype} of {(size, dim)}, got {out.dtype} of "
                f"{out.shape}. Make it with make_buffer for this store."
            )
        return out
