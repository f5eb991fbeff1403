"""One worker: takes cases and leaves a target file per slide.

    case ──read the next window ahead──▶ teacher ──▶ tokens by slide ──all windows──▶ files

A case is done by one worker from its first window to its last file, so that a window's context is
whole. It knows no Ray: a loop over `run` is the job on one process.
"""

import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Float16, Int64

from mstar.data.bags import BagReader, CaseBag
from mstar.data.target_files import SlideTargets, TargetProvenance
from mstar.data.targets import TargetStore
from mstar.errors import FeatureError, MstarError, WorkerError
from mstar.features.coordless import require_coords
from mstar.features.files import coords_digest, read_grid, read_provenance
from mstar.pretrain.targets_cases import TargetCase
from mstar.pretrain.targets_tally import TargetsTally
from mstar.schema import Grid, SlideRef
from mstar.storage.cache import SlideCache
from mstar.training.custody import Custody, Verdict

Item = TypeVar("Item")
_END = object()


@runtime_checkable
class Tokens(Protocol):
    """What makes tokens of a window's patches: `targets_teacher.Teacher`."""

    def __call__(
        self, features: Float[np.ndarray, "patch feature"]
    ) -> Float16[np.ndarray, "patch dim"]:
        """One token a patch."""


@dataclass(slots=True, kw_only=True)
class _Work:
    """A case in hand: its grids, and the tokens so far by slide index, with their rows."""

    case: TargetCase
    grids: list[Grid]
    made: dict[int, list[tuple[Int64[np.ndarray, " row"], Float16[np.ndarray, "row dim"]]]] = field(
        default_factory=lambda: defaultdict(list)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What the reading thread hands over: a window, or with neither the end of a case."""

    case: TargetCase
    work: _Work | None = None
    bag: CaseBag | None = None
    error: Exception | None = None


class TargetsWorker:
    """Owns reading, computing and writing for the cases it is handed."""

    def __init__(
        self,
        *,
        teacher: Tokens,
        reader: BagReader,
        cache: SlideCache,
        store: TargetStore,
        provenance: TargetProvenance,
        run_id: str,
        lease_s: float,
    ) -> None:
        """Put the parts together; `mstar.pretrain.targets_plan` makes them from a plan.

        reader: draws windows of the size that `provenance` states.
        provenance: what every file says of itself.
        """
        self._teacher, self._reader, self._cache = teacher, reader, cache
        self._store, self._provenance = store, provenance
        self._slides: dict[str, tuple[str, ...]] = {}
        self._custody = Custody(
            store.root, run_id=run_id, lease_s=lease_s, is_done=self._is_done, unit="case"
        )
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="targets-read")

    def run(self, cases: Sequence[TargetCase]) -> TargetsTally:
        """Make the targets of some cases. A case's trouble is recorded and the others go on."""
        began_s, tally = time.monotonic(), TargetsTally()
        self._slides = {case.case_id: case.slides for case in cases}
        suspects: list[TargetCase] = []
        in_hand: set[TargetCase] = set()
        try:
            self._do(cases, tally, suspects, in_hand)
            for case in suspects:
                self._do([case], tally, [], in_hand, alone=True)
        except BaseException:  # no case's trouble: hand back what is in hand
            for case in in_hand:
                self._custody.give_back(_unit(case))
            raise
        tally.wall_s += time.monotonic() - began_s
        return tally

    def close(self) -> None:
        """Stop renewing leases and reading."""
        self._custody.close()
        self._reading.shutdown(wait=True, cancel_futures=True)
        self._reader.close()

    def _do(
        self,
        cases: Sequence[TargetCase],
        tally: TargetsTally,
        suspects: list[TargetCase],
        in_hand: set[TargetCase],
        *,
        alone: bool = False,
    ) -> None:
        taken = (case for case in cases if self._take(case, tally, suspects, in_hand, alone=alone))
        over: TargetCase | None = None  # the case that failed: drop what still comes of it
        with closing(one_ahead(self._reading, self._windows(taken), tally)) as reads:
            for read in reads:
                if read.case is over:
                    continue
                try:
                    self._settle(read, tally, in_hand)
                except WorkerError:
                    raise
                except Exception as error:  # one case's trouble stays that case's
                    over = read.case
                    in_hand.discard(read.case)
                    stage = "read" if read.error is not None else "targets"
                    self._custody.fail(_unit(read.case), stage=stage, error=error)
                    tally.failed += 1

    def _take(
        self,
        case: TargetCase,
        tally: TargetsTally,
        suspects: list[TargetCase],
        in_hand: set[TargetCase],
        *,
        alone: bool,
    ) -> bool:
        verdict = self._custody.take(_unit(case), alone=alone)
        tally.present += verdict is Verdict.DONE
        tally.elsewhere += verdict is Verdict.ELSEWHERE
        tally.failed += verdict is Verdict.QUARANTINED
        if verdict is Verdict.SUSPECT:
            suspects.append(case)
        if verdict is Verdict.TAKEN:
            in_hand.add(case)
        return verdict is Verdict.TAKEN

    def _windows(self, cases: Iterator[TargetCase]) -> Iterator[_Read]:
        """Every window of every case, then each case's end; trouble is a value."""
        for case in cases:
            try:
                work = _Work(case=case, grids=[self._grid(case, slide) for slide in case.slides])
                for bag in self._bags(case):
                    yield _Read(case=case, work=work, bag=bag)
                yield _Read(case=case, work=work)
            except Exception as error:
                yield _Read(case=case, error=error)

    def _bags(self, case: TargetCase) -> Iterator[CaseBag]:
        if self._provenance.coverage == "paper":
            yield self._reader.read(case.case_id, case.slides)
        else:
            yield from self._reader.windows(case.case_id, case.slides)

    def _grid(self, case: TargetCase, slide: str) -> Grid:
        """Where the slide's patches are; its features have to be of the configuration expected."""
        uri, expected = self._reader.store.slide_uri(slide), self._provenance.features_fingerprint
        if not self._reader.store.has(slide):
            raise FeatureError(
                f"case {case.case_id}, slide {slide}: expected features in "
                f"{self._reader.store.root}, got none. Run `mstar embed` again."
            )
        with self._cache.stage(uri) as path:
            found = read_provenance(path, name=uri).fingerprint
            if found != expected:
                raise FeatureError(
                    f"{uri}: fingerprint: expected {expected}, as the store has, got {found}. "
                    "Delete the file and run `mstar embed` again."
                )
            grid = read_grid(path, name=uri)
        require_coords(grid, uri, "patch targets")
        return grid

    def _settle(self, read: _Read, tally: TargetsTally, in_hand: set[TargetCase]) -> None:
        """Compute a window, or write a case whose windows are all computed."""
        if read.error is not None:
            raise read.error
        assert read.work is not None
        if read.bag is None:
            self._write(read.work)
            in_hand.discard(read.case)
            self._custody.finish(_unit(read.case))
            tally.done += 1
            tally.slides += len(read.case.slides)
            return
        began_s = time.monotonic()
        num = self._compute(read.work, read.bag)
        tally.teacher_s += time.monotonic() - began_s
        tally.windows += 1
        tally.patches += num

    def _compute(self, work: _Work, bag: CaseBag) -> int:
        """The tokens of a window, put to the slides they are of; returns their number."""
        num = int(bag.mask.sum())
        try:
            tokens = self._teacher(bag.features[:num])
        except MstarError:
            raise
        except Exception as error:  # memory, GPU: no case's fault, and no case would fare better
            raise WorkerError(f"the aggregator failed on a window of {num} patches: {error}") from (
                error
            )
        slides, rows = bag.slide_index[:num], bag.row_index[:num]
        for index in np.unique(slides).tolist():
            of_slide = slides == index
            work.made[index].append((rows[of_slide], tokens[of_slide]))
        return num

    def _write(self, work: _Work) -> None:
        for index, (slide, grid) in enumerate(zip(work.case.slides, work.grids, strict=True)):
            made = work.made.pop(index, [])
            self._store.write(self._assembled(work.case, slide, grid, made))

    def _assembled(
        self,
        case: TargetCase,
        slide: str,
        grid: Grid,
        made: list[tuple[Int64[np.ndarray, " row"], Float16[np.ndarray, "row dim"]]],
    ) -> SlideTargets:
        """A slide's targets in the order of its rows."""
        rows = np.concatenate([part for part, _ in made] or [np.empty(0, np.int64)])
        order = np.argsort(rows, kind="stable")
        targets = np.concatenate(
            [part for _, part in made] or [np.empty((0, self._store.dim), np.float16)]
        )[order]
        rows = rows[order]
        whole = np.array_equal(rows, np.arange(len(grid)))
        assert whole or self._provenance.coverage == "paper", f"{slide}: rows are not all there"
        return SlideTargets(
            slide_id=slide,
            case_id=case.case_id,
            targets=targets,
            rows=rows,
            coords=np.ascontiguousarray(grid.coords[rows]),
            num_patches=len(grid),
            grid_sha256=coords_digest(grid.coords),
            provenance=self._provenance,
        )

    def _is_done(self, case_id: str) -> bool:
        return all(self._store.has(slide) for slide in self._slides[case_id])


def one_ahead(
    pool: ThreadPoolExecutor, items: Iterator[Item], tally: TargetsTally
) -> Generator[Item, None, None]:
    """Items in order, the next one being made in the pool's one thread meanwhile."""
    future = pool.submit(next, items, _END)
    try:
        while True:
            began_s = time.monotonic()
            item = future.result()
            tally.read_wait_s += time.monotonic() - began_s
            if item is _END:
                return
            future = pool.submit(next, items, _END)
            yield item  # type: ignore[misc]
    finally:
        future.cancel() or future.exception()  # whoever goes on finds the thread idle


def _unit(case: TargetCase) -> SlideRef:
    """The case as custody and ledger know it."""
    return SlideRef(slide_id=case.case_id, uri=case.inputs, case_id=case.case_id)
