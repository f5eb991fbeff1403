"""Which process this is, so that another one on the same host can tell whether it still lives."""

import functools
import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessName:
    """Names a process for good: a pid alone is used again, and means nothing elsewhere.

    boot_id and pid_namespace: empty where the system has no /proc; then only expiry tells.
    start_ticks: when the process started, in clock ticks after boot.
    """

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    start_ticks: int


def this_process() -> ProcessName:
    """The name of the calling process."""
    return ProcessName(
        host=socket.gethostname(),
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
        pid=os.getpid(),
        start_ticks=_start_ticks(os.getpid()) or 0,
    )


def is_known_dead(process: ProcessName) -> bool:
    """Whether the process ran here and is gone; False when that cannot be known."""
    here = (socket.gethostname(), _boot_id(), _pid_namespace())
    if not here[1] or here != (process.host, process.boot_id, process.pid_namespace):
        return False
    return _start_ticks(process.pid) != process.start_ticks


def process_mark() -> str:
    """The calling process in a form for file names: `<place>-<pid>-<start ticks>`."""
    return f"{_place()}-{os.getpid()}-{_start_ticks(os.getpid()) or 0}"


def is_known_dead_mark(mark: str) -> bool:
    """As `is_known_dead`, of a `process_mark`; False for whatever else the text may be."""
    place, _, rest = mark.partition("-")
    pid, _, ticks = rest.partition("-")
    if not (_boot_id() and place == _place() and pid.isdecimal() and ticks.isdecimal()):
        return False
    return _start_ticks(int(pid)) != int(ticks)


@functools.cache
def _place() -> str:
    """Digest of this host, boot and pid namespace: where a pid means something."""
    here = "\0".join((socket.gethostname(), _boot_id(), _pid_namespace()))
    return hashlib.sha256(here.encode()).hexdigest()[:12]


def _boot_id() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    """Containers of one pod can share a host name and not their pids."""
    try:
        return os.readlink(_PROC / "self/ns/pid")
    except OSError:
        return ""


def _start_ticks(pid: int) -> int | None:
    """When a process started; None when there is none, or only its unreaped remains."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return None if fields[0] in ("Z", "X") else int(fields[19])
