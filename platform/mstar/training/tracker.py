"""What a job may say to a tracker, and the tracker that keeps nothing."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mstar.errors import InterruptedRunError


@runtime_checkable
class Tracker(Protocol):
    """Where a job logs to. No method raises or waits for a server, except `finish`, bounded."""

    @property
    def run_id(self) -> str:
        """Our id of the run, in MLflow the tag `mstar.run_id`; empty when nothing is tracked."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Logs settings, nested or flat."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs numbers at a step."""

    def log_artifact(self, local_path: Path, folder: str = "") -> None:
        """Logs a copy of a small local file."""

    def log_text(self, text: str, name: str) -> None:
        """Logs a text as the artifact `name`."""

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Sets tags of the run."""

    def log_model(
        self, name: str, uri: str, *, tags: Mapping[str, Any], description: str = ""
    ) -> None:
        """Registers the files at `uri` as a version of the model `name`; nothing is copied."""

    def finish(self, status: str = "FINISHED") -> str:
        """Ends the run as FINISHED, FAILED or KILLED; says in a line where it can be found."""


@runtime_checkable
class TreeTracker(Tracker, Protocol):
    """A tracker whose run may have runs below it."""

    def log_run(
        self,
        run_id: str,
        *,
        name: str,
        status: str,
        parent: str = "",
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        metrics: Sequence[tuple[str, float, int]] = (),
        files: Sequence[tuple[Path, str]] = (),
        duration_s: float = 0.0,
    ) -> None:
        """Logs a run below this one, or more of one: RUNNING, FINISHED, FAILED or KILLED.

        run_id: our id of it; equal ids are one run.
        parent: our id of the run it is below; empty: this one.
        metrics: name, number, step.
        files: local file, folder among the artifacts.
        """


class NullTracker:
    """Tracks nothing."""

    run_id = ""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Does nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Does nothing."""

    def log_artifact(self, local_path: Path, folder: str = "") -> None:
        """Does nothing."""

    def log_text(self, text: str, name: str) -> None:
        """Does nothing."""

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Does nothing."""

    def log_model(
        self, name: str, uri: str, *, tags: Mapping[str, Any], description: str = ""
    ) -> None:
        """Does nothing."""

    def log_run(self, run_id: str, **_: Any) -> None:
        """Does nothing."""

    def finish(self, status: str = "FINISHED") -> str:
        """Does nothing."""
        return "not tracked"


@contextmanager
def ended(tracker: Tracker) -> Iterator[None]:
    """End the run as FINISHED, FAILED or KILLED with the block, and say where it can be found."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, InterruptedRunError):
        status = "KILLED"
        raise
    finally:
        print(f"  tracking  {tracker.finish(status)}", flush=True)
