"""A sweep that ends leaves no packed bags in the shared memory of its nodes."""

from __future__ import annotations

import fcntl
import secrets
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from mstar.downstream import nodes, sweep
from mstar.downstream.bag_files import shared_root
from mstar.training.cluster import ClusterShape
from support.planted_sweep import EASY, plant, sweep_config


@pytest.fixture
def shared() -> Iterator[list[Path]]:
    """Two files as `load_bags` leaves them in shared memory."""
    root = shared_root()
    root.mkdir(mode=0o700, exist_ok=True)
    files = [root / f"test-{secrets.token_hex(8)}.bags" for _ in range(2)]
    for path in files:
        path.write_bytes(bytes(1000))
    yield files
    for path in files:
        path.unlink(missing_ok=True)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_what_nobody_holds_goes_from_every_node(shared: list[Path]) -> None:
    """A file that another job holds stays until that lets go of it."""
    held, free = shared
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert nodes.drop_shared_bags() >= 1000
        assert held.exists()
        assert not free.exists()
    assert nodes.drop_shared_bags() >= 1000
    assert not held.exists()


@pytest.mark.parametrize("own_folder", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_it_is_done_however_the_work_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_folder: bool, fails: bool
) -> None:
    """Not where the user chose a folder for the bags: that one is kept for the next job."""
    dropped: list[bool] = []

    def work(*_: Any, **__: Any) -> None:
        assert not dropped
        if fails:
            raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_pieces", work)
    monkeypatch.setattr(sweep, "drop_shared_bags", lambda: dropped.append(True))
    monkeypatch.setattr(sweep, "ray_session", no_session)
    settings = plant(tmp_path, (EASY,)) | {"heads": ("linear",)}
    config = sweep_config(settings, cache_dir=str(tmp_path / "c") if own_folder else None)
    with pytest.raises(KeyboardInterrupt) if fails else nullcontext():
        sweep.run(config)
    assert bool(dropped) != own_folder


def no_session(_: object) -> Any:
    """In the place of Ray: the shape of a machine."""
    return nullcontext(ClusterShape(num_nodes=1, num_cpus=2, num_gpus=0, smallest_node_cpus=2))
