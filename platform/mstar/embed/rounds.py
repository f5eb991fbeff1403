"""Rounds of a job: plan what is pending, run it, look again, until nothing is left.

A round ends with slides left over only when another run holds them or their reader died. Between
rounds the cohort is looked at afresh, so that a slide is never done twice nor forgotten.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Lock

from mstar.embed.live import Live
from mstar.embed.pending import SlideQueue, Standing
from mstar.embed.plan import bundles, write_plan
from mstar.embed.results import Tally
from mstar.errors import MstarError
from mstar.storage.objects import delete, join, list_files, put_file
from mstar.training.progress import ProgressReporter

WAIT_FOR_OTHERS_S, LONGEST_WAIT_S = 2.0, 60.0
PLANS = "_state/plans"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """What a round needs.

    done_ids: lists the finished slides. run_plan: runs the bundles of a plan, and says between
    their ends how far it is.
    """

    out: str
    run_id: str
    queue: SlideQueue
    target_patches: int
    done_ids: Callable[[], Iterable[str]]
    run_plan: Callable[[str, Live], Iterator[Tally]]

    def run(self, progress: ProgressReporter, total: Tally) -> Standing:
        """Run rounds until nothing is pending; adds to `total` as bundles finish."""
        idle = 0
        for number in count():
            before = Standing()
            plan_uri, num_bundles = self._plan(number, before)
            if not num_bundles:
                return before
            settled = self._round(plan_uri, before, progress, total)
            idle = 0 if settled else idle + 1
            if idle:  # others have all that is left: look again, ever less often
                time.sleep(min(WAIT_FOR_OTHERS_S * 2 ** (idle - 1), LONGEST_WAIT_S))
        raise AssertionError  # count() never ends

    def _plan(self, number: int, standing: Standing) -> tuple[str, int]:
        """Write the plan of a round where every node can read it."""
        uri = join(self.out, PLANS, f"{int(time.time())}-{self.run_id}-{number}.parquet")
        pending = self.queue.pending(set(self.done_ids()), standing)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "plan.parquet"
            planned = bundles(pending, target_patches=self.target_patches)
            num_bundles = write_plan(path, planned)
            if num_bundles:
                put_file(path, uri)
        return uri, num_bundles

    def _round(
        self, plan_uri: str, before: Standing, progress: ProgressReporter, total: Tally
    ) -> int:
        """Run one plan; returns how many slides it settled."""
        this, shown = Tally(), _Shown(progress, before, total.patches)
        try:
            for tally in self.run_plan(plan_uri, shown.take):
                this.add(tally)
                total.add(tally)
                shown.take(this)
        finally:
            delete(plan_uri)
        settled = this.done + this.present + this.failed + this.skipped
        if not settled and not this.elsewhere:
            raise MstarError(
                f"{before.pending} slides are pending in {self.out}, but a whole round settled "
                f"none of them; this is a bug: please report it with the run's log"
            )
        return settled


class _Shown:
    """The furthest that a round was seen to be, whoever says it; from any thread."""

    def __init__(self, progress: ProgressReporter, before: Standing, patches: int) -> None:
        """Before the round: what stood, and the patches of earlier rounds."""
        self._progress, self._lock = progress, Lock()
        self._done, self._failed, self._patches = before.done, before.failed, patches
        self._before, self._patches_before = before, patches

    def take(self, round_so_far: Tally) -> None:
        """Show it, unless more was seen already."""
        with self._lock:
            done = self._before.done + round_so_far.done + round_so_far.present
            self._done = max(self._done, done)
            self._failed = max(self._failed, self._before.failed + round_so_far.failed)
            self._patches = max(self._patches, self._patches_before + round_so_far.patches)
            self._progress.update(
                slides_done=self._done, slides_failed=self._failed, patches_done=self._patches
            )


def collect_stale_plans(out: str, *, older_than_s: float) -> None:
    """Remove the plans that killed drivers left; they carry the second they were written in."""
    for file in list(list_files(join(out, PLANS), suffix=".parquet")):
        written_s = file.rel.partition("-")[0]
        if written_s.isdigit() and time.time() - int(written_s) > older_than_s:
            delete(file.uri)
