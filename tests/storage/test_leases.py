"""Leases: one holder at a time, taken over only from the dead and the expired."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mstar.storage import objects, processes
from mstar.storage.leases import LeaseBoard
from mstar.storage.processes import is_known_dead, this_process
from support.s3 import CountingProxy, Fault
from support.storage_children import hold_lease, lease_race

SPAWN = multiprocessing.get_context("spawn")


def board(root: str, run_id: str = "run", **options: float) -> LeaseBoard:
    return LeaseBoard(root, run_id=run_id, **options)


def test_one_of_two_boards_holds_a_key_until_it_gives_it_back(root: str) -> None:
    first, second = board(root, "first"), board(root, "second")
    assert first.holder("a/b") is None
    assert first.acquire("a/b")
    assert first.acquire("a/b"), "its own"
    assert not second.acquire("a/b")
    assert second.holder("a/b").run_id == "first"
    assert (first.held, second.held) == ({"a/b"}, frozenset())
    second.release("a/b")
    assert first.still_mine("a/b"), "released by one that does not hold it"
    first.release("a/b")
    assert first.held == frozenset()
    assert second.acquire("a/b")
    assert not first.still_mine("a/b")


def test_renewing_extends_a_lease(root: str) -> None:
    mine, other = board(root, ttl_s=30), board(root, skew_s=0)
    assert mine.acquire("x")
    before_unix = other.holder("x").expires_unix
    assert mine.renew_all() == frozenset()
    assert other.holder("x").expires_unix > before_unix
    assert not other.acquire("x")


def test_an_expired_lease_is_taken_and_its_owner_notices(root: str) -> None:
    sleeper, other = board(root, ttl_s=0.05), board(root, "other", skew_s=0)
    assert sleeper.acquire("x")
    time.sleep(0.1)
    assert not sleeper.still_mine("x")
    assert other.acquire("x")
    assert sleeper.renew_all() == {"x"}
    assert sleeper.held == frozenset()
    assert other.still_mine("x"), "the late owner changed nothing"


def test_expiry_leaves_room_for_clocks_that_differ(root: str) -> None:
    assert board(root, ttl_s=0).acquire("x")
    time.sleep(0.02)
    assert not board(root, skew_s=60).acquire("x")
    assert board(root, skew_s=0).acquire("x")


def test_an_expired_lease_nobody_took_is_renewed(root: str) -> None:
    late = board(root, ttl_s=0.01)
    assert late.acquire("x")
    time.sleep(0.05)
    assert late.renew_all() == frozenset()


def test_of_racing_processes_one_gets_each_lease(root: str) -> None:
    keys = [f"slide {n}" for n in range(8)]
    for key in keys[4:]:  # lapsed ones are raced for as well
        assert board(root, ttl_s=-60).acquire(key)
    barrier, wins = SPAWN.Barrier(2), SPAWN.Queue()
    children = [SPAWN.Process(target=lease_race, args=(root, keys, barrier, wins)) for _ in "ab"]
    for child in children:
        child.start()
    results = [wins.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert [a + b for a, b in zip(*results, strict=True)] == [1] * len(keys)


def test_of_many_threads_one_takes_a_lapsed_lease(root: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        for number in range(2 if root.startswith("s3") else 50):
            key = f"{number}"
            assert board(root, ttl_s=-60).acquire(key)
            boards = [board(root) for _ in range(8)]
            wins = list(pool.map(lambda b, key=key: b.acquire(key), boards))
            assert sum(wins) == 1
            assert boards[wins.index(True)].still_mine(key)


def test_a_killed_owner_is_replaced_at_once(root: str) -> None:
    reports = SPAWN.Queue()
    child = SPAWN.Process(target=hold_lease, args=(root, "x", 3600.0, reports))
    child.start()
    assert reports.get(timeout=60) == ("acquired", True)
    mine = board(root)
    assert not mine.acquire("x")
    os.kill(child.pid, signal.SIGKILL)
    time.sleep(0.2)  # not joined: a process that nobody waited for is dead all the same
    assert mine.acquire("x")
    child.join()


def test_a_frozen_owner_notices_its_loss_and_changes_nothing(root: str) -> None:
    reports = SPAWN.Queue()
    child = SPAWN.Process(target=hold_lease, args=(root, "x", 4.0, reports))
    child.start()
    assert reports.get(timeout=60) == ("acquired", True)
    os.kill(child.pid, signal.SIGSTOP)
    mine = board(root, skew_s=0)
    assert not mine.acquire("x"), "frozen is not dead"
    deadline_s = time.monotonic() + 30
    while not mine.acquire("x"):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    os.kill(child.pid, signal.SIGCONT)
    assert reports.get(timeout=30) == ("lost", ["x"], False)
    child.join()
    assert mine.still_mine("x")


def test_the_background_thread_renews_until_stopped(root: str) -> None:
    mine, other = board(root, ttl_s=0.9), board(root, skew_s=60)
    assert mine.acquire("x")
    mine.start()
    seen = {other.holder("x").expires_unix}
    deadline_s = time.monotonic() + 30
    while len(seen) < 4:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
        if (holder := other.holder("x")) is not None:  # on disk, absent for a moment
            seen.add(holder.expires_unix)
    mine.stop()
    last_unix = other.holder("x").expires_unix
    time.sleep(0.7)
    assert other.holder("x").expires_unix == last_unix


def test_a_damaged_lease_can_be_taken(root: str) -> None:
    first = board(root)
    assert first.acquire("x")
    (info,) = objects.list_files(root)
    objects.write_whole(info.uri, b"{ not json")
    assert first.holder("x") is None
    assert board(root).acquire("x")
    assert first.renew_all() == {"x"}


@pytest.mark.parametrize(
    "key", ["../../etc/x", "/abs", "a/b", ".hidden", "ü ñ", "x" * 500, "", "%"]
)
def test_any_key_is_a_file_of_its_own_in_the_folder(root: str, key: str) -> None:
    mine = board(root)
    assert mine.acquire(key)
    (info,) = objects.list_files(root)
    assert "/" not in info.rel
    assert not board(root).acquire(key)
    assert board(root).acquire(key + "y")


def test_a_lost_answer_does_not_lose_the_lease(
    bucket: str, proxy: CountingProxy, no_waiting: list[int]
) -> None:
    mine = board(bucket)
    for _ in range(2):  # created, then renewed
        proxy.inject(Fault(kind="lost", method="PUT", times=2))
        assert mine.acquire("x")
    assert mine.renew_all() == frozenset()


def test_an_unreachable_store_loses_a_lease_only_when_it_runs_out(
    bucket: str,
    proxy: CountingProxy,
    no_waiting: list[int],
) -> None:
    patient, hasty = board(bucket, ttl_s=600), board(bucket, ttl_s=0.01)
    assert patient.acquire("x")
    assert hasty.acquire("y")
    proxy.inject(Fault(kind="503", times=1000))
    time.sleep(0.02)
    assert patient.renew_all() == frozenset()
    assert hasty.renew_all() == {"y"}


def test_only_what_ran_here_can_be_known_dead() -> None:
    me = this_process()
    assert not is_known_dead(me)
    assert is_known_dead(dataclasses.replace(me, start_ticks=me.start_ticks - 1)), "pid used again"
    gone = dataclasses.replace(me, pid=2**22 + 1)  # above the kernel's largest
    assert is_known_dead(gone)
    for elsewhere in ("host", "boot_id", "pid_namespace"):
        assert not is_known_dead(dataclasses.replace(gone, **{elsewhere: "another"}))


def test_without_proc_nothing_is_known_dead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    assert not is_known_dead(dataclasses.replace(this_process(), pid=2**22 + 1))
