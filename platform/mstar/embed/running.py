"""What the grid and the embedding job share around their rounds: records, progress, the end."""

import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mstar.config import to_json
from mstar.embed.config import EmbedConfig, GridJobConfig
from mstar.embed.live import Live
from mstar.embed.pending import SlideQueue, Standing
from mstar.embed.plan import estimated_patches
from mstar.embed.report import final_metrics, summary
from mstar.embed.results import Tally
from mstar.embed.rounds import Rounds, collect_stale_plans
from mstar.errors import InterruptedRunError
from mstar.features.store import FeatureStore, GridStore
from mstar.storage.ledger import FailureLedger
from mstar.storage.objects import collect_stale_temps, exists, join
from mstar.training.exit_codes import ExitCode, exit_code
from mstar.training.interrupts import stop_on_sigterm
from mstar.training.progress import ProgressReporter
from mstar.training.tracker import NullTracker, Tracker
from mstar.training.tracking import start_tracking

STALE_S = 24 * 3600.0  # a temporary file this old belongs to no one any more

Config = EmbedConfig | GridJobConfig


@dataclass(slots=True, kw_only=True)
class JobRun:
    """One run of a job."""

    name: str
    config: Config
    run_id: str
    tracker: Tracker
    ledger: FailureLedger
    tally: Tally = field(default_factory=Tally)
    interrupted: bool = False

    def go(
        self,
        *,
        target_patches: int,
        done_ids: Callable[[], Iterable[str]],
        run_plan: Callable[[str, Live], Iterator[Tally]],
    ) -> int:
        """Run rounds to the end, print the summary, and say how it ended."""
        queue = slide_queue_of(self.config, self.ledger, self.run_id)
        first = queue.standing(set(done_ids()))
        rounds = Rounds(
            out=self.config.out,
            run_id=self.run_id,
            queue=queue,
            target_patches=target_patches,
            done_ids=done_ids,
            run_plan=run_plan,
        )
        with ProgressReporter(self.name, num_slides=first.total, tracker=self.tracker) as progress:
            progress.update(slides_done=first.done, slides_failed=first.failed)
            try:
                standing = rounds.run(progress, self.tally)
            except (KeyboardInterrupt, InterruptedRunError):
                self.interrupted = True
                standing = queue.standing(set(done_ids()))
            self._end(standing, progress.elapsed_s)
        collect_leftovers(self.config.out)
        if self.interrupted:
            return ExitCode.INTERRUPTED
        return exit_code(standing.failed, standing.total, self.config.run.max_failures)

    def _end(self, standing: Standing, elapsed_s: float) -> None:
        metrics = final_metrics(standing, self.tally, elapsed_s=elapsed_s)
        self.tracker.log_metrics(metrics, step=max(1, int(elapsed_s)))
        log_failures(self.tracker, self.ledger)
        failures = join(self.config.out, "failures")
        text = summary(
            self.name,
            self.config.out,
            standing,
            self.tally,
            elapsed_s=elapsed_s,
            failures=failures,
            interrupted=self.interrupted,
        )
        self.tracker.log_text(text, "summary.txt")
        print(text, file=sys.stdout, flush=True)


@contextmanager
def job_run(name: str, config: Config, *, num_nodes: int = 1) -> Iterator[JobRun]:
    """A run with its tracker, ended as FINISHED, FAILED or KILLED."""
    stop_on_sigterm()  # after ray.init, which takes the handler
    tracker: Tracker = NullTracker()
    if config.run.tracking:
        tracker = start_tracking(name, config, out=config.out, num_nodes=num_nodes)
    job = JobRun(
        name=name,
        config=config,
        run_id=tracker.run_id or uuid.uuid4().hex,
        tracker=tracker,
        ledger=FailureLedger(join(config.out, "failures")),
    )
    status = "FAILED"
    try:
        yield job
        status = "KILLED" if job.interrupted else "FINISHED"
    except (KeyboardInterrupt, InterruptedRunError):
        status = "KILLED"
        raise
    finally:
        print(f"  tracking  {tracker.finish(status)}", flush=True)


def collect_leftovers(out: str) -> None:
    """Remove what killed writers left behind: of this host at once, of others after a day."""
    collect_stale_temps(out, older_than_s=STALE_S)
    collect_stale_plans(out, older_than_s=STALE_S)


def slide_queue_of(config: Config, ledger: FailureLedger, run_id: str) -> SlideQueue:
    """The slides of a config."""
    return SlideQueue(
        config.slides, ledger=ledger, run_id=run_id, retry_failed=config.run.retry_failed
    )


def log_failures(tracker: Tracker, ledger: FailureLedger) -> None:
    """The failure table as an artifact: slide, reason, whether a rerun tries again."""
    lines = ["slide_id\tstage\tkind\tpermanent\tmessage"]
    for failure in ledger.all():
        message = " ".join(failure.message.split())
        row = (failure.slide_id, failure.stage, failure.kind, str(failure.permanent), message)
        lines.append("\t".join(row))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "failures.tsv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        tracker.log_artifact(path)


def print_dry_run(config: Config, store: type[FeatureStore] | type[GridStore]) -> int:
    """The resolved config and what a run would do; nothing is written."""
    exists_already = exists(join(config.out, "store.json"))
    done = set(store.open(config.out).done_ids()) if exists_already else set()
    ledger = FailureLedger(join(config.out, "failures"))
    standing, patches = Standing(), 0
    for slide in slide_queue_of(config, ledger, "dry-run").pending(done, standing, dry=True):
        patches += estimated_patches(slide)
    print(to_json(config))
    print(
        f"would do {standing.pending:,} of {standing.total:,} slides (about {patches:,} patches by "
        f"file size); {standing.done:,} are done, {standing.failed:,} failed before or cannot be "
        f"used, {standing.skipped:,} were skipped. Nothing was written."
    )
    return ExitCode.COMPLETE
