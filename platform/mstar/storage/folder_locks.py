"""A lock on a folder, for some microseconds, between processes and threads."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WAIT_S = 2.0
_LOOK_S = 0.001


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps others out who ask for the same folder.

    Best effort, so that nobody is blocked for long: a holder that is stopped half-way is waited for
    `WAIT_S`, and some network disks have no locks. Whoever needs this must be right in nearly all
    cases without it. Nothing is left behind, and the lock of a process that dies ends with it.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(number)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_UN)  # a child forked meanwhile holds it open
        os.close(number)


def _lock(number: int) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOOK_S)
        except OSError:  # no locks here
            return
        else:
            return
