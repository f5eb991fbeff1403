"""Ends Ray Tune when the job is told to end."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ray import tune

from mstar.errors import InterruptedRunError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SignalStop(tune.Stopper):  # type: ignore[misc]
    """Ends Tune when the job is told to end; an exception in its midst it would take for a trial's.

    reason: which signal came; empty while none has. error: of the driver's own work between trials,
    such as a journal that cannot be written.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.error: Exception | None = None

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """No trial by itself."""
        return False

    def stop_all(self) -> bool:
        """Everything, once a signal has come or the driver cannot go on."""
        return bool(self.reason) or self.error is not None

    def __deepcopy__(self, memo: dict[int, Any]) -> "SignalStop":
        """The signal comes to this one."""
        return self

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Note Ctrl-C and SIGTERM for as long as Tune runs; a second one ends the hard way."""

        def note(signum: int, frame: FrameType | None) -> None:
            name = signal.Signals(signum).name
            if self.reason:
                raise InterruptedRunError(f"stopped by {name}")
            self.reason = f"stopped by {name}"

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
