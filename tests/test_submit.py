"""`ray job submit -- python jobs/embed.py …` on a Ray head of its own, token authentication on."""

import os
import secrets
import signal
import subprocess
import sys
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
    port, dashboard, client = free_ports(3)
    environment = {name: v for name, v in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    temp = tmp_path_factory.mktemp("r")
    command = [RAY, "start", "--head", "--block", "--port", str(port), "--num-cpus", "2"]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)]
    command += ["--node-ip-address", "127.0.0.1", "--ray-client-server-port", str(client)]
    command += ["--object-store-memory", "100000000"]
    log = (temp / "head.log").open("wb")
    server = subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_until_ready(address, environment, server, temp / "head.log")
        yield address, environment
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the session that was started here, and only that
        server.wait(timeout=60)


def wait_until_ready(
    address: str, environment: dict[str, str], server: subprocess.Popen[bytes], log: Path
) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        asked = subprocess.run(
            [RAY, "job", "list", "--address", address], env=environment, capture_output=True
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
