"""A real `ray start --head` on loopback with token authentication, and what is submitted to it."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from support.s3 import free_ports

BIN = Path(sys.executable).parent
RAY, MSTAR = str(BIN / "ray"), str(BIN / "mstar")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A cluster that may be submitted to.

    address: of the dashboard. gcs: what a further node joins. environment: of those who may submit.
    folder: Ray's own files, with the logs of every process.
    """

    address: str
    gcs: str
    environment: dict[str, str]
    folder: Path

    def call(self, *command: str, timeout_s: float = 400, **env: str) -> tuple[int, str]:
        """Exit code and output of a client's command."""
        ended = subprocess.run(
            command,
            env=self.environment | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        return ended.returncode, ended.stdout

    def job(self, submission_id: str) -> dict[str, object]:
        """What the job API shows of a submission."""
        code = (
            "import sys, json; from ray.job_submission import JobSubmissionClient as C;"
            "print('INFO' + C(sys.argv[1]).get_job_info(sys.argv[2]).model_dump_json())"
        )
        _, output = self.call(sys.executable, "-c", code, self.address, submission_id)
        found: dict[str, object] = json.loads(output.rpartition("INFO")[2])
        return found

    def grep(self, text: str) -> list[str]:
        """Files of Ray, logs above all, that hold a text."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return [str(path) for path in files if text.encode() in path.read_bytes()]


@contextmanager
def running_head(log: Path, *, cpus: int = 2, **env: str) -> Iterator[Head]:
    """A head node of its own, ended with the block.

    env: of the node: what a cluster gives its jobs.
    """
    ports = free_ports(6)
    # The clients' folder has the interpreter first, as an activated environment has it.
    dropped = ("RAY_ADDRESS", "MSTAR_CODE_CHECK")  # a cluster has neither by itself
    environment = {name: v for name, v in os.environ.items() if name not in dropped}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    address = f"http://127.0.0.1:{ports[1]}"
    environment |= {"RAY_API_SERVER_ADDRESS": address}
    # Every port its own, for other Rays may run here; a short folder of its own, for the paths of
    # sockets are limited, and so that no later `ray.init()` of anyone finds this cluster.
    flags = ("port", "dashboard-port", "ray-client-server-port", "metrics-export-port")
    flags += ("dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    command = [RAY, "start", "--head", "--block", "--num-cpus", str(cpus)]
    command += ["--temp-dir", str(folder), "--dashboard-host", "127.0.0.1"]
    command += [f"--{flag}={port}" for flag, port in zip(flags, ports, strict=True)]
    command += ["--node-ip-address", "127.0.0.1", "--object-store-memory", "100000000"]
    head = Head(
        address=address, gcs=f"127.0.0.1:{ports[0]}", environment=environment, folder=folder
    )
    with _process([*command, "--disable-usage-stats"], environment | env, log) as server:
        try:
            _wait_until_ready(head, server, log)
            yield head
        finally:
            end_session(server)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def second_node(head: Head, log: Path, *, cpus: int = 1) -> Iterator[None]:
    """One more node on this machine."""
    ports = free_ports(3)
    flags = ("metrics-export-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    command = [RAY, "start", "--block", "--address", head.gcs, "--num-cpus", str(cpus)]
    command += [f"--{flag}={port}" for flag, port in zip(flags, ports, strict=True)]
    command += ["--node-ip-address", "127.0.0.1", "--object-store-memory", "100000000"]
    with _process(command, head.environment, log) as node:
        try:
            time.sleep(1)
            yield
        finally:
            end_session(node)


@contextmanager
def _process(
    command: list[str], environment: dict[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        yield subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )


def end_session(leader: "subprocess.Popen[bytes]", *, within_s: float = 5.0) -> None:
    """End a process that was started as the leader of a session, and all of that session.

    `ray start --block` takes half a minute to see that what it watches is gone.
    """
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            leader.wait(within_s)
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()


def _wait_until_ready(head: Head, server: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until a job is taken: the dashboard answers some seconds before its agent does."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        code, _ = head.call(RAY, "job", "submit", "--no-wait", "--", "true")
        if code == 0:
            return
        time.sleep(1)
    raise AssertionError(log.read_text())
