"""What a step of the demo is."""

from collections.abc import Callable
from dataclasses import dataclass

from mstar.errors import MstarError
from mstar.training.exit_codes import ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step: what it does, where to look, and the doing."""

    title: str
    look: str
    do: Callable[[], None]


def expect_complete(code: int) -> None:
    """Stop the demo where a job did not complete."""
    if code != ExitCode.COMPLETE:
        raise MstarError(f"the job ended with exit code {code}; its summary above says why")
