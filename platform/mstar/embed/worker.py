"""One worker: takes a bundle of slides and leaves their feature files.

    slides ──open one ahead──▶ blocks of rows ──read in threads──▶ batches ──encode──▶ chunks ──▶
    files

Everything between two arrows is bounded, so that memory does not depend on the slides. It knows no
Ray: a loop over `run` is the job on one process.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from mstar.embed.gate import Gate
from mstar.embed.lookahead import ahead, mapped
from mstar.embed.packing import Batch, ChunkRows, PatchBlock, pack, scatter
from mstar.embed.plan import Bundle
from mstar.embed.results import Tally
from mstar.embed.slide_writer import SlideWriter
from mstar.embed.sources import PatchSource, PixelRows, ReaderDied
from mstar.errors import SkippedSlideError
from mstar.models.encoder_spec import PatchEncoder, PendingFeatures
from mstar.schema import Grid, SlideRef
from mstar.training.custody import Custody, Verdict

BLOCK_ROWS = 32  # patches a reader thread takes at once: a run along a row of tiles


@dataclass(slots=True, kw_only=True)
class _Work:
    """A slide in hand."""

    slide: SlideRef
    grid: Grid
    chunks: list[tuple[int, int]]
    left: int
    over: bool = False  # failed, or given up: drop what still comes in


@dataclass(slots=True, kw_only=True)
class _Call:
    """State of one bundle's call; several calls share a worker, several threads a call."""

    source: PatchSource
    so_far: Callable[[Tally], None]
    tally: Tally = field(default_factory=Tally)
    lock: Lock = field(default_factory=Lock)
    works: dict[str, _Work] = field(default_factory=dict)
    suspects: list[SlideRef] = field(default_factory=list)
    writes: list["Future[None]"] = field(default_factory=list)

    def count(self, **numbers: int | float) -> None:
        """Add to the tally."""
        with self.lock:
            self.tally.add(Tally(**numbers))  # type: ignore[arg-type]
            self.so_far(self.tally)


class EmbedWorker:
    """Owns reading, encoding and writing for the slides it is handed."""

    def __init__(
        self,
        *,
        encoder: PatchEncoder,
        source: PatchSource,
        alone_source: PatchSource | None = None,
        custody: Custody,
        writer: SlideWriter,
        batch_size: int,
        chunk_patches: int,
        read_ahead_rows: int,
    ) -> None:
        """Put the parts together; `mstar.embed.assembly` makes them from a config.

        A suspect slide is read through `alone_source`, in this process, so that it can take only
        this process down and is seen to have done it.
        """
        self._encoder, self._source, self._custody = encoder, source, custody
        self._alone_source = alone_source or source
        self._writer, self._batch_size, self._chunk = writer, batch_size, chunk_patches
        self._read_ahead = max(1, read_ahead_rows // BLOCK_ROWS)
        self._gate = Gate()
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._opening = ThreadPoolExecutor(2, thread_name_prefix="open")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._counting, self._fetched = Lock(), 0.0

    def run(self, bundle: Bundle, so_far: Callable[[Tally], None] = lambda tally: None) -> Tally:
        """Embed a bundle's slides. A slide's trouble is recorded and the others go on.

        so_far: called with the tally as it grows, from several threads, one at a time.
        """
        started, call = time.monotonic(), _Call(source=self._source, so_far=so_far)
        try:
            with self._gate.shared():
                self._embed(bundle.slides, call, alone=False)
            call.source = self._alone_source
            for slide in call.suspects:
                with self._gate.alone():
                    self._embed([slide], call, alone=True)
        except BaseException:  # the encoder's trouble, no slide's: hand back what is in hand
            self._hand_back(call)
            raise
        call.count(wall_s=time.monotonic() - started, bytes_fetched=self._newly_fetched())
        return call.tally

    def _newly_fetched(self) -> float:
        with self._counting:
            before, self._fetched = self._fetched, self._alone_source.counters()["bytes_fetched"]
            return self._fetched - before

    def _hand_back(self, call: _Call) -> None:
        for work in list(call.works.values()):
            work.over = True
            self._let_go(work, call)
            self._custody.give_back(work.slide)

    def close(self) -> None:
        """Stop renewing leases; threads end with the process."""
        self._custody.close()

    def _embed(self, slides: Sequence[SlideRef], call: _Call, *, alone: bool) -> None:
        blocks = self._blocks(self._opened(slides, call, alone=alone), call)
        batches = pack(blocks, batch_size=self._batch_size, input_px=self._encoder.spec.input_px)
        for batch, outputs in self._encoded(batches, call):
            for chunk in scatter(batch, outputs):
                self._chunk_done(chunk, call)
        for write in call.writes:
            write.result()
        call.writes.clear()
        assert not call.works, f"slides left in hand: {sorted(call.works)}"

    def _opened(self, slides: Iterable[SlideRef], call: _Call, *, alone: bool) -> Iterator[_Work]:
        """Take and open slides, one ahead of the one being read."""

        def take(slide: SlideRef) -> tuple[SlideRef, Verdict, _Work | None]:
            verdict = self._custody.take(slide, alone=alone)
            return slide, verdict, self._open(slide, call) if verdict is Verdict.TAKEN else None

        for slide, verdict, work in mapped(self._opening, take, slides, 0 if alone else 1):
            call.count(
                present=verdict is Verdict.DONE,
                elsewhere=verdict is Verdict.ELSEWHERE,
                failed=verdict is Verdict.QUARANTINED,
            )
            if verdict is Verdict.SUSPECT:
                call.suspects.append(slide)
            if work is not None:
                yield work

    def _open(self, slide: SlideRef, call: _Call) -> _Work | None:
        try:
            grid = call.source.open(slide)
            chunks = self._writer.missing_chunks(grid, self._chunk)
        except Exception as error:  # one slide's trouble stays that slide's
            self._drop(slide, call, stage="open", error=error)
            return None
        warned = "mpp_warning" in grid.provenance
        call.count(slide_bytes=slide.size_bytes or 0, warned=warned)
        work = _Work(slide=slide, grid=grid, chunks=chunks, left=len(chunks))
        call.works[slide.slide_id] = work
        if not chunks:  # no tissue, or every part was there
            self._finish(work, None, call)
        return work

    def _blocks(self, works: Iterable[_Work], call: _Call) -> Iterator[PatchBlock]:
        """Pixels of every chunk of every slide, in order, read ahead of the encoder."""
        asked = ahead(self._requests(works, call), self._read_ahead)
        for future in asked:
            started = time.monotonic()
            try:
                work, chunk, pixels = future.result()
            finally:
                call.count(input_wait_s=time.monotonic() - started)
            if isinstance(pixels, BaseException):
                self._give_up(work, pixels, call)
            elif not work.over:
                yield from self._taken_in(chunk, pixels, call)

    def _requests(
        self, works: Iterable[_Work], call: _Call
    ) -> Iterator["Future[tuple[_Work, ChunkRows, PixelRows | BaseException]]"]:
        for work in works:
            for start, stop in work.chunks:
                chunk = self._new_chunk(work, start, stop)
                for first in range(start, stop, BLOCK_ROWS):
                    if work.over:
                        break
                    rows = range(first, min(first + BLOCK_ROWS, stop))
                    yield self._request(work, chunk, rows, call.source)

    def _request(
        self, work: _Work, chunk: ChunkRows, rows: Sequence[int], source: PatchSource
    ) -> "Future[tuple[_Work, ChunkRows, PixelRows | BaseException]]":
        """A read whose failure is a value, so that it concerns its own slide only."""
        answer: Future[tuple[_Work, ChunkRows, PixelRows | BaseException]] = Future()

        def settle(read: "Future[PixelRows]") -> None:
            answer.set_result((work, chunk, read.exception() or read.result()))

        try:
            source.read(work.slide, rows).add_done_callback(settle)
        except Exception as error:
            answer.set_result((work, chunk, error))
        return answer

    def _taken_in(self, chunk: ChunkRows, read: PixelRows, call: _Call) -> Iterator[PatchBlock]:
        chunk.unreadable |= read.unreadable
        chunk.waiting -= len(read.unreadable)
        if read.rows:
            yield PatchBlock(chunk=chunk, rows=read.rows, pixels=read.pixels)
        elif chunk.complete:  # nothing of it could be read, so no output will complete it
            self._chunk_done(chunk, call)

    def _encoded(self, batches: Iterable[Batch], call: _Call) -> Iterator[tuple[Batch, np.ndarray]]:
        """Encode batches, the next one in flight while one computes."""

        def launched() -> Iterator["Future[tuple[Batch, PendingFeatures]]"]:
            for batch in batches:
                yield self._encoding.submit(self._launch, batch, call)

        for future in ahead(launched(), 1):
            started = time.monotonic()
            batch, pending = future.result()
            outputs = pending.result()
            call.count(encode_wait_s=time.monotonic() - started)
            yield batch, outputs

    def _launch(self, batch: Batch, call: _Call) -> tuple[Batch, PendingFeatures]:
        """One thread launches all batches of the worker; a GPU then computes on its own."""
        pending = self._encoder.encode_async(batch.pixels)
        call.count(batches=1, patches=len(batch.owners))
        return batch, pending

    def _new_chunk(self, work: _Work, start: int, stop: int) -> ChunkRows:
        features = np.empty((stop - start, self._encoder.dim), np.float32)
        return ChunkRows(
            slide_id=work.slide.slide_id,
            start=start,
            stop=stop,
            features=features,
            waiting=stop - start,
        )

    def _chunk_done(self, chunk: ChunkRows, call: _Call) -> None:
        work = call.works.get(chunk.slide_id)
        if work is None or work.over:
            return
        work.left -= 1
        call.count(unreadable=len(chunk.unreadable))
        self._finish(work, chunk, call)

    def _finish(self, work: _Work, chunk: ChunkRows | None, call: _Call) -> None:
        """Write a chunk; after the last one of a slide, its file."""
        last = work.left == 0

        def write() -> None:
            try:
                self._writer.write(work.grid, chunk, last=last)
            except Exception as error:
                self._give_up(work, error, call, stage="write")
                return
            if last:
                self._let_go(work, call)
                self._custody.finish(work.slide)
                call.count(done=1)

        call.writes.append(self._writing.submit(write))

    def _give_up(
        self, work: _Work, error: BaseException, call: _Call, *, stage: str = "read"
    ) -> None:
        if work.over:
            return
        work.over = True
        self._let_go(work, call)
        self._drop(work.slide, call, stage=stage, error=error)

    def _drop(self, slide: SlideRef, call: _Call, *, stage: str, error: BaseException) -> None:
        if isinstance(error, ReaderDied):  # the attempt stays on record; a later round decides
            self._custody.abandon(slide)
            call.count(elsewhere=1)
        else:
            self._custody.fail(slide, stage=stage, error=error)
            skipped = isinstance(error, SkippedSlideError)
            call.count(skipped=skipped, failed=not skipped)

    def _let_go(self, work: _Work, call: _Call) -> None:
        call.works.pop(work.slide.slide_id, None)
        call.source.close(work.slide.slide_id)
