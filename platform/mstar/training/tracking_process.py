"""The one process that speaks to MLflow: sends a spool to its run, and to the runs below it.

    python -m mstar.training.tracking_process SPOOL                 sends what is left, then ends
    python -m mstar.training.tracking_process SPOOL --follow PID    goes on until job PID is done

How it is sent: `tracking_sender.py`.
"""

import argparse
import fcntl
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

from mstar.training.credentials import redact
from mstar.training.spool import (
    LOCK,
    RECORDS,
    RunInfo,
)
from mstar.training.tracking_sender import RunSender

POLL_S = 0.5
MAX_PAUSE_S = 30.0
GIVE_UP_S = 10.0  # of failures in a row, once the job has ended

log = logging.getLogger("mstar.tracking")


def try_to_send(sender: RunSender) -> bool:
    """One try: True when all that is there has been sent; a failure is noted in position.json."""
    try:
        sender.send_new()
        return True
    except Exception as error:  # whatever MLflow, its database driver or HTTP stack raises
        log.exception("cannot reach MLflow at %s", redact(sender.uri))
        sender.store(error=redact(f"{type(error).__name__}: {str(error)[:500]}"))
        return False


def follow(sender: RunSender, job_pid: int) -> bool:
    """Sends records as they come until the job is done or dead; True when all was sent."""
    pause_s, failing_since_s = POLL_S, None
    while True:
        job_ended = os.getppid() != job_pid  # read before sending: nothing comes after it
        sent = try_to_send(sender)
        if sender.position.done:
            return True
        if sent and job_ended:
            sender.abandon()
            return True
        now_s = time.monotonic()
        failing_since_s = None if sent else failing_since_s or now_s
        ending = job_ended or has_finish(sender)
        if failing_since_s and ending and now_s - failing_since_s > GIVE_UP_S:
            return False
        pause_s = POLL_S if sent or ending else min(pause_s * 2, MAX_PAUSE_S)
        wait(sender, job_pid, pause_s)


def wait(sender: RunSender, job_pid: int, pause_s: float) -> None:
    """Sleeps, but no longer than until the job ends: a long pause must not delay that."""
    until_s = time.monotonic() + pause_s
    while time.monotonic() < until_s:
        time.sleep(min(POLL_S, pause_s))
        if os.getppid() != job_pid or has_finish(sender):
            return


def has_finish(sender: RunSender) -> bool:
    """Whether the unsent part of the spool ends the run."""
    path = sender.folder / RECORDS
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200))
        return b'"kind": "finish"' in file.read()


def send_once(sender: RunSender) -> bool:
    """Sends what is left of a spool; True when that worked."""
    if not try_to_send(sender):
        print(f"{redact(sender.uri)}: {sender.position.error}", file=sys.stderr)
        return False
    if not sender.position.done and not job_alive(sender.info):
        sender.abandon()
    print(
        f"{sender.folder}: sent to {redact(sender.uri)}, MLflow run {sender.position.mlflow_run_id}"
    )
    return True


def job_alive(info: RunInfo) -> bool:
    """Whether the job of a spool may still be at work; a job on another host may be."""
    if info.host != socket.gethostname():
        return True
    try:
        os.kill(info.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class RedactedLog(logging.Formatter):
    """Messages and tracebacks without credentials: libraries put addresses into them."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, redacted."""
        return redact(super().format(record))


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 when all was sent, 1 when not, 2 when another process is at it."""
    parser = argparse.ArgumentParser(prog="python -m mstar.training.tracking_process")
    parser.add_argument("spool", type=Path, help="spool folder of one run")
    parser.add_argument("--follow", type=int, metavar="PID", help="go on until this job has ended")
    parser.add_argument("--uri", help="MLflow tracking URI, instead of the spool's own")
    args = parser.parse_args(argv)
    if args.follow is not None:
        # `ray job stop` signals every process below the job's; this one ends when the job does,
        # once it has sent how it ended.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    handler = logging.StreamHandler()
    handler.setFormatter(RedactedLog("%(asctime)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    with (args.spool / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{args.spool}: another process is sending this spool", file=sys.stderr)
            return 2
        return 0 if run(args.spool, follow_pid=args.follow, uri=args.uri) else 1


def run(folder: Path, *, follow_pid: int | None, uri: str | None) -> bool:
    """Sends a spool, once or as long as the job runs."""
    sender = RunSender(folder, uri=uri)
    return send_once(sender) if follow_pid is None else follow(sender, follow_pid)


if __name__ == "__main__":
    sys.exit(main())
