"""`ray job submit -- python jobs/embed.py …` on a Ray head of its own, token authentication on."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mstar.features.files import read_features
from support.cohorts import write_cohort
from support.s3 import free_ports

ROOT = Path(__file__).resolve().parents[1]
RAY = str(Path(sys.executable).with_name("ray"))

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """The dashboard of a `ray start --head`, and the environment that may submit to it."""
    ports = free_ports(6)
    environment = {name: v for name, v in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    log_path = tmp_path_factory.mktemp("head") / "head.log"
    # Every port its own, for other Rays may run here; a short folder of its own, for the paths of
    # sockets are limited, and so that no later `ray.init()` of anyone finds this cluster.
    flags = ("port", "dashboard-port", "ray-client-server-port", "metrics-export-port")
    flags += ("dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    temp = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    command = [RAY, "start", "--head", "--block", "--num-cpus", "2", "--temp-dir", temp]
    command += [f"--{flag}={port}" for flag, port in zip(flags, ports, strict=True)]
    command += ["--dashboard-host", "127.0.0.1", "--node-ip-address", "127.0.0.1"]
    command += ["--object-store-memory", "100000000", "--disable-usage-stats"]
    log = log_path.open("wb")
    server = subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    address = f"http://127.0.0.1:{ports[1]}"
    try:
        wait_until_ready(address, environment, server, log_path)
        yield address, environment
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the session that was started here, and only that
        server.wait(timeout=60)
        shutil.rmtree(temp, ignore_errors=True)


def wait_until_ready(
    address: str, environment: dict[str, str], server: subprocess.Popen[bytes], log: Path
) -> None:
    """Until a job is taken: the dashboard answers some seconds before its agent does."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        asked = subprocess.run(
            [RAY, "job", "submit", "--no-wait", "--address", address, "--", "true"],
            env=environment,
            capture_output=True,
        )
        if asked.returncode == 0:
            return
        time.sleep(1)
    raise AssertionError(log.read_text())


def test_a_submitted_job_succeeds(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    """Logs are followed to SUCCEEDED, and the features are there."""
    address, environment = head
    slides = write_cohort(tmp_path / "slides", num_slides=2)
    submit = [RAY, "job", "submit", "--address", address, "--working-dir", str(ROOT / "jobs")]
    submit += ["--", sys.executable, "embed.py", "debug", "--slides", str(slides)]
    submit += ["--out", str(tmp_path / "features"), "--no-tracking"]
    ended = subprocess.run(submit, env=environment, capture_output=True, text=True, timeout=300)
    log = ended.stdout + ended.stderr
    assert ended.returncode == 0, log
    assert "succeeded" in log.lower()
    assert "embed: complete" in log
    written = sorted((tmp_path / "features").glob("*.h5"))
    assert len(written) == 2
    for path in written:
        assert len(read_features(path, check="full").features) > 0


def test_without_the_token_nothing_is_submitted(head: tuple[str, dict[str, str]]) -> None:
    address, environment = head
    stranger = environment | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ended = subprocess.run(
        [RAY, "job", "submit", "--address", address, "--", "true"],
        env=stranger,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode != 0
