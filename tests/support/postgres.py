"""A PostgreSQL server of its own for a test, on the loopback interface."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.s3 import free_ports

PLACES = ("/usr/local/bin", *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")))[::-1])
USER = "mlflow"


def programs() -> Path:
    """The folder of `initdb` and `postgres`; the test is skipped where there is none."""
    for folder in (*os.environ.get("PATH", "").split(":"), *PLACES):
        if os.access(f"{folder}/initdb", os.X_OK) and os.access(f"{folder}/postgres", os.X_OK):
            return Path(folder, "initdb").resolve().parent
    pytest.skip("PostgreSQL is not installed here (Debian: apt install postgresql)")


def as_other_user() -> list[str]:
    """The start of a command: PostgreSQL refuses to run as root, so root becomes `nobody`."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("root cannot run PostgreSQL, and setpriv is not installed here")
    return [setpriv, "--reuid", "65534", "--regid", "65534", "--clear-groups"]


@contextlib.contextmanager
def running_postgres(password: str) -> Iterator[str]:
    """A server with an empty database; yields its address for SQLAlchemy.

    The driver is named, since the default of SQLAlchemy 2.1 is psycopg 3, which is not locked.
    """
    found, become = programs(), as_other_user()
    # Not below pytest's folders: those are closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        (folder / "password").write_text(password)
        if become:
            for path in (folder, folder / "password"):
                os.chown(path, 65534, 65534)
        make = [*become, str(found / "initdb"), "--pgdata", str(folder / "data")]
        make += ["--username", USER, "--auth", "scram-sha-256", "--no-sync", "--encoding", "UTF8"]
        made = subprocess.run(
            [*make, "--locale", "C", "--pwfile", str(folder / "password")],
            capture_output=True,
            text=True,
            cwd="/",
        )
        assert made.returncode == 0, made.stderr
        with _serving(found, become, folder) as port:
            yield f"postgresql+psycopg2://{USER}:{password}@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _serving(found: Path, become: list[str], folder: Path) -> Iterator[int]:
    (port,) = free_ports(1)
    command = [*become, str(found / "postgres"), "-D", str(folder / "data"), "-p", str(port)]
    command += ["-h", "127.0.0.1", "-k", str(folder), "-c", "fsync=off"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
    try:
        deadline = time.monotonic() + 60
        ready = [str(found / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-q"]
        while subprocess.run(ready).returncode != 0:
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait(timeout=30)
