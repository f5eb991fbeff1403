"""Stage 2 killed, resumed and spread over ranks: the run it would have been, each patch once.

One rank and two add in another order: losses of float32 runs agree to 1e-4 (relative), and
parameters after twenty steps to a tenth of what an optimiser step may move them.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mstar.pretrain import stage2_finish
from mstar.pretrain.stage2 import read_facts, run
from mstar.training.engines import EngineConfig
from mstar.training.exit_codes import ExitCode
from support.ranks import RankDiedError, run_ranks
from support.stage2_runs import (
    KILLED,
    ROWS,
    STEPS_AN_EPOCH,
    ids_of,
    killed_at,
    losses_of,
    on_rank,
    recorded,
    small_run,
    write_stage2_shards,
)
from support.threads import one_thread

LOSS_RTOL = 1e-4
PARAMETER_GAP = 0.1  # of the learning rate, which a step may move a parameter by


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As the ranks have: more threads add in another order."""
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage2_finish, "curves", lambda *_: None)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "T"
    write_stage2_shards(folder / "shards")
    return folder


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with recorded(out, "whole"):
        assert run(small_run(shards, out)) == ExitCode.COMPLETE
    return out


@pytest.fixture(scope="module")
def killed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the same run, whose process ended in its second epoch, after step 8 of 10."""
    out = tmp_path_factory.mktemp("killed") / "out"
    with pytest.raises(RankDiedError, match=f"exit code {KILLED}"):
        run_ranks(killed_at, 1, small_run(shards, out), 8, timeout_s=120)
    assert max(losses_of(out)) == 8
    assert not (out / "stage2.json").exists()
    return out


def assert_every_patch_once_an_epoch(ids: dict[int, list[str]]) -> None:
    assert sorted(ids) == list(range(2 * STEPS_AN_EPOCH))
    first = Counter(patch for step in range(STEPS_AN_EPOCH) for patch in ids[step])
    second = Counter(
        patch for step in range(STEPS_AN_EPOCH, 2 * STEPS_AN_EPOCH) for patch in ids[step]
    )
    assert len(first) == ROWS
    assert set(first.values()) == {1}
    assert first == second


def kept(out: Path, checkpoint: int, *later: str) -> dict[int, list[str]]:
    """The patches of the steps that are in the result: to the checkpoint, and those after it."""
    before = {step: ids for step, ids in ids_of(out, "killed").items() if step < checkpoint}
    after = ids_of(out, *later)
    assert min(after) == checkpoint
    return before | after


def test_an_undisturbed_run_trains_every_patch_once_an_epoch(whole: Path) -> None:
    ids = ids_of(whole, "whole")
    assert_every_patch_once_an_epoch(ids)
    assert ids[0] != ids[STEPS_AN_EPOCH], "another order in every epoch"


def test_killed_and_resumed_it_is_the_undisturbed_run(
    shards: Path, whole: Path, killed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(killed, out)
    with recorded(out, "resumed"):
        assert run(small_run(shards, out)) == ExitCode.COMPLETE
    assert "resumed at step 6" in (out / "log.txt").read_text()
    assert losses_of(out) == losses_of(whole)
    ours, theirs = read_facts(str(out)), read_facts(str(whole))
    assert ours["weights_sha256"]["encoder.pth"] == theirs["weights_sha256"]["encoder.pth"]
    assert ours["metrics"] == theirs["metrics"]
    ids = kept(out, 6, "resumed")
    assert ids == ids_of(whole, "whole")
    assert_every_patch_once_an_epoch(ids)


def test_killed_alone_and_resumed_by_two_ranks_trains_the_same_patches(
    shards: Path, whole: Path, killed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(killed, out)
    first, second = run_ranks(on_rank, 2, small_run(shards, out, micro_batch=12), timeout_s=200)
    for mine, theirs in zip(first, second, strict=True):
        assert torch.equal(mine, theirs)
    said = (out / "log.txt").read_text()
    assert "resumed at step 6" in said
    assert "workers changed from 1 to 2" in said
    ids = kept(out, 6, "rank0", "rank1")
    assert_every_patch_once_an_epoch(ids)
    expected = ids_of(whole, "whole")
    assert {step: sorted(found) for step, found in ids.items()} == {
        step: sorted(found) for step, found in expected.items()
    }
    assert_close_losses(out, whole)


def assert_close_losses(out: Path, whole: Path) -> None:
    ours, theirs = losses_of(out), losses_of(whole)
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(
        [ours[step] for step in theirs], [theirs[step] for step in theirs], rtol=LOSS_RTOL
    )


def largest_gaps(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> Any:
    """The largest difference within each tensor, biases of attention keys apart.

    Softmax does not see a key's bias: its gradient is nothing but rounding, which Adam scales up.
    """
    gaps = {}
    for name, value in theirs.items():
        gap = (ours[name] - value).abs()
        if name.endswith("qkv.bias"):
            queries, _, values = gap.chunk(3)
            gap = torch.cat([queries, values])
        gaps[name] = float(gap.max())
    return gaps


@pytest.mark.slow
def test_two_ranks_under_zero_2_are_one_rank_with_the_same_batch(
    shards: Path, tmp_path: Path
) -> None:
    """Twenty steps of the whole job in float32: losses, parameters, patches."""
    alone = small_run(shards, tmp_path / "alone", epochs=4)
    with recorded(tmp_path / "alone", "whole"):
        assert run(alone) == ExitCode.COMPLETE
    out = tmp_path / "two"
    split = EngineConfig(engine="deepspeed", zero_stage=2, precision="fp32")
    config = replace(alone, out=str(out), micro_batch=12, engine=split)
    first, second = run_ranks(on_rank, 2, config, timeout_s=400)
    assert len(losses_of(out)) == 20
    assert_close_losses(out, tmp_path / "alone")
    for mine, theirs in zip(first, second, strict=True):
        assert torch.equal(mine, theirs)
    ours = torch.load(out / "encoder.pth", weights_only=True)
    theirs = torch.load(tmp_path / "alone" / "encoder.pth", weights_only=True)
    assert max(largest_gaps(ours, theirs).values()) < PARAMETER_GAP * alone.lr
    every = ids_of(out, "rank0", "rank1")
    expected = ids_of(tmp_path / "alone", "whole")
    assert {s: sorted(ids) for s, ids in every.items()} == {
        s: sorted(ids) for s, ids in expected.items()
    }
