"""Stage 1 on a group of Ray workers: the numbers of one process, and what a lost worker costs.

Two ranks add in another order than one, and the optimiser divides by small numbers: losses agree to
2e-4 (relative) over the twenty steps compared here, and the first one, before any update, to 1e-5.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mstar.cli.main import main
from mstar.models.stage1_files import load_aggregator, load_gene_encoder, load_text_encoder
from mstar.training.exit_codes import ExitCode
from mstar.training.run_log import read_steps
from support.stage1_inputs import Stage1Inputs, losses_of, stage1_args, write_stage1_inputs

pytestmark = [pytest.mark.slow, pytest.mark.ray]

FLAGS = ("--epochs", "5", "--aggregator.input-dropout", "0", "--aggregator.attention-dropout", "0")
GROUP = ("--workers", "2", "--engine", "deepspeed", "--zero-stage", "2")
FIRST, LATER = 1e-5, 2e-4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Stage1Inputs:
    """A cohort, and a report encoder without dropout, which every rank would draw otherwise."""
    made = write_stage1_inputs(tmp_path_factory.mktemp("ray"))
    config = json.loads((made.text / "config.json").read_text())
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (made.text / "config.json").write_text(json.dumps(config | off))
    return made


@pytest.fixture(scope="module")
def alone(inputs: Stage1Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process with plain torch."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert main(stage1_args(inputs, out, *FLAGS)) == ExitCode.COMPLETE
    return out


def assert_same_losses(out: Path, alone: Path) -> None:
    ours, theirs = losses_of(out), losses_of(alone)
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(ours[1], theirs[1], rtol=FIRST)
    np.testing.assert_allclose(
        [ours[step] for step in theirs], [theirs[step] for step in theirs], rtol=LATER
    )


def test_two_workers_with_zero_2_give_the_losses_of_one_process(
    inputs: Stage1Inputs, alone: Path, tmp_path: Path, local_ray: None
) -> None:
    out = tmp_path / "out"
    assert main(stage1_args(inputs, out, *FLAGS, *GROUP)) == ExitCode.COMPLETE
    assert_same_losses(out, alone)
    facts = json.loads((out / "stage1.json").read_text())
    assert facts["inputs"] == json.loads((alone / "stage1.json").read_text())["inputs"]
    assert facts["complete"]
    for load in (load_aggregator, load_text_encoder, load_gene_encoder):
        load(str(out))


def test_a_killed_worker_is_replaced_and_the_run_goes_on(
    inputs: Stage1Inputs,
    alone: Path,
    tmp_path: Path,
    local_ray: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    killed: list[int] = []

    def kill() -> None:
        deadline_s = time.monotonic() + 300
        while time.monotonic() < deadline_s:
            rows = list(read_steps(out / "steps.jsonl"))
            kept = out.glob("checkpoints/stage1-*/checkpoint_manager_snapshot.json")
            if rows and any("step-" in path.read_text() for path in kept):
                killed.append(rows[-1]["pid"])
                os.kill(killed[0], signal.SIGKILL)
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    args = stage1_args(inputs, out, *FLAGS, *GROUP, "--max-restarts", "1")
    assert main(args) == ExitCode.COMPLETE
    killer.join()
    assert killed, "a worker was killed"
    assert "resumed at step" in capfd.readouterr().err, "the driver shows what the workers say"
    pids = {row["pid"] for row in read_steps(out / "steps.jsonl")}
    assert killed[0] in pids
    assert len(pids) > 1
    assert_same_losses(out, alone)


def test_a_run_of_one_process_goes_on_with_two_workers_and_back(
    inputs: Stage1Inputs, alone: Path, tmp_path: Path, local_ray: None
) -> None:
    """Without DeepSpeed, whose files hold a share per rank, either way is the same file."""
    from mstar.training.run_log import RunLog

    out = tmp_path / "out"
    append = RunLog.append

    def stop(self: RunLog, step: int, metrics: dict[str, float]) -> None:
        append(self, step, metrics)
        if step == 5:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "append", stop)
        assert main(stage1_args(inputs, out, *FLAGS)) == ExitCode.INTERRUPTED
    args = stage1_args(inputs, out, *FLAGS, "--workers", "2")
    assert main(args) == ExitCode.COMPLETE
    said = (out / "log.txt").read_text()
    assert "resumed at step 4" in said
    assert "workers changed from 1 to 2" in said
    assert_same_losses(out, alone)


def test_wrong_inputs_are_refused_before_any_worker_starts(
    inputs: Stage1Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = stage1_args(inputs, tmp_path / "out", *GROUP, "--min-pairs", "50")
    assert main(args) == ExitCode.FAILED
    assert "expected at least 50 cases with both" in capsys.readouterr().err
    assert not (tmp_path / "out" / "checkpoints").exists()
