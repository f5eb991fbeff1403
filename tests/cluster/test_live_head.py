"""On a real `ray start`: our metrics reach the exporter, and drain-node tells Ray of its node."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.manifests import CLUSTER
from support.ray_head import end_session
from support.s3 import free_ports

RAY = str(Path(sys.executable).with_name("ray"))
START_S = 300.0
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True, kw_only=True)
class Node:
    """A head and how to reach it."""

    address: str
    metrics: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A head with token authentication, as in the manifests; metrics every second."""
    ports = free_ports(6)
    environment = {name: v for name, v in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment |= {"RAY_metrics_report_interval_ms": "1000"}
    flags = ("port", "dashboard-port", "ray-client-server-port", "metrics-export-port")
    flags += ("dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    temp = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    command = [RAY, "start", "--head", "--block", "--num-cpus", "1", "--temp-dir", temp]
    command += [f"--{flag}={port}" for flag, port in zip(flags, ports, strict=True)]
    command += ["--dashboard-host", "127.0.0.1", "--node-ip-address", "127.0.0.1"]
    command += ["--object-store-memory", "100000000", "--disable-usage-stats"]
    command += ["--object-spilling-directory", f"{temp}/spill"]
    log = (tmp_path_factory.mktemp("head") / "log").open("wb")
    server = subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    metrics = f"http://127.0.0.1:{ports[3]}/metrics"
    try:
        wait_for_lines(metrics, "ray_node_mem_used", server)
        yield Node(address=f"127.0.0.1:{ports[0]}", metrics=metrics, environment=environment)
    finally:
        end_session(server)
        log.close()
        shutil.rmtree(temp, ignore_errors=True)


PUBLISH = """
import sys, ray
from mstar.training import metrics
ray.init(address=sys.argv[1], log_to_driver=False)
metrics.publish("embed", {"patches_per_s": 812.5, "slides_failed": 3.0})
print("published", flush=True)
sys.stdin.read()
"""


def test_grafana_would_see_what_a_job_publishes(head: Node) -> None:
    """By the name and label that the dashboard asks for."""
    with driver(head, PUBLISH) as publishing:
        assert publishing.stdout is not None
        assert publishing.stdout.readline() == "published\n"
        lines = wait_for_lines(head.metrics, "ray_mstar_patches_per_s")
        assert any('job_kind="embed"' in line and line.endswith(" 812.5") for line in lines), lines


def wait_for_lines(
    address: str, name: str, server: subprocess.Popen[bytes] | None = None
) -> list[str]:
    """The samples of a metric, as soon as the exporter has any."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert server is None or server.poll() is None, "the head ended; is the machine overloaded?"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                text = answer.read().decode()
        except OSError:
            text = ""
        found = [line for line in text.splitlines() if line.startswith(name + "{")]
        if found:
            return found
        time.sleep(1)
    raise AssertionError(f"{name} is not served at {address}")


def test_a_node_that_drains_is_marked(head: Node) -> None:
    """Ray knows the deadline; where there is no node at the address, the hook says so."""
    command = [sys.executable, str(CLUSTER / "bin" / "drain-node"), "60", "--no-wait"]
    command += ["--address", head.address]
    with driver(head, WATCH) as watching:
        assert watching.stdin is not None
        assert watching.stdout is not None
        at = watching.stdout.readline().strip()  # Ray puts the machine's own for 127.0.0.1
        stranger = subprocess.run(
            [*command, "--ip", "192.0.2.1"], env=head.environment, capture_output=True, text=True
        )
        assert stranger.returncode == 1
        assert "0 living nodes at 192.0.2.1" in stranger.stderr
        taken = subprocess.run(
            [*command, "--ip", at], env=head.environment, capture_output=True, text=True
        )
        assert taken.returncode == 0, taken.stderr
        watching.stdin.write("\n")
        watching.stdin.flush()
        (deadline_ms,) = map(int, watching.stdout.readline().split())
    assert 0 < deadline_ms / 1000 - time.time() <= 60


# A node with nothing to do is gone as soon as it is drained; this one has a task.
WATCH = """
import sys, time, ray
from ray._private.state import state
ray.init(address=sys.argv[1], log_to_driver=False)

@ray.remote(num_cpus=1)
class Busy:
    def work(self):
        time.sleep(600)

busy = Busy.remote()
working = busy.work.remote()
assert not ray.wait([working], timeout=5)[0]
print(*[node["NodeManagerAddress"] for node in ray.nodes()], flush=True)
sys.stdin.readline()
for _ in range(600):
    if found := state.get_draining_nodes():
        break
    time.sleep(0.1)
print(*found.values(), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def driver(head: Node, program: str) -> Iterator["subprocess.Popen[str]"]:
    """A driver of its own, spoken to by lines; it ends when its input does."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, head.address],
        env=head.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.communicate("", timeout=60)
