"""Which slides a run takes on, and what it remembers of those that went badly."""

from pathlib import Path

import pytest

from mstar.embed.pending import SlideQueue, Standing
from mstar.errors import MppError, PatchError, SkippedSlideError, StorageError
from mstar.schema import SlideRef
from mstar.storage.ledger import Attempts, FailureLedger
from mstar.training.custody import Custody, Verdict, failure_of, is_permanent

SLIDES = [SlideRef(slide_id=name, uri=f"/slides/{name}.svs") for name in ("a", "b", "c")]


@pytest.fixture
def ledger(tmp_path: Path) -> FailureLedger:
    return FailureLedger(str(tmp_path / "failures"))


def manifest(tmp_path: Path, extra: str = "") -> str:
    path = tmp_path / "slides.csv"
    rows = "".join(f"{slide.uri},{slide.slide_id}\n" for slide in SLIDES)
    path.write_text("path,slide_id\n" + rows + extra)
    return str(path)


def cohort(
    spec: str, ledger: FailureLedger, run_id: str = "now", *, retry: bool = False
) -> SlideQueue:
    return SlideQueue(spec, ledger=ledger, run_id=run_id, retry_failed=retry)


def fail(ledger: FailureLedger, slide: SlideRef, error: Exception, run_id: str = "before") -> None:
    ledger.record(failure_of(slide, stage="read", error=error, run_id=run_id))


def ids(cohort: SlideQueue, done: set[str] | None = None) -> list[str]:
    return [slide.slide_id for slide in cohort.pending(done or set())]


def test_done_slides_are_not_pending(tmp_path: Path, ledger: FailureLedger) -> None:
    spec, standing = manifest(tmp_path), Standing()
    assert [s.slide_id for s in cohort(spec, ledger).pending({"b"}, standing)] == ["a", "c"]
    assert (standing.total, standing.done, standing.pending) == (3, 1, 2)


def test_permanent_failures_wait_to_be_asked_for(tmp_path: Path, ledger: FailureLedger) -> None:
    spec = manifest(tmp_path)
    fail(ledger, SLIDES[0], MppError("no mpp"))
    fail(ledger, SLIDES[1], StorageError("503"))
    assert ids(cohort(spec, ledger)) == ["b", "c"]  # storage may have recovered
    assert ids(cohort(spec, ledger, retry=True)) == ["a", "b", "c"]


def test_nothing_is_tried_twice_in_one_run(tmp_path: Path, ledger: FailureLedger) -> None:
    fail(ledger, SLIDES[1], StorageError("503"), run_id="now")
    assert ids(cohort(manifest(tmp_path), ledger, "now", retry=True)) == ["a", "c"]


def test_a_failure_of_another_file_is_forgotten(tmp_path: Path, ledger: FailureLedger) -> None:
    """Whoever mends the path in the manifest need not know --retry-failed."""
    moved = SlideRef(slide_id="a", uri="/old/place/a.svs")
    fail(ledger, moved, MppError("no mpp"))
    assert ids(cohort(manifest(tmp_path), ledger)) == ["a", "b", "c"]


def test_unusable_rows_are_failures_with_their_reason(
    tmp_path: Path, ledger: FailureLedger
) -> None:
    standing = Standing()
    spec = manifest(tmp_path, "/slides/x.svs,../x\n")
    pending = list(cohort(spec, ledger).pending(set(), standing, dry=True))
    assert len(pending) == 3
    assert standing.failed == 1
    assert not list(ledger.all())  # a dry run records nothing
    assert ids(cohort(spec, ledger)) == ["a", "b", "c"]
    (failure,) = ledger.all()
    assert failure.slide_id == "../x"
    assert failure.permanent


def test_skipped_slides_are_no_failures(tmp_path: Path, ledger: FailureLedger) -> None:
    fail(ledger, SLIDES[2], SkippedSlideError("no mpp; skipped"))
    standing = cohort(manifest(tmp_path), ledger).standing({"a"})
    assert (standing.done, standing.failed, standing.skipped, standing.pending) == (1, 0, 1, 1)


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (MppError("x"), True),
        (PatchError("x"), True),
        (StorageError("x"), False),
        (MemoryError(), False),
        (OSError("disk"), False),
        (ValueError("a bug"), True),
    ],
)
def test_what_can_pass_is_tried_again(error: Exception, permanent: bool) -> None:
    assert is_permanent(error) == permanent


class TestCustody:
    """Attempts are on record before a slide is read; deaths lead to being read alone."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        return str(tmp_path / "out")

    def custody(self, root: str, done: bool = False) -> Custody:
        return Custody(root, run_id="run", lease_s=60.0, is_done=lambda slide_id: done)

    def deaths(self, root: str) -> tuple[int, int]:
        found = Attempts(f"{root}/_state/attempts").get("a")
        return (0, 0) if found is None else (found.count, found.alone_deaths)

    def die(self, root: str, verdict: Verdict, *, alone: bool = False) -> None:
        """Take the slide and never finish it, as a process that dies would."""
        custody = self.custody(root)
        assert custody.take(SLIDES[0], alone=alone) is verdict
        custody.abandon(SLIDES[0])
        custody.close()

    def test_done_needs_no_claim(self, root: str) -> None:
        custody = self.custody(root, done=True)
        assert custody.take(SLIDES[0]) is Verdict.DONE
        custody.close()

    def test_two_deaths_then_alone_then_quarantine(self, root: str) -> None:
        self.die(root, Verdict.TAKEN)
        assert self.deaths(root) == (1, 0)
        self.die(root, Verdict.TAKEN)
        self.die(root, Verdict.SUSPECT)
        assert self.deaths(root) == (2, 0)  # being told so is no attempt
        self.die(root, Verdict.TAKEN, alone=True)
        assert self.deaths(root) == (3, 1)
        custody = self.custody(root)
        assert custody.take(SLIDES[0]) is Verdict.QUARANTINED
        custody.close()
        failure = custody.ledger.get("a")
        assert failure is not None
        assert (failure.attempts, failure.permanent) == (3, True)
        assert self.deaths(root) == (0, 0)

    def test_an_innocent_neighbour_is_cleared(self, root: str) -> None:
        self.die(root, Verdict.TAKEN)
        self.die(root, Verdict.TAKEN)
        custody = self.custody(root)
        assert custody.take(SLIDES[0], alone=True) is Verdict.TAKEN
        custody.finish(SLIDES[0])
        custody.close()
        assert self.deaths(root) == (0, 0)

    def test_failures_count_their_attempts(self, root: str) -> None:
        custody = self.custody(root)
        for _ in range(2):
            assert custody.take(SLIDES[0]) is Verdict.TAKEN
            custody.fail(SLIDES[0], stage="read", error=StorageError("503"))
        failure = custody.ledger.get("a")
        custody.close()
        assert failure is not None
        assert (failure.attempts, failure.permanent, failure.stage) == (2, False, "read")

    def test_another_live_run_keeps_its_slide(self, root: str) -> None:
        first = self.custody(root)
        second = Custody(root, run_id="other", lease_s=60.0, is_done=lambda slide_id: False)
        assert first.take(SLIDES[0]) is Verdict.TAKEN
        assert second.take(SLIDES[0]) is Verdict.ELSEWHERE
        first.give_back(SLIDES[0])
        assert second.take(SLIDES[0]) is Verdict.TAKEN
        second.give_back(SLIDES[0])
        first.close()
        second.close()
