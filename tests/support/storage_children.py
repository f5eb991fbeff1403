"""What the storage tests run in processes of their own (spawned, so it must be importable)."""

from __future__ import annotations

import os
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

from mstar.storage import objects
from mstar.storage.cache import SlideCache
from mstar.storage.leases import LeaseBoard


def write_race(uris: list[str], content: bytes, barrier: Barrier, wins: Queue[list[bool]]) -> None:
    """Writes each name if absent, at the same moment as the others."""
    results = []
    for uri in uris:
        barrier.wait(30)
        results.append(objects.write_whole(uri, content, if_absent=True))
    wins.put(results)


def lease_race(root: str, keys: list[str], barrier: Barrier, wins: Queue[list[bool]]) -> None:
    """Acquires each key at the same moment as the others, and stays alive until all have tried."""
    board = LeaseBoard(root, run_id=str(os.getpid()))
    results = []
    for key in keys:
        barrier.wait(30)
        results.append(board.acquire(key))
    wins.put(results)
    barrier.wait(30)


def hold_lease(root: str, key: str, ttl_s: float, reports: Queue[object]) -> None:
    """Acquires and renews; reports `acquired`, then each change of whether it still has it."""
    board = LeaseBoard(root, run_id="holder", ttl_s=ttl_s, skew_s=0)
    reports.put(("acquired", board.acquire(key)))
    while True:
        time.sleep(ttl_s / 3)
        lost = board.renew_all()
        if lost:
            reports.put(("lost", sorted(lost), board.still_mine(key)))
            return


def write_forever(uri: str, started: Event, megabytes: int) -> None:
    """Overwrites a file with equal bytes, a different value each time, until it is killed."""
    for number in range(1_000_000):
        objects.write_whole(uri, bytes([number % 251]) * (megabytes << 20))
        started.set()


def stage_slide(
    folder: Path, uri: str, max_bytes: int, barrier: Barrier, results: Queue[tuple[bytes, int]]
) -> None:
    """Stages a slide at the same moment as the others; reports its bytes and what was fetched."""
    cache = SlideCache(folder, max_bytes=max_bytes)
    barrier.wait(30)
    with cache.stage(uri) as path:
        results.put((path.read_bytes(), cache.bytes_fetched))


def stage_and_hang(folder: Path, uri: str, max_bytes: int) -> None:
    """Starts to fetch a slide; the test kills it meanwhile."""
    with SlideCache(folder, max_bytes=max_bytes).stage(uri):
        time.sleep(60)


def read_in_fork(uri: str, answers: Queue[bytes]) -> None:
    """Reads an object with whatever a fork left of the parent's client."""
    answers.put(objects.read_bytes(uri))
