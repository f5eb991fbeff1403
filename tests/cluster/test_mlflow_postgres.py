"""The MLflow server of `cluster/services` on a real PostgreSQL, written to by our tracking."""

import contextlib
import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy

from mstar.training.tracking import SpoolTracker, replay, start_tracking
from support.postgres import running_postgres
from support.s3 import free_ports

pytestmark = (
    pytest.mark.slow
)  # two servers and their migrations: a minute and more on a busy machine

MLFLOW = str(Path(sys.executable).with_name("mlflow"))


@dataclass(frozen=True, kw_only=True)
class Services:
    """Where the two servers are."""

    database: str
    mlflow: str
    artifacts: Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What stands in for the config of a job."""

    lr: float = 0.1
    secret_free: str = "yes"


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """PostgreSQL and MLflow; the database driver is the one that the services' image installs."""
    if importlib.util.find_spec("psycopg2") is None:
        pytest.skip("psycopg2 is not installed here")
    folder = tmp_path_factory.mktemp("mlflow")
    with (
        running_postgres(secrets.token_hex(8)) as database,
        running_mlflow(folder, database, str(folder / "artifacts")) as address,
    ):
        yield Services(database=database, mlflow=address, artifacts=folder / "artifacts")


@contextlib.contextmanager
def running_mlflow(folder: Path, database: str, artifacts: str, **more: str) -> Iterator[str]:
    """The command of `cluster/services/Dockerfile`, configured by the same variables."""
    (port,) = free_ports(1)
    environment = (
        os.environ
        | more
        | {
            "MLFLOW_BACKEND_STORE_URI": database,
            "MLFLOW_ARTIFACTS_DESTINATION": artifacts,
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port}",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
    )
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [MLFLOW, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(address, server, folder / "server.log")
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)  # its workers too
        server.wait(timeout=30)


def wait_until_healthy(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 400
    while True:
        assert server.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        time.sleep(0.2)


def a_run(tmp_path: Path, uri: str) -> tuple[str, str]:
    """One run of a job through our tracking: its id, and what it said at the end."""
    out = str(tmp_path / "out")
    tracker = start_tracking("embed", Settings(), out=out, uri=uri, finish_wait_s=240.0)
    assert isinstance(tracker, SpoolTracker)
    for step in range(1500):  # more than one of MLflow's batches
        tracker.log_metrics({"patches_per_s": float(step)}, step=step)
    tracker.log_text("two slides failed", "failures.txt")
    said = tracker.finish()
    return tracker.run_id, said


def test_a_run_is_read_back_whole(services: Services, tmp_path: Path) -> None:
    """Params, tags, every metric and the artifact, by MLflow's client and from the database."""
    from mlflow.tracking import MlflowClient

    run_id, said = a_run(tmp_path, services.mlflow)
    assert said == f"run {run_id} in MLflow at {services.mlflow}"
    client = MlflowClient(tracking_uri=services.mlflow)
    experiment = client.get_experiment_by_name("embed")
    assert experiment is not None
    (run,) = client.search_runs(
        [experiment.experiment_id], filter_string=f"tags.`mstar.run_id` = '{run_id}'"
    )
    assert run.info.status == "FINISHED"
    assert run.data.params["lr"] == "0.1"
    history = client.get_metric_history(run.info.run_id, "patches_per_s")
    assert sorted(point.value for point in history) == [float(step) for step in range(1500)]
    (kept,) = services.artifacts.rglob("failures.txt")  # by way of the server, not of the client
    assert kept.read_text() == "two slides failed"
    engine = sqlalchemy.create_engine(services.database)
    with engine.connect() as connection:
        query = sqlalchemy.text("SELECT count(*) FROM metrics WHERE run_uuid = :run")
        assert connection.execute(query, {"run": run.info.run_id}).scalar() == 1500
    engine.dispose()


def test_a_foreign_host_name_is_refused(services: Services) -> None:
    """Pages of other sites cannot reach the server through a visitor's browser."""
    request = urllib.request.Request(
        f"{services.mlflow}/api/2.0/mlflow/experiments/search?max_results=1",
        headers={"Host": "evil.example"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    assert refused.value.code == 403
    refused.value.close()


@pytest.mark.slow
def test_artifacts_go_to_s3_and_only_the_server_has_the_keys(
    s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of `cluster/services`: PostgreSQL, SeaweedFS, MLflow; the job knows no key."""
    if importlib.util.find_spec("boto3") is None:
        pytest.skip("boto3, which MLflow's S3 artifacts need, is not installed here")
    import s3fs

    keys = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    files = s3fs.S3FileSystem(
        endpoint_url=s3_server, key=keys["AWS_ACCESS_KEY_ID"], secret=keys["AWS_SECRET_ACCESS_KEY"]
    )
    files.mkdir("mlflow-services")
    with (
        running_postgres(secrets.token_hex(8)) as database,
        running_mlflow(
            tmp_path, database, "s3://mlflow-services/a", MLFLOW_S3_ENDPOINT_URL=s3_server
        ) as address,
    ):
        for name in (*keys, "AWS_ENDPOINT_URL"):
            monkeypatch.delenv(name)
        a_run(tmp_path, address)
    files.invalidate_cache()
    (kept,) = [path for path in files.find("mlflow-services") if path.endswith("failures.txt")]
    assert files.cat(kept) == b"two slides failed"


@pytest.mark.slow
def test_runs_of_a_server_that_was_away_arrive_later(tmp_path: Path) -> None:
    """The server dies under a job and comes back: the spool holds the run, and is sent again."""
    if importlib.util.find_spec("psycopg2") is None:
        pytest.skip("psycopg2 is not installed here")
    out = tmp_path / "out"
    with running_postgres(secrets.token_hex(8)) as database:
        with running_mlflow(tmp_path, database, str(tmp_path / "artifacts")) as address:
            tracker = start_tracking(
                "embed", Settings(), out=str(out), uri=address, finish_wait_s=15.0
            )
            assert isinstance(tracker, SpoolTracker)
            tracker.log_metrics({"a": 1.0}, step=1)
        tracker.log_metrics({"a": 2.0}, step=2)
        assert "send it later" in tracker.finish()
        with running_mlflow(tmp_path, database, str(tmp_path / "artifacts")) as address:
            replay(tracker.folder, uri=address, timeout_s=120)
            with urllib.request.urlopen(address + "/health", timeout=5):
                pass
            engine = sqlalchemy.create_engine(database)
            with engine.connect() as connection:
                found = connection.execute(sqlalchemy.text("SELECT value FROM metrics")).scalars()
                assert sorted(found) == [1.0, 2.0]
            engine.dispose()
    assert json.loads((tracker.folder / "position.json").read_text())["done"] is True
