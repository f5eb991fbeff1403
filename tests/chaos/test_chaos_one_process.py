"""The cheapest cells of the table, without Ray: a store in trouble, a full disk, expired keys.

Stage 2 and the teacher pass run in this process; the object store is a real server behind a proxy
whose line goes bad right after some of the work is done. The slow cells are in the files beside.
"""

from __future__ import annotations

import errno
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from mstar.errors import StorageError
from mstar.pretrain import stage2_finish, stage2_prepare, targets_job
from mstar.pretrain.stage2 import read_facts, run
from mstar.pretrain.targets_worker import TargetsWorker
from mstar.storage import local, objects, retry
from mstar.training.cluster import ClusterShape
from mstar.training.exit_codes import ExitCode
from mstar.training.group_config import GroupConfig
from mstar.training.run_log import RunLog
from mstar.training.sessions import Session
from support.chaos_jobs import upload
from support.chaos_proxy import ChaosProxy, Fault
from support.s3 import make_bucket, s3_environment
from support.stage2_runs import losses_of, recorded, small_run, write_stage2_shards
from support.target_inputs import TargetInputs, digests, write_target_inputs
from support.threads import one_thread

AWAY_S = 2.5  # of the minute that is ridden out (the slow cells wait for it)
SLIDES = {f"c{i}": {f"c{i}-s": 20 + 9 * i} for i in range(5)}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """For the undisturbed runs too: sums over two threads differ in the last bit."""
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage2_finish, "curves", lambda *_: None)
    monkeypatch.setattr(stage2_finish, "neighbours", lambda *_: None)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chaos") / "T"
    write_stage2_shards(folder / "shards")
    return folder


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a stage 2 leaves that nothing befalls."""
    out = tmp_path_factory.mktemp("chaos-whole") / "out"
    with pytest.MonkeyPatch.context() as patch, recorded(out, "all"):
        patch.setattr(stage2_finish, "curves", lambda *_: None)
        patch.setattr(stage2_finish, "neighbours", lambda *_: None)
        assert run(small_run(shards, out)) == ExitCode.COMPLETE
    return out


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> TargetInputs:
    return write_target_inputs(tmp_path_factory.mktemp("chaos-targets"), SLIDES)


@pytest.fixture(scope="module")
def targets(inputs: TargetInputs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of what an undisturbed teacher pass leaves."""
    out = tmp_path_factory.mktemp("chaos-undisturbed")
    assert targets_job.run(inputs.config(out)) == ExitCode.COMPLETE
    return digests(out)


@pytest.fixture
def bucket(s3_server: str) -> str:
    return f"{make_bucket('chaos-one')}/{secrets.token_hex(4)}"


def after_step(patch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Do something once, right after a step of stage 2 was logged."""
    append, left = RunLog.append, [act]

    def acting(self: RunLog, done: int, metrics: Mapping[str, float]) -> None:
        append(self, done, metrics)
        if done == step and left:
            left.pop()()

    patch.setattr(RunLog, "append", acting)


def for_a_while(proxy: ChaosProxy, fault: Fault) -> None:
    """The fault from now on, for AWAY_S."""
    proxy.set_fault(fault)
    timer = threading.Timer(AWAY_S, proxy.set_fault, ("",))
    timer.daemon = True
    timer.start()


def assert_same_run(out: str, state: Path, whole: Path) -> None:
    assert losses_of(state) == losses_of(whole)
    ours, theirs = read_facts(out), read_facts(str(whole))
    assert ours["weights_sha256"]["encoder.pth"] == theirs["weights_sha256"]["encoder.pth"]


@pytest.mark.parametrize("fault", ["cut", "503"])
def test_stage_2_rides_out_a_store_in_trouble(
    fault: Fault,
    shards: Path,
    whole: Path,
    bucket: str,
    s3_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shards, checkpoints and output in the store, which goes away before a checkpoint is due."""
    monkeypatch.setenv("MSTAR_STATE", str(tmp_path))
    upload(shards, f"{bucket}/T")
    before = retry.retries_made()
    with ChaosProxy(s3_server) as proxy, s3_environment(proxy.endpoint):
        after_step(monkeypatch, 5, lambda: for_a_while(proxy, fault))
        config = replace(small_run(shards, tmp_path), shards=f"{bucket}/T", out=f"{bucket}/out")
        assert run(config) == ExitCode.COMPLETE
        assert proxy.met[fault] > 0
    assert retry.retries_made() > before
    (state,) = tmp_path.glob("run-*")
    assert_same_run(f"{bucket}/out", state, whole)


def test_stage_2_with_keys_that_expire_says_so_and_goes_on_with_fresh_ones(
    shards: Path,
    whole: Path,
    bucket: str,
    s3_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MSTAR_STATE", str(tmp_path))
    config = replace(small_run(shards, tmp_path), out=f"{bucket}/out")
    with ChaosProxy(s3_server) as proxy, s3_environment(proxy.endpoint):
        after_step(monkeypatch, 5, lambda: proxy.set_fault("expired"))
        with pytest.raises(StorageError, match=r"ExpiredToken.*set fresh ones, then rerun"):
            run(config)
        proxy.set_fault("")
        assert run(config) == ExitCode.COMPLETE
    (state,) = tmp_path.glob("run-*")
    assert "resumed at step 3" in (state / "log.txt").read_text()
    assert_same_run(f"{bucket}/out", state, whole)


def test_stage_2_on_a_disk_that_fills_up_says_so_and_goes_on_when_there_is_room(
    shards: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file below the output can be written any more, from the second checkpoint on."""
    out = tmp_path / "out"
    full = no_room_below(out, monkeypatch)
    with monkeypatch.context() as patch:
        after_step(patch, 5, full.set)
        with pytest.raises(StorageError, match="The disk is full: free some space"):
            run(small_run(shards, out))
    full.clear()
    assert run(small_run(shards, out)) == ExitCode.COMPLETE
    assert "resumed at step 3" in (out / "log.txt").read_text()
    assert_same_run(str(out), out, whole)


def no_room_below(folder: Path, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While the event is set, the folder's disk takes names but no bytes, as a full one does."""
    full, flush = threading.Event(), local._flush

    def flushed(number: int) -> None:
        path = Path(f"/proc/self/fd/{number}").readlink()
        if full.is_set() and folder in path.parents:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        flush(number)

    monkeypatch.setattr(local, "_flush", flushed)
    return full


@pytest.mark.parametrize(("cpus", "through_ray"), [(2.0, False), (2.2, False), (2.25, True)])
def test_without_cpus_left_for_reading_tasks_the_workers_read_themselves(
    cpus: float,
    through_ray: bool,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As after the loss of a node: tasks that no CPU is left for would be waited for in silence."""
    shape = ClusterShape(num_nodes=1, num_cpus=cpus, num_gpus=0, smallest_node_cpus=cpus)
    monkeypatch.setattr(stage2_prepare, "cluster_shape", lambda: shape)
    session = Mock(spec=Session, rank=0, world_size=2)
    config = small_run(shards, tmp_path, group=GroupConfig(workers=2, cpus_per_worker=1.0))
    assert stage2_prepare.reads_through_ray(config, session) == through_ray
    assert ("they read the shards themselves" in caplog.text) != through_ray


@pytest.mark.parametrize("fault", ["cut", "503"])
def test_targets_ride_out_a_store_in_trouble(
    fault: Fault,
    inputs: TargetInputs,
    targets: dict[str, str],
    bucket: str,
    s3_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Features come from the store and targets go there; it goes away after the second case."""
    upload(inputs.features, f"{bucket}/f")
    num_written, write = [0], TargetsWorker._write
    with ChaosProxy(s3_server) as proxy, s3_environment(proxy.endpoint):

        def writing(self: TargetsWorker, work: object) -> None:
            write(self, work)  # type: ignore[arg-type]
            num_written[0] += 1
            if num_written[0] == 2:
                for_a_while(proxy, fault)

        monkeypatch.setattr(TargetsWorker, "_write", writing)
        cache = {"cache_dir": str(tmp_path / "cache")}
        config = inputs.config(f"{bucket}/out", features=f"{bucket}/f", **cache)
        assert targets_job.run(config) == ExitCode.COMPLETE
        assert proxy.met[fault] > 0
    for info in objects.list_files(f"{bucket}/out/targets"):
        path = tmp_path / "fetched" / "targets" / info.rel
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(objects.read_bytes(info.uri))
    assert digests(tmp_path / "fetched") == targets
