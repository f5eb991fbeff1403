"""Fixtures of the storage tests: every property must hold on a disk and on a real S3 server."""

from __future__ import annotations

import multiprocessing
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from mstar.storage import retry
from support.s3 import CountingProxy, make_bucket, s3_environment


@pytest.fixture(scope="session")
def _whole_bucket(s3_server: str) -> str:
    return make_bucket("mstar-storage")


@pytest.fixture
def bucket(_whole_bucket: str) -> str:
    """A folder of a test's own in a bucket."""
    return f"{_whole_bucket}/{secrets.token_hex(6)}"


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on each kind of storage."""
    if request.param == "disk":
        return str(tmp_path / "root")
    return str(request.getfixturevalue("bucket"))


@pytest.fixture
def proxy(s3_server: str) -> Iterator[CountingProxy]:
    """The S3 server through a proxy that counts and fails on request."""
    with CountingProxy(s3_server) as proxy, s3_environment(proxy.endpoint):
        assert os.environ["AWS_ENDPOINT_URL"] == proxy.endpoint
        yield proxy


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Retries follow at once; collects which try each followed."""
    tries: list[int] = []

    def at_once(_: retry.RetryPolicy, tries_made: int) -> float:
        tries.append(tries_made)
        return 0.0

    monkeypatch.setattr(retry.RetryPolicy, "wait_s", at_once)
    return tries


@pytest.fixture(autouse=True)
def no_child_outlives_its_test() -> Iterator[None]:
    """A failed test leaves its hanging or stopped child; the run would wait for it at its end."""
    yield
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
