"""Which piece of a sweep is next: one of the study with the most work left.

So the largest tasks start first, and no core is left waiting for one of them in the end.

    while (piece := schedule.next()) is not None:      # None: wait for one that is running
        schedule.take(piece, work(piece))
    schedule.finished

Everything that is finished goes to the journal before it is used.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mstar.config import to_dict
from mstar.downstream.config import Study
from mstar.downstream.journal import Journal
from mstar.downstream.pieces import MAX_ATTEMPTS, Answer, Concluded, FitRecord, Piece
from mstar.downstream.study_run import StudyPlan, StudyRun

PIECES_A_SLOT = 4  # of the whole sweep's work, at least: enough to even out the end
LEAST_PIECE = 3e7  # bytes of features times epochs: about a second of a core, not worth cutting


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What the journal holds of the studies."""

    fits: Mapping[str, Mapping[str, FitRecord]] = field(default_factory=dict)
    concluded: Mapping[str, tuple[str, Concluded]] = field(default_factory=dict)


def remember(lines: Sequence[Mapping[str, Any]]) -> Remembered:
    """Sort the lines of a journal by study; fits that an error ended are to be tried again."""
    fits: dict[str, dict[str, FitRecord]] = {}
    concluded: dict[str, tuple[str, Concluded]] = {}
    for line in lines:
        own = fits.setdefault(line["study"], {})
        for found in line.get("fits", ()):
            record = FitRecord.parse(found)
            if not record.raised:
                own[record.key] = record
        if line.get("concluded"):
            concluded[line["study"]] = (line["digest"], Concluded.parse(line["concluded"]))
    return Remembered(fits=fits, concluded=concluded)


class Schedule:
    """The pieces of all studies of a sweep."""

    def __init__(
        self,
        plans: Sequence[StudyPlan],
        journal: Journal,
        *,
        slots: int,
        on_change: Callable[[StudyRun], None] | None = None,
    ) -> None:
        """Go on from the journal.

        Args:
            plans: of the studies.
            journal: of the sweep's folder.
            slots: workers that there will be.
            on_change: told when a study has ended a round, or is done.
        """
        before = remember(journal.lines)
        self.studies: dict[Study, StudyRun] = {}
        for plan in plans:
            digest, concluded = before.concluded.get(plan.study.key, ("", None))
            self.studies[plan.study] = StudyRun(
                plan,
                fits=before.fits.get(plan.study.key, {}),
                concluded=concluded,
                concluded_digest=digest,
            )
        self._journal = journal
        self._on_change = on_change or (lambda _: None)
        self._queued: dict[Study, list[Piece]] = {}
        self._running: dict[Study, int] = {}
        left = sum(run.cost_left for run in self.studies.values() if not run.done)
        self._target = max(LEAST_PIECE, left / (PIECES_A_SLOT * slots))
        for run in self.studies.values():
            self._refill(run)

    @property
    def finished(self) -> bool:
        """Whether every study is done or has failed, and no worker is busy with one."""
        return not self._running and all(run.done for run in self.studies.values())

    def next(self) -> Piece | None:
        """The piece to work on now; None while others have to be finished first."""
        ready = [study for study, queue in self._queued.items() if queue]
        if not ready:
            assert self._running or self.finished, "a study waits for nothing"
            return None
        study = max(ready, key=lambda one: self.studies[one].cost_left)
        self._running[study] = self._running.get(study, 0) + 1
        return self._queued[study].pop(0)

    def take(self, piece: Piece, answer: Answer) -> None:
        """What came of a piece."""
        run = self.studies[piece.study]
        if answer.failed and answer.transient and self._again(piece):
            return
        line: dict[str, Any] = {"study": piece.study.key, "fits": to_dict(answer.fits)}
        if answer.concluded is not None:
            line |= {"digest": run.plan.digest, "concluded": to_dict(answer.concluded)}
        if answer.fits or answer.concluded is not None:
            self._journal.append(line)
        run.take(piece, answer)
        self._ended(piece, run)

    def lose(self, piece: Piece, reason: str) -> None:
        """The worker of a piece died: it is tried again, once."""
        if self._again(piece):
            return
        run = self.studies[piece.study]
        run.fail(f"{reason}; tried {MAX_ATTEMPTS} times")
        self._ended(piece, run)

    def _again(self, piece: Piece) -> bool:
        if piece.attempt + 1 >= MAX_ATTEMPTS:
            return False
        self._count_down(piece.study)
        self._queued[piece.study].append(replace(piece, attempt=piece.attempt + 1))
        return True

    def _count_down(self, study: Study) -> None:
        self._running[study] -= 1
        if not self._running[study]:
            del self._running[study]

    def _ended(self, piece: Piece, run: StudyRun) -> None:
        self._count_down(piece.study)
        if run.failed:
            self._queued[piece.study] = []
        if piece.study in self._running or self._queued[piece.study]:
            return
        self._refill(run)
        self._on_change(run)
        if run.done:
            self._release(run)

    def _release(self, internal: StudyRun) -> None:
        """Externals that waited for a study go on, or fail with it."""
        for run in self.studies.values():
            if run.waiting_for == internal.plan.study and not run.done:
                run.waiting_for = None
                if internal.failed:
                    run.fail(f"{internal.plan.study.key} failed, whose models it needs")
                    self._on_change(run)
                self._refill(run)

    def _refill(self, run: StudyRun) -> None:
        study = run.plan.study
        internal = self.studies.get(run.waiting_for) if run.waiting_for else None
        if internal is not None and internal.done and not run.done:
            run.waiting_for = None  # it was done in an earlier run
            if internal.failed:
                run.fail(f"{internal.plan.study.key} failed, whose models it needs")
        self._queued[study] = run.pieces(self._target)
