"""Who works on a slide (or a case), how often that ended badly, and what became of it.

Three records beside the outputs, each written whole: a lease (so that two runs share the work), the
attempts (written before a slide is read, so that a slide which kills its process is remembered) and
the failure ledger. Correctness never rests on a lease: the final write is conditional, and equal
work gives equal bytes.
"""

import traceback
from collections.abc import Callable
from enum import Enum

from mstar.errors import MstarError
from mstar.schema import SlideRef
from mstar.storage.leases import LeaseBoard
from mstar.storage.ledger import Attempts, Failure, FailureLedger
from mstar.storage.objects import join

DEATHS_BEFORE_ALONE = 2


class Verdict(Enum):
    """What a worker may do with a slide."""

    TAKEN = "taken"  # it is this worker's now
    DONE = "done"  # the output is there
    ELSEWHERE = "elsewhere"  # another live run has it
    SUSPECT = "suspect"  # its readers died twice: take it again, alone
    QUARANTINED = "quarantined"  # it died alone too: recorded as failed


class Custody:
    """Takes slides into a worker's hands and records how they leave them."""

    def __init__(
        self,
        root: str,
        *,
        run_id: str,
        lease_s: float,
        is_done: Callable[[str], bool],
        unit: str = "slide",
    ) -> None:
        """Keep the records of `root`; `is_done(slide_id)` asks for the final output.

        unit: what is worked on, in messages; a case goes by its id in place of a slide's.
        """
        self._leases = LeaseBoard(join(root, "_state/claims"), run_id=run_id, ttl_s=lease_s)
        self._leases.start()
        self._attempts = Attempts(join(root, "_state/attempts"))
        self.ledger = FailureLedger(join(root, "failures"))
        self._is_done = is_done
        self._run_id = run_id
        self._unit = unit

    def take(self, slide: SlideRef, *, alone: bool = False) -> Verdict:
        """Claim a slide; `alone` promises that this process reads nothing else meanwhile."""
        if self._is_done(slide.slide_id):
            return Verdict.DONE
        if not self._leases.acquire(slide.slide_id):
            return Verdict.ELSEWHERE
        verdict = self._judge(slide, alone=alone)
        if verdict is not Verdict.TAKEN:
            self._leases.release(slide.slide_id)
        return verdict

    def _judge(self, slide: SlideRef, *, alone: bool) -> Verdict:
        if self._is_done(slide.slide_id):  # by the run that held the lease until now
            return Verdict.DONE
        before = self._attempts.get(slide.slide_id)
        if before is not None and before.alone_deaths:
            self._quarantine(slide, deaths=before.count)
            return Verdict.QUARANTINED
        if before is not None and before.count >= DEATHS_BEFORE_ALONE and not alone:
            return Verdict.SUSPECT
        self._attempts.begin(slide.slide_id, alone=alone)
        return Verdict.TAKEN

    def finish(self, slide: SlideRef) -> None:
        """The output is written: forget attempts and old failures."""
        self._attempts.finish(slide.slide_id)
        self.ledger.clear(slide.slide_id)
        self._leases.release(slide.slide_id)

    def give_back(self, slide: SlideRef) -> None:
        """Leave a slide untouched for someone else; not an attempt."""
        self._attempts.finish(slide.slide_id)
        self._leases.release(slide.slide_id)

    def abandon(self, slide: SlideRef) -> None:
        """Leave a slide whose reader died; the attempt stays on record."""
        self._leases.release(slide.slide_id)

    def fail(self, slide: SlideRef, *, stage: str, error: BaseException) -> None:
        """Record why a slide could not be done."""
        before = self.ledger.get(slide.slide_id)
        attempts = 1 + (before.attempts if before is not None else 0)
        self.ledger.record(
            failure_of(slide, stage=stage, error=error, run_id=self._run_id, attempts=attempts)
        )
        self._attempts.finish(slide.slide_id)
        self._leases.release(slide.slide_id)

    def _quarantine(self, slide: SlideRef, *, deaths: int) -> None:
        error = MstarError(
            f"{self._unit} {slide.slide_id}: the process died {deaths} times while reading it, the "
            f"last time with no other {self._unit} in hand (crash or out of memory); it is "
            "quarantined. "
            f"Check {slide.uri}, then rerun with --retry-failed"
        )
        self.ledger.record(
            failure_of(slide, stage="read", error=error, run_id=self._run_id, attempts=deaths)
        )
        self._attempts.finish(slide.slide_id)

    def close(self) -> None:
        """Stop renewing leases."""
        self._leases.stop()


def is_permanent(error: BaseException) -> bool:
    """Whether trying again can not help: files stay broken; memory, disk, network may recover."""
    if isinstance(error, MstarError):
        return not error.transient
    return not isinstance(error, OSError | MemoryError)


def failure_of(
    slide: SlideRef, *, stage: str, error: BaseException, run_id: str, attempts: int = 1
) -> Failure:
    """The ledger entry of an error on one slide."""
    return Failure(
        slide_id=slide.slide_id,
        uri=slide.uri,
        stage=stage,
        kind=type(error).__name__,
        message=str(error),
        traceback="".join(traceback.format_exception(error)),
        attempts=attempts,
        permanent=is_permanent(error),
        run_id=run_id,
    )
