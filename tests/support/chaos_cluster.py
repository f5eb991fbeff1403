"""A Ray cluster of several nodes on this machine, whose nodes can be killed, frozen and cut off.

The head has no CPUs, as in production: what a job computes runs on the other nodes, and its driver
on the head. A node whose raylet is gone counts as dead after four seconds, a silent one after some
forty-five.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from support.chaos_proxy import ProxyProcess

STORE_BYTES = 100_000_000
SETTINGS = {
    "worker_niceness": 0,  # Ray adds 15 to its workers', which starve on a busy machine then
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 10000,
    "health_check_failure_threshold": 4,
}
TESTS = Path(__file__).resolve().parents[1]


class ChaosCluster:
    """A head and `nodes` workers of `cpus` CPUs each; `with` ends every process of it.

    proxied: worker nodes reach the head through `proxy`.
    """

    def __init__(self, *, nodes: int, cpus: int = 1, proxied: bool = False) -> None:
        """Start everything (about 4 s a node)."""
        self._temp = tempfile.mkdtemp(prefix="mc-", dir="/tmp")  # socket paths must be short
        self.proxy: ProxyProcess | None = None
        self.nodes: list[Any] = []
        self._cluster = Cluster(shutdown_at_exit=False)
        try:
            self._start(nodes, cpus, proxied=proxied)
        except BaseException:
            self.__exit__()
            raise

    def _start(self, nodes: int, cpus: int, *, proxied: bool) -> None:
        with _environment(RAY_TMPDIR=self._temp, PYTHONPATH=python_path(), **_QUIET):
            self._cluster.add_node(
                num_cpus=0,
                object_store_memory=STORE_BYTES,
                include_dashboard=False,
                _system_config=SETTINGS,
            )
            if proxied:
                self.proxy = ProxyProcess(self.address)
            for _ in range(nodes):
                self.add_node(cpus)

    def __enter__(self) -> ChaosCluster:
        return self

    def __exit__(self, *_: object) -> None:
        head = self._cluster.head_node
        for node in filter(None, (*self.nodes, head)):
            self.signal(node, signal.SIGKILL)
        if self.proxy is not None:
            self.proxy.close()
        shutil.rmtree(self._temp, ignore_errors=True)

    @property
    def address(self) -> str:
        """Of the head, for RAY_ADDRESS."""
        return str(self._cluster.address)

    def add_node(self, cpus: int = 1) -> Any:
        """One more worker node."""
        where = {} if self.proxy is None else {"gcs_address": self.proxy.address}
        node = self._cluster.add_node(
            num_cpus=cpus,
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
            **where,
        )
        self.nodes.append(node)
        return node

    def node_of(self, word: str) -> Any:
        """A worker node on which an actor or task runs whose name holds `word`."""
        for node in self.nodes:
            if any(word in line for line in map(command_of, self.processes(node))):
                return node
        return None

    def processes(self, node: Any) -> list[int]:
        """Everything that runs on a node, its raylet first."""
        roots = [info.process.pid for kind in node.all_processes.values() for info in kind]
        return [pid for root in roots for pid in descendants(root)]

    def signal(self, node: Any, number: int) -> None:
        """Send all processes of a node a signal at once, as when its machine fails."""
        pids = self.processes(node)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if number == signal.SIGKILL:
            for kind in node.all_processes.values():
                for info in kind:
                    info.process.wait()

    def kill(self, node: Any) -> None:
        """The machine is gone, without a word."""
        self.nodes.remove(node)
        self.signal(node, signal.SIGKILL)

    def drain(self, node: Any, *, within_s: int) -> None:
        """What a spot notice does: `ray drain-node`."""
        command = [str(Path(sys.executable).with_name("ray")), "drain-node"]
        command += ["--address", self.address, "--node-id", node.node_id]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        command += ["--deadline-remaining-seconds", str(within_s)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)


_QUIET = {"RAY_DATA_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}


def python_path() -> str:
    """For processes that need `support`, besides what this one was started with."""
    return os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(TESTS))))


def descendants(root: int) -> list[int]:
    """A process and all below it that are alive."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if fields[0] != "Z":
                    children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, at = [root], 0
    while at < len(found):
        found += children.get(found[at], [])
        at += 1
    return found


def command_of(pid: int) -> str:
    """The command line of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@contextlib.contextmanager
def _environment(**settings: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def wait_until(condition: Any, what: str, *, timeout_s: float = 300.0) -> Any:
    """The first true answer of `condition()`, asked again and again."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)
    return found
