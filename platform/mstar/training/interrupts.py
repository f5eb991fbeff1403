"""SIGTERM ends a job as Ctrl-C does: the way schedulers, `ray job stop` and spot nodes ask."""

import signal
import threading
from types import FrameType

from mstar.errors import InterruptedRunError


def raise_interrupted(signum: int, frame: FrameType | None) -> None:
    """Signal handler: unwinds the main thread with InterruptedRunError."""
    raise InterruptedRunError(f"stopped by {signal.Signals(signum).name}")


def stop_on_sigterm() -> None:
    """Makes SIGTERM raise InterruptedRunError in the main thread.

    Call it again after `ray.init`, which replaces the handler by one that exits with code 15.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, raise_interrupted)
