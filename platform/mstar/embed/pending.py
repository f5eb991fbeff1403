"""Which slides of a manifest are still to be done, and how the others ended."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from mstar.errors import ManifestError
from mstar.schema import SlideRef
from mstar.storage.ledger import Failure, FailureLedger
from mstar.storage.manifest import BadRow, read_slides
from mstar.storage.objects import is_local, local_path
from mstar.training.custody import failure_of


@dataclass(slots=True, kw_only=True)
class Standing:
    """Where a cohort stands."""

    total: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    pending: int = 0
    reasons: dict[str, int] = field(default_factory=dict)  # kind of failure → slides


class SlideQueue:
    """The slides of one job, looked at as often as needed and never held."""

    def __init__(
        self, slides: str, *, ledger: FailureLedger, run_id: str, retry_failed: bool
    ) -> None:
        """Read `slides` (see `read_slides`); `ledger` tells what failed before."""
        self._slides, self._ledger = slides, ledger
        self._run_id, self._retry_failed = run_id, retry_failed

    def pending(
        self, done: set[str], standing: Standing | None = None, *, dry: bool = False
    ) -> Iterator[SlideRef]:
        """Slides neither done nor given up; `standing` is filled in on the way.

        Rows of the manifest that cannot be used are recorded as failed, unless `dry`.
        """
        standing = standing or Standing()
        failures = {failure.slide_id: failure for failure in self._ledger.all()}
        for row in read_slides(self._slides):
            standing.total += 1
            failure = failures.get(row.slide_id)
            if isinstance(row, BadRow):
                self._refuse(row, standing, dry=dry)
            elif row.slide_id in done:
                standing.done += 1
            elif failure is not None and self._given_up(failure, row):
                _count(failure, standing)
            else:
                standing.pending += 1
                yield _with_size(row)

    def standing(self, done: set[str]) -> Standing:
        """The cohort's standing now."""
        standing = Standing()
        for _ in self.pending(done, standing):
            pass
        return standing

    def _given_up(self, failure: Failure, slide: SlideRef) -> bool:
        """Not again in the run it failed in; permanent failures only when asked, or a new file."""
        if failure.run_id == self._run_id:
            return True
        return failure.permanent and failure.uri == slide.uri and not self._retry_failed

    def _refuse(self, row: BadRow, standing: Standing, *, dry: bool) -> None:
        slide = SlideRef(slide_id=row.slide_id, uri=row.uri)
        failure = failure_of(
            slide, stage="manifest", error=ManifestError(row.reason), run_id=self._run_id
        )
        if not dry:
            self._ledger.record(failure)
        _count(failure, standing)


def _count(failure: Failure, standing: Standing) -> None:
    skipped = failure.kind == "SkippedSlideError"
    standing.skipped += skipped
    standing.failed += not skipped
    standing.reasons[failure.kind] = standing.reasons.get(failure.kind, 0) + 1


def _with_size(slide: SlideRef) -> SlideRef:
    """The slide with its file's size where asking costs nothing."""
    if slide.size_bytes is not None or not is_local(slide.uri):
        return slide
    path = local_path(slide.uri)
    return replace(slide, size_bytes=path.stat().st_size if path.is_file() else None)
