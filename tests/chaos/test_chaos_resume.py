"""Stage 2 killed as a whole: gone on with from an object store, and with fewer workers."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mstar.storage import objects
from support.chaos_cluster import ChaosCluster
from support.chaos_jobs import JOBS, Places, Running, assert_same, files, results_of, upload
from support.s3 import make_bucket
from support.stage2_runs import ROWS, STEPS_AN_EPOCH

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1500)]

STAGE2 = JOBS["stage2"]


def killed_in_the_middle(places: Places, cluster: ChaosCluster) -> None:
    """The driver and all that it started get SIGKILL; the workers end when Ray misses it."""
    second = replace(STAGE2, middle=2)  # the first is whole when the second begins
    running = Running(second, places, env={"RAY_ADDRESS": cluster.address})
    running.wait_for_the_middle()
    running.kill()
    assert not objects.exists(objects.join(places.out, "stage2.json"))


def test_from_an_object_store(
    s3_server: str,
    inputs_of: Callable[[str], Path],
    tmp_path: Path,
    undisturbed: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shards, checkpoints and output on s3://; the second attempt starts from a checkpoint there.

    Nothing of the run is on the machines that go on with it: the nodes' state folder is empty.
    """
    expected = undisturbed("stage2", 0)
    root = f"{make_bucket('chaos')}/stage2-{secrets.token_hex(4)}"
    upload(inputs_of("stage2"), f"{root}/in")
    places = Places(inputs=f"{root}/in", out=f"{root}/out", notes=tmp_path / "notes")
    monkeypatch.setenv("MSTAR_STATE", str(tmp_path / "state"))  # of the nodes
    with ChaosCluster(nodes=2) as cluster:
        killed_in_the_middle(places, cluster)
        (tmp_path / "state").rename(tmp_path / "state-of-the-first-machines")
        again = Running(STAGE2, places, env={"RAY_ADDRESS": cluster.address})
        assert again.end() == 0, again.tail
    said = objects.read_bytes(f"{places.out}/log.txt").decode()
    assert "resumed at step" in said
    assert files("checkpoints/*/*/train_state.json")(places.out) <= 2, "old ones are deleted"
    assert_same(STAGE2, results_of(STAGE2, places), expected)


def test_with_one_worker_instead_of_two(
    inputs_of: Callable[[str], Path], tmp_path: Path, undisturbed: Any
) -> None:
    """DeepSpeed's ZeRO-2 files of two ranks are made universal and read by one."""
    expected = undisturbed("stage2", 0)
    places = Places(
        inputs=str(inputs_of("stage2")), out=str(tmp_path / "out"), notes=tmp_path / "notes"
    )
    with ChaosCluster(nodes=2) as cluster:
        killed_in_the_middle(places, cluster)
        fewer = replace(places, workers=1)
        again = Running(STAGE2, fewer, env={"RAY_ADDRESS": cluster.address})
        assert again.end() == 0, again.tail
    said = (tmp_path / "out" / "log.txt").read_text()
    assert "workers changed from 2 to 1" in said
    found = results_of(STAGE2, places)
    assert_same(STAGE2, found, expected)
    for epoch in range(4):
        steps = range(epoch * STEPS_AN_EPOCH, (epoch + 1) * STEPS_AN_EPOCH)
        trained = Counter(patch for step in steps for patch in found["patches"][str(step)])
        assert len(trained) == ROWS
        assert set(trained.values()) == {1}
