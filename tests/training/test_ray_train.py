"""A group of ranks under Ray Train: lost workers, nodes that go, errors, other numbers of ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import pytest
import torch

from mstar.errors import StorageError, TrainingError, WorkerError
from mstar.storage import objects
from mstar.training.engines import EngineConfig
from mstar.training.group_config import GroupConfig
from mstar.training.ray_train import train_on_ray
from mstar.training.sessions import found_checkpoints
from support import engine_steps
from support.ray_steps import Plan, notes_of, train
from support.s3 import make_bucket

pytestmark = pytest.mark.ray

PLAIN = EngineConfig(engine="plain", precision="fp32")
ZERO2 = EngineConfig(engine="deepspeed", zero_stage=2, precision="fp32")
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _quick_controller(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    monkeypatch.setenv("RAY_TRAIN_METRICS_ENABLED", "0")


def run(
    plan: Plan,
    storage: str,
    *,
    workers: int = 2,
    restarts: int = 0,
    upload: Literal["sync", "async"] = "sync",
) -> None:
    group = GroupConfig(
        workers=workers,
        cpus_per_worker=0.5,
        max_restarts=restarts,
        keep_checkpoints=1,
        upload=upload,
    )
    train_on_ray(train, plan, group, name="run", storage=storage, env={"OMP_NUM_THREADS": "1"})


def assert_trained(notes: Path, *, workers: int = 2) -> None:
    """As torch alone does it, on every rank."""
    wanted = engine_steps.by_hand().parameters
    for rank in range(workers):
        found = torch.load(notes / f"rank{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6)


def test_a_lost_worker_costs_no_more_than_the_steps_since_the_checkpoint(tmp_path: Path) -> None:
    plan = Plan(notes=str(tmp_path), engine=PLAIN, dies_at=3)
    orphan = tmp_path / "storage" / "run" / "step-00000009-w2-deadbeef" / "plain.pt"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"half of a file")
    run(plan, str(tmp_path / "storage"), restarts=1)
    for rank in ("rank0", "rank1"):
        assert notes_of(tmp_path, rank) == ["0 of 2", "2 of 2"]
    assert_trained(tmp_path)
    names = found_checkpoints(str(tmp_path / "storage" / "run"))
    assert [name[:16] for name in names] == [f"step-{engine_steps.STEPS:08d}-w2"], "one is kept"


@pytest.mark.slow
def test_with_uploads_beside_training_a_lost_worker_costs_one_checkpoint_more_at_most(
    tmp_path: Path,
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    plan = Plan(notes=str(tmp_path), engine=PLAIN, dies_at=5, scratch=str(scratch))
    run(plan, str(tmp_path / "storage"), restarts=1, upload="async")
    first, second = notes_of(tmp_path, "rank0")
    assert first == "0 of 2"
    assert second in ("2 of 2", "4 of 2")
    assert_trained(tmp_path)
    names = found_checkpoints(str(tmp_path / "storage" / "run"))
    assert [name[:16] for name in names][-1] == f"step-{engine_steps.STEPS:08d}-w2"
    left = {path.name for path in scratch.iterdir()}
    assert len(left) <= 2, "only what the killed group was about to copy"


@pytest.mark.slow
def test_an_error_of_a_rank_comes_out_as_itself_and_is_not_tried_again(tmp_path: Path) -> None:
    plan = Plan(notes=str(tmp_path), engine=PLAIN, fails_with="nan")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingError, match="expected a finite loss, got nan"):
        run(plan, str(tmp_path / "storage"), restarts=3)
    assert notes_of(tmp_path, "rank1") == ["0 of 2"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_a_node_that_is_announced_to_go_does_not_count_as_a_failure(tmp_path: Path) -> None:
    plan = Plan(notes=str(tmp_path), engine=PLAIN, node_goes_at=0)
    run(plan, str(tmp_path / "storage"), restarts=0)
    for rank in ("rank0", "rank1"):
        assert notes_of(tmp_path, rank) == ["0 of 2", "1 of 2"]
    assert_trained(tmp_path)


@pytest.mark.slow
def test_trouble_that_can_pass_is_tried_again_as_often_as_allowed(tmp_path: Path) -> None:
    plan = Plan(notes=str(tmp_path), engine=PLAIN, fails_with="storage")
    with pytest.raises(StorageError, match="the bucket is gone"):
        run(plan, str(tmp_path / "storage"), restarts=1)
    assert notes_of(tmp_path, "rank1") == ["0 of 2"] * 2


@pytest.mark.slow
def test_deepspeed_on_object_storage_goes_on_with_fewer_ranks(
    tmp_path: Path, s3_server: str
) -> None:
    storage = f"{make_bucket('mstar-ray-train')}/checkpoints"
    plan = Plan(notes=str(tmp_path), engine=ZERO2, dies_at=5)
    group = GroupConfig(workers=2, cpus_per_worker=0.5, max_restarts=0)
    with pytest.raises(WorkerError, match="The same command goes on"):
        train_on_ray(train, plan, group, name="run", storage=storage)
    alone = GroupConfig(workers=1, cpus_per_worker=0.5, max_restarts=0)
    train_on_ray(train, plan, alone, name="run", storage=storage)
    assert notes_of(tmp_path, "rank0") == ["0 of 2", "4 of 1"]
    assert_trained(tmp_path, workers=1)
    assert all(info.size_bytes for info in objects.list_files(f"{storage}/run", suffix=".pt"))


DRIVER = """
import sys, os
import ray
from mstar.errors import InterruptedRunError
from mstar.training.engines import EngineConfig
from mstar.training.interrupts import stop_on_sigterm
from mstar.training.ray_train import GroupConfig, train_on_ray
from support.ray_steps import Plan, sleepy
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
stop_on_sigterm()
plan = Plan(notes=sys.argv[1], engine=EngineConfig(engine="plain", precision="fp32"))
try:
    train_on_ray(sleepy, plan, GroupConfig(workers=1), name="run", storage=sys.argv[1] + "/s")
except InterruptedRunError as error:
    print("interrupted:", error)
    sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_driver_told_to_stop_says_so(tmp_path: Path, how: signal.Signals) -> None:
    """Ray's own handler of Ctrl-C would end the process with code 0, as if all were done."""
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    job = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        while job.poll() is None and not (tmp_path / "started").exists():
            time.sleep(0.1)
        job.send_signal(how)
        said, _ = job.communicate(timeout=120)
        assert job.returncode == 130
        assert f"interrupted: stopped by {how.name}" in said
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
