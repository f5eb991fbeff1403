"""The helper that other tests trust: it must not hide a rank's failure, nor wait for ever."""

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from support.ranks import RankDiedError, run_ranks


class OwnError(Exception):
    """Of this module, which the ranks cannot import."""


def total(number: int) -> tuple[int, float, int]:
    value = torch.tensor([float(dist.get_rank() + number)])
    dist.all_reduce(value)
    return dist.get_rank(), float(value), torch.get_num_threads()


def fail_on_one() -> None:
    if dist.get_rank() == 1:
        raise OwnError("boom")
    dist.barrier()


def die_on_one() -> None:
    if dist.get_rank() == 1:
        os._exit(7)
    dist.barrier()


def hang_on_one(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    if dist.get_rank() == 1:
        time.sleep(60)


def test_results_come_in_the_order_of_ranks() -> None:
    assert run_ranks(total, 2, 3) == [(0, 7.0, 1), (1, 7.0, 1)]


def test_an_error_of_one_rank_comes_out_as_itself() -> None:
    with pytest.raises(OwnError, match="boom") as info:
        run_ranks(fail_on_one, 2)
    assert "on rank 1" in info.value.__notes__[0]


def test_a_dead_rank_is_told() -> None:
    with pytest.raises(RankDiedError, match="rank 1 died with exit code 7"):
        run_ranks(die_on_one, 2)


def test_a_hanging_rank_is_ended(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match=r"ranks \[1\] of 2"):
        run_ranks(hang_on_one, 2, tmp_path, timeout_s=4)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
