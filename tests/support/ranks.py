"""Runs a function on several ranks of one process group (gloo, on this machine)."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import cloudpickle
import torch.distributed as dist

_OWN_MODULES = ("support.", "mstar.")  # a rank can import these itself
_END_WITHIN_S = 10.0


class RankDiedError(RuntimeError):
    """A rank's process ended without a result, as after os._exit or a signal."""


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 60
) -> list[Any]:
    """Calls `function(*args)` on every rank of a gloo group; returns what each gave, in order.

    Each rank is a process with nothing of ours in it but torch, and one torch thread;
    `torch.distributed` is initialised in it
    also when it is alone. The function may be a test module's own, a closure included; arguments
    and results are pickled. Loss of one rank ends all: what is left is killed.

    Raises:
        RankDiedError: a rank ended without a result.
        TimeoutError: after `timeout_s` some rank had not answered.
        Exception: what a rank raised, with that rank's traceback as a note.
    """
    call = _dumps(function, args)
    with_port = dist.TCPStore(  # held by the parent: no port is free first and taken later
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed"])  # once, not by every rank
    pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
    ranks = [
        context.Process(
            target=_rank,
            args=(call, dict(os.environ) | _environment(rank, world_size, with_port.port)),
            kwargs={"timeout_s": timeout_s, "sender": pipes[rank][1]},
            daemon=True,
        )
        for rank in range(world_size)
    ]
    try:
        for process, (_, sender) in zip(ranks, pipes, strict=True):
            process.start()
            sender.close()  # so that the end of the process closes the pipe
        return _collect(ranks, [receiver for receiver, _ in pipes], time.monotonic() + timeout_s)
    finally:
        for process in ranks:
            process.kill()
            process.join()


def _collect(ranks: list[BaseProcess], receivers: list[Connection], until: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(ranks):
        waiting = [receivers[rank] for rank in range(len(ranks)) if rank not in results]
        ready = wait(waiting, timeout=max(0.0, until - time.monotonic()))
        if not ready:
            missing = sorted(set(range(len(ranks))) - set(results))
            raise TimeoutError(f"ranks {missing} of {len(ranks)} gave no answer in time")
        heard = {receivers.index(receiver): receiver for receiver in ready}  # type: ignore[arg-type]
        answers = {rank: _answer(ranks[rank], receivers[rank]) for rank in heard}
        for rank in sorted(answers, key=lambda rank: answers[rank] is not None):  # deaths first:
            results[rank] = _result(rank, ranks[rank], answers[rank])  # others fail because of them
    for process in ranks:
        process.join(_END_WITHIN_S)
    return [results[rank] for rank in range(len(ranks))]


def _answer(process: BaseProcess, receiver: Connection) -> Any:
    try:
        return cloudpickle.loads(receiver.recv_bytes())
    except EOFError:
        process.join(_END_WITHIN_S)
        return None


def _result(rank: int, process: BaseProcess, answer: Any) -> Any:
    if answer is None:
        raise RankDiedError(f"rank {rank} died with exit code {process.exitcode}")
    done, value, trace = answer
    if done:
        return value
    value.add_note(f"on rank {rank}:\n{trace}")
    raise value


def _dumps(function: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    """By value where the module is a test's, which the rank cannot import by name."""
    module = sys.modules[function.__module__]
    if module.__name__.startswith(_OWN_MODULES):
        return cloudpickle.dumps((function, args))
    cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps((function, args))
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }


def _rank(
    call: bytes, environment: dict[str, str], *, timeout_s: float, sender: Connection
) -> None:
    """One rank, in its own process."""
    import torch

    os.environ.clear()  # it has the environment of when the first rank was started
    os.environ.update(environment)
    torch.set_num_threads(1)
    rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    port = int(environment["MASTER_PORT"])
    limit = timedelta(seconds=timeout_s)
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=limit)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=world_size, timeout=limit
        )
        function, args = cloudpickle.loads(call)
        sender.send_bytes(cloudpickle.dumps((True, function(*args), "")))
    except BaseException as error:
        sender.send_bytes(_report_of(error))
        time.sleep(_END_WITHIN_S)  # killed before: its end would make the others fail as well


def _report_of(error: BaseException) -> bytes:
    trace = traceback.format_exc()
    try:
        report = cloudpickle.dumps((False, error, trace))
        cloudpickle.loads(report)
    except Exception:  # an error that cannot travel
        return cloudpickle.dumps((False, RuntimeError(repr(error)), trace))
    return bytes(report)
