"""Object storage that is cut off, overloaded or slow, keys that expire, disks that fill up.

Inputs and outputs of a job lie behind a proxy whose line goes bad in the middle of the work. What
passes is ridden out; what does not stops the job with a message that says what to do, and the same
command goes on afterwards. Either way the result is the undisturbed run's, to the last bit:
training jobs run in one process here.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from support.chaos_cluster import ChaosCluster
from support.chaos_disk import SmallDisk
from support.chaos_jobs import ChaosJob, Places, Running, results_of, upload
from support.chaos_proxy import ChaosProxy, Fault
from support.s3 import make_bucket, s3_environment

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1500)]

ALL_JOBS = ("embed", "stage1", "targets", "stage2", "sweep")
WORKERS = {"embed": 2, "stage1": 0, "targets": 0, "stage2": 0, "sweep": 2}
ALONE = {"stage1": 0, "targets": 0, "stage2": 0}  # workers of the undisturbed run, else 2
BAD_S: dict[Fault, float] = {"cut": 30.0, "503": 60.0, "slow": 60.0, "late": 30.0}


@pytest.fixture(scope="session")
def uploaded(s3_server: str, inputs_of: Callable[[str], Path]) -> Callable[[str], str]:
    """Where a job's inputs are in the object store."""
    found: dict[str, str] = {}

    def put(name: str) -> str:
        if name not in found:
            found[name] = f"{make_bucket('chaos')}/{name}"
            upload(inputs_of(name), found[name])
        return found[name]

    return put


@pytest.fixture
def remote(
    job: ChaosJob, uploaded: Callable[[str], str], inputs_of: Callable[[str], Path], tmp_path: Path
) -> Places:
    """A job's places with inputs and output in the object store."""
    return Places(
        inputs=uploaded(job.name),
        out=f"s3://chaos/out-{secrets.token_hex(4)}",
        notes=tmp_path / "notes",
        workers=WORKERS[job.name],
        models=str(inputs_of(job.name)),
    )


@contextlib.contextmanager
def behind(proxy: ChaosProxy, workers: int) -> Iterator[dict[str, str]]:
    """A cluster, where the job needs one, whose nodes see the object store through the proxy."""
    with s3_environment(proxy.endpoint), contextlib.ExitStack() as stack:
        if not workers:
            yield {}
            return
        cluster = stack.enter_context(ChaosCluster(nodes=workers, cpus=2))
        yield {"RAY_ADDRESS": cluster.address}


@pytest.mark.parametrize("fault", ["cut", "503", "slow"])
@pytest.mark.parametrize("job", ALL_JOBS, indirect=True)
def test_an_object_store_in_trouble(
    job: ChaosJob, fault: Fault, remote: Places, s3_server: str, undisturbed: Any
) -> None:
    """The run goes on by itself when the store is back."""
    expected = undisturbed(job.name, ALONE.get(job.name, 2))
    with ChaosProxy(s3_server) as proxy, behind(proxy, remote.workers) as env:
        running = Running(job, remote, env=env)
        running.wait_for_the_middle(out=remote.out)
        with proxy.bad(fault):
            time.sleep(BAD_S[fault])
        assert proxy.met[fault] > 0, "nobody asked the store meanwhile"
        assert running.end() == 0, running.tail
    assert results_of(job, remote) == expected


@pytest.mark.parametrize("job", ALL_JOBS, indirect=True)
def test_keys_that_expire(job: ChaosJob, remote: Places, s3_server: str, undisturbed: Any) -> None:
    """The job ends and says why; with fresh keys the same command goes on."""
    expected = undisturbed(job.name, ALONE.get(job.name, 2))
    with ChaosProxy(s3_server) as proxy, behind(proxy, remote.workers) as env:
        running = Running(job, remote, env=env)
        running.wait_for_the_middle(out=remote.out)
        with proxy.bad("expired"):
            assert running.end() != 0
        assert re.search("ExpiredToken|EXPIRED_TOKEN|token has expired", running.said), running.tail
        again = Running(job, remote, env=env)
        assert again.end() == 0, again.tail
    assert results_of(job, remote) == expected


@pytest.mark.parametrize("job", ALL_JOBS, indirect=True)
def test_a_full_disk(
    job: ChaosJob, inputs_of: Callable[[str], Path], tmp_path: Path, undisturbed: Any
) -> None:
    """Somebody else fills the disk that the output is on; room is made, and the job run again."""
    workers = {"embed": 1, "sweep": 2}.get(job.name, 0)
    expected = undisturbed(job.name, ALONE.get(job.name, 2))
    with small_disk() as disk:
        out = str(disk.path / "out")
        places = Places(
            inputs=str(inputs_of(job.name)), out=out, notes=tmp_path / "notes", workers=workers
        )
        running = Running(job, places, env={}, prefix=disk.enter)
        running.wait_for_the_middle(out=str(disk.seen_from_outside / "out"))
        filler = fill(disk.seen_from_outside)
        assert running.end() != 0, "it did not notice"
        assert "disk is full" in running.said, running.tail
        filler.unlink()
        again = Running(job, places, env={}, prefix=disk.enter)
        assert again.end() == 0, again.tail
        assert job.result(disk.seen_from_outside / "out", places.notes) == expected


def small_disk() -> SmallDisk:
    try:
        return SmallDisk(megabytes=64)
    except OSError as error:
        pytest.skip(str(error))


def fill(folder: Path) -> Path:
    """A file that takes all the room there is."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with pytest.raises(OSError, match="No space left"):
                write_for_ever(file, bytes(size))
    return path


def write_for_ever(file: FileIO, data: bytes) -> None:
    while True:
        file.write(data)
