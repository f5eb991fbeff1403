"""The driver's work at the paper's size and beyond, without the data: names, indexes, schedules.

Each function does what a job's driver does before and between its workers' work, on made-up inputs,
and returns what there was, with CPU seconds. A stand-in answers listings as S3 does.
"""

from __future__ import annotations

import bisect
import contextlib
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from support.s3 import s3_environment

PATCHES = 116_000_000
SLIDES = 11_727
ROW_BYTES = 25_000
PAGE = 1000  # the most keys of an answer


class ListingServer:
    """Answers ListObjectsV2 over made-up keys, and counts the requests."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Serve on a free port of 127.0.0.1; `keys` are sorted by the caller."""
        self.keys, self.requests = keys, 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _listing_handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.daemon = True

    @contextlib.contextmanager
    def running(self) -> Iterator[ListingServer]:
        """While it runs, the environment points to it."""
        self._thread.start()
        try:
            with s3_environment(f"http://127.0.0.1:{self._server.server_port}"):
                yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def page(self, query: dict[str, list[str]]) -> bytes:
        """One answer."""
        self.requests += 1
        prefix = query.get("prefix", [""])[0]
        start = int(query.get("continuation-token", ["0"])[0])
        size = min(PAGE, int(query.get("max-keys", ["1000"])[0]))
        first, stop = (bisect.bisect_left(self.keys, prefix + end) for end in ("", "\x7f"))
        page = self.keys[first + start : min(first + start + size, stop)]
        more = first + start + size < stop
        rows = "".join(
            f"<Contents><Key>{key}</Key><Size>20000000</Size><ETag>&quot;{at:032x}&quot;</ETag>"
            "<LastModified>2026-01-31T00:00:00.000Z</LastModified></Contents>"
            for at, key in enumerate(page)
        )
        token = f"<NextContinuationToken>{start + size}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0"?><ListBucketResult '
            'xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>"
        ).encode()


def _listing_handler(server: ListingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            server.requests += 1
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            body = server.page(query)
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def plan_embedding(folder: Path, num_slides: int, num_done: int) -> dict[str, float]:
    """A rerun of the embedding job: slides and finished ones listed on S3, the rest planned."""
    from mstar.embed.pending import SlideQueue, Standing
    from mstar.embed.plan import bundles, write_plan
    from mstar.features.store import FeatureStore
    from mstar.features.store_record import StoreRecord
    from mstar.storage.ledger import FailureLedger

    slides = [f"slides/TCGA-{n:06d}.svs" for n in range(num_slides)]
    done = [f"out/TCGA-{n:06d}.h5" for n in range(num_done)]
    with ListingServer(sorted([*slides, *done])).running() as server:
        began_s = time.process_time()
        record = StoreRecord(kind="features", suffix=".h5", fingerprint="f", config={})
        store = FeatureStore(root="s3://paper/out", record=record, writable=False)
        done_ids = set(store.done_ids())
        listed_done = server.requests
        queue = SlideQueue(
            "s3://paper/slides",
            ledger=FailureLedger("s3://paper/failures"),
            run_id="again",
            retry_failed=False,
        )
        standing = Standing()
        planned = bundles(queue.pending(done_ids, standing), target_patches=12_288)
        num_bundles = write_plan(folder / "plan.parquet", planned)
        return {
            "slides": standing.total,
            "done": standing.done,
            "pending": standing.pending,
            "bundles": num_bundles,
            "requests_for_done": listed_done,
            "requests": server.requests,
            "cpu_s": time.process_time() - began_s,
        }


def plan_manifest(folder: Path, num_slides: int, num_done: int) -> dict[str, float]:
    """The same from a manifest with a case a slide."""
    from mstar.embed.pending import SlideQueue, Standing
    from mstar.embed.plan import bundles, write_plan
    from mstar.storage.ledger import FailureLedger

    path = folder / "slides.parquet"
    numbers = range(num_slides)
    table = {
        "path": [f"s3://cohort/slides/{n:08d}.svs" for n in numbers],
        "slide_id": [f"s{n:08d}" for n in numbers],
        "case_id": [f"c{n // 3:08d}" for n in numbers],
        "mpp": [0.25] * num_slides,
    }
    pq.write_table(pa.table(table), path, row_group_size=50_000)
    began_s = time.process_time()
    queue = SlideQueue(
        str(path), ledger=FailureLedger(str(folder / "f")), run_id="x", retry_failed=False
    )
    standing = Standing()
    done = {f"s{n:08d}" for n in range(num_done)}
    count = write_plan(
        folder / "plan.parquet", bundles(queue.pending(done, standing), target_patches=480_000)
    )
    return {
        "slides": standing.total,
        "pending": standing.pending,
        "bundles": count,
        "cpu_s": time.process_time() - began_s,
    }


def write_index(folder: Path, num_rows: int) -> Path:
    """The index of shards of 512 MB at most with row groups of 256."""
    from mstar.data.shards.format import (
        ShardCounts,
        ShardEncoder,
        ShardIndex,
        ShardInfo,
        dump_index,
        shard_name,
    )

    num_shards = -(-num_rows * ROW_BYTES // 512_000_000)
    cuts = np.linspace(0, num_rows, num_shards + 1).astype(int)
    shards = []
    for number, rows in enumerate(np.diff(cuts).tolist()):
        groups = (*(256,) * (rows // 256), *((rows % 256,) if rows % 256 else ()))
        shards.append(
            ShardInfo(
                name=shard_name(number),
                num_rows=rows,
                num_bytes=rows * ROW_BYTES,
                sha256=f"{number:064x}",
                row_groups=groups,
            )
        )
    encoder = ShardEncoder(
        name="uni",
        weights_sha256="0" * 64,
        dim=1024,
        input_px=224,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        interpolation="bilinear",
        transform="resize",
    )
    counts = ShardCounts(
        passed_through=0,
        encoded=num_rows,
        left_out={},
        num_slides=SLIDES,
        num_cases=9_608,
        jpeg_bytes=num_rows * 23_900,
    )
    index = ShardIndex(
        fingerprint="f",
        config={},
        num_rows=num_rows,
        target_dim=512,
        patch_px=256,
        encoder=encoder,
        shards=tuple(shards),
        counts=counts,
        target_mean=(0.0,) * 512,
        target_std=(1.0,) * 512,
    )
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    path = folder / "shards" / "index.json"
    path.write_bytes(dump_index(index))
    return path


def resume_stage2(
    folder: Path, *, world_size: int = 32, done_share: float = 0.5
) -> dict[str, float]:
    """What a rank does before its first row: index, order of the epoch, its pieces of a step."""
    from mstar.data.shards.format import read_index
    from mstar.data.shards.order import EpochOrder, OrderConfig
    from mstar.data.shards.pieces import PieceTable, group_rows

    began_s = time.process_time()
    index = read_index(str(folder))
    order = EpochOrder(group_rows(index), OrderConfig(batch_size=1024, lanes=64), epoch=0)
    step = int(order.num_steps * done_share)
    every = PieceTable(index, order.pieces(0, 1))
    pieces = PieceTable(index, order.pieces(0, world_size, first_step=step))
    first, last = pieces[0], pieces[len(pieces) - 1]
    return {
        "rows": index.num_rows,
        "shards": len(index.shards),
        "row_groups": len(group_rows(index)),
        "steps": order.num_steps,
        "rows_before_step": order.rows_trained(step),
        "pieces_of_an_epoch": len(every),
        "pieces_of_a_rank": len(pieces),
        "ends_told": float(bool(first.name) and bool(last.name)),
        "cpu_s": time.process_time() - began_s,
    }


def cut_shards(num_slides: int, num_rows: int, *, memory_mb: int = 8_192) -> dict[str, float]:
    """What the shards job plans: units of pass 1 as rows for Ray Data, and their number."""
    from mstar.pretrain.shards_config import ShardSettings
    from mstar.pretrain.shards_plan import ShardSlide, cut_units, shape_of, unit_of, units_table

    began_s = time.process_time()
    sizes = np.random.default_rng(0).lognormal(0.0, 0.8, num_slides)
    rows = np.maximum(1, sizes * num_rows / sizes.sum()).astype(int)
    slides = [
        ShardSlide(slide_id=f"s{n:06d}", uri=f"s3://b/s{n:06d}.svs", target_bytes=1, about_rows=r)
        for n, r in enumerate(rows.tolist())
    ]
    shape = shape_of(ShardSettings(memory_mb=memory_mb), num_rows, 23_900.0, 512)
    units = list(cut_units(slides, shape.unit_rows))
    table = units_table(units)
    assert unit_of(table.slice(len(units) - 1, 1).to_pylist()[0]) == units[-1]
    return {
        "slides": num_slides,
        "rows": int(rows.sum()),
        "units": len(units),
        "buckets": shape.num_buckets,
        "cpu_s": time.process_time() - began_s,
    }


def make_schedule(folder: str, *, num_studies: int, trials: int):  # type: ignore[no-untyped-def]
    """A sweep of so many studies, a trial a piece; with its journal, to be closed."""
    from mstar.downstream.config import HONEST, Study
    from mstar.downstream.journal import Journal
    from mstar.downstream.schedule import Schedule
    from mstar.downstream.spaces import LogUniform, Space
    from mstar.downstream.study_run import StudyPlan

    space = Space(
        search={"lr": LogUniform(1e-5, 1e-2)},
        sampler="random",
        samples=trials,
        population=1,
        epochs=(1,),
    )
    plans = [
        StudyPlan(
            study=Study(task_id=f"t{at:05d}", encoder="e", head="abmil"),
            data_key="k",
            settings="s",
            folds=("a",),
            seeds=(1,),
            size=1e9,
            protocol=HONEST,
            space=space,
            budgets=space.epochs,
        )
        for at in range(num_studies)
    ]
    journal = Journal(folder)
    return Schedule(plans, journal, slots=2), journal


def trivial_answer(piece):  # type: ignore[no-untyped-def]
    """What a worker would say at once: a score for each fit."""
    from mstar.downstream.pieces import Answer, Concluded, FitRecord

    fits = []
    if piece.work == "fit":
        for trial, keys in zip(piece.trials, piece.keys, strict=True):
            for (fold, seed), key in zip(piece.runs, keys, strict=True):
                score = int(key[:8], 16) / 2**32
                fits.append(FitRecord(key=key, trial=trial, fold=fold, seed=seed, score=score))
    done = Concluded(folder="f", trial=0, config={}, mean_score=0.5, predictions={})
    concludes = piece.work != "fit" or piece.conclude
    return Answer(fits=tuple(fits), concluded=done if concludes else None)


def run_schedule(folder: Path, *, num_studies: int, trials: int) -> dict[str, float]:
    """The schedule alone: every piece taken and answered at once, timed by tenths."""
    schedule, journal = make_schedule(str(folder), num_studies=num_studies, trials=trials)
    marks = [time.process_time()]
    with closing(journal):
        running = []
        pieces = 0
        while not schedule.finished:
            while len(running) < 2 and (piece := schedule.next()) is not None:
                running.append(piece)
            piece = running.pop(0)
            schedule.take(piece, trivial_answer(piece))
            pieces += 1
            marks.append(time.process_time())
    return {"studies": num_studies, "trials": num_studies * trials, **tenths(marks)}


def tenths(marks: Sequence[float]) -> dict[str, float]:
    """Pieces, and milliseconds a piece in the second tenth and in the last."""
    count = len(marks) - 1
    tenth = max(1, count // 10)
    early, late = marks[2 * tenth] - marks[tenth], marks[-1] - marks[-1 - tenth]
    return {
        "pieces": count,
        "ms_a_piece_early": 1e3 * early / tenth,
        "ms_a_piece_late": 1e3 * late / tenth,
        "cpu_s": marks[-1] - marks[0],
    }
